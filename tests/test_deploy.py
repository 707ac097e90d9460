"""Dockerfile, compose file and Helm chart name only what the product has, and it drains within the grace that they give.

What needs Helm, hadolint and the schemas of Kubernetes is `make prove-deploy`.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import pytest

from dlproxy.config.knobs import SECTIONS
from dlproxy.config.server import ServerConfig
from dlproxy.lab.child_server import ChildServer
from tests.telemetry.test_prometheus import Page, busy_model

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy" / "helm" / "dlproxy"
COMPOSE = ROOT / "deploy" / "compose"
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
TEMPLATES = "\n".join(path.read_text("utf-8") for path in sorted((CHART / "templates").glob("*.yaml")))
PROBED = re.findall(r"httpGet: \{path: (\S+),", TEMPLATES)


def _yaml(path: Path) -> Any:
    return msgspec.yaml.decode(path.read_bytes())


def _argv(instruction: str) -> list[str]:
    """Of the Dockerfile's last such instruction, in the form of a JSON list."""
    found = re.findall(rf"^ *{instruction} (\[.*\])$", DOCKERFILE, re.MULTILINE)
    argv: list[str] = json.loads(found[-1])
    return argv


@pytest.fixture(scope="module")
def health() -> list[str]:
    """The command of the image's health check."""
    return [sys.executable, *json.loads(re.findall(r"^ +CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[0])[1:]]


def test_the_image_serves_is_well_and_drains_as_its_orchestrators_ask(
    tmp_path: Path, health: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _argv("ENTRYPOINT") == ["dlproxy", "serve"]
    option, _ = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[0][1:-1].replace('"', "").split(", ")
    monkeypatch.setenv("DLPROXY_HOST", "127.0.0.1")
    monkeypatch.setenv("DLPROXY_HTTP_PORT", "0")
    monkeypatch.setenv("DLPROXY_CONTROL_PORT", "0")
    monkeypatch.setenv("HOME", str(tmp_path))
    server = ChildServer([option, str(tmp_path)])
    try:
        addresses = server.wait_until_ready()
        environment = {**os.environ, "DLPROXY_CONTROL_PORT": str(addresses.control_port)}
        subprocess.run(health, env=environment, check=True, timeout=30)
        assert len(PROBED) == 3
        for path in PROBED:
            assert urlopen(addresses.http + path, timeout=10).status == 200, path
        assert urlopen(addresses.control + "/metrics", timeout=10).status == 200
        server.process.terminate()
        assert server.process.wait(20) == 0
        assert subprocess.run(health, env=environment, check=False, timeout=30, capture_output=True).returncode == 1
    finally:
        server.end()


def test_a_check_where_no_server_is_fails(health: list[str]) -> None:
    unused = {**os.environ, "DLPROXY_CONTROL_PORT": "1"}
    assert subprocess.run(health, env=unused, check=False, timeout=30, capture_output=True).returncode == 1


def test_what_scales_and_is_scraped_is_a_metric_that_there_is() -> None:
    known = {name for name, _ in Page(busy_model()).values}
    assert _yaml(CHART / "values.yaml")["autoscaling"]["metric"] in known
    [rule] = _yaml(ROOT / "deploy" / "helm" / "prometheus-adapter.yaml")["rules"]["custom"]
    assert rule["seriesQuery"].partition("{")[0] == _yaml(CHART / "values.yaml")["autoscaling"]["metric"]
    [scraped] = _yaml(COMPOSE / "prometheus.yml")["scrape_configs"]
    assert scraped["metrics_path"] == "/metrics"
    assert "path: /metrics" in TEMPLATES


def test_ports_and_knobs_are_the_products() -> None:
    server = ServerConfig()
    ports = {"http": server.http_port, "grpc": server.grpc_port, "control": server.control_port}
    assert _yaml(CHART / "values.yaml")["ports"] == ports
    assert DOCKERFILE.split("EXPOSE ")[1].splitlines()[0].split() == [str(port) for port in ports.values()]
    fields = {field for section in SECTIONS.values() for field in section.__struct_fields__}
    everything = DOCKERFILE + TEMPLATES + (COMPOSE / "compose.yaml").read_text("utf-8")
    named = set(re.findall(r"DLPROXY_([A-Z_]+)", everything))
    assert {"HOST", "DRAIN_S", "STORE"} <= named
    assert {name.lower() for name in named} <= fields


def test_a_drain_ends_before_the_grace_does() -> None:
    values = _yaml(CHART / "values.yaml")
    assert values["drainSeconds"] == ServerConfig().drain_s
    assert "add (ceil .Values.drainSeconds) .Values.preStopSeconds 10" in TEMPLATES
    dlproxy = _yaml(COMPOSE / "compose.yaml")["services"]["dlproxy"]
    assert float(dlproxy["environment"]["DLPROXY_DRAIN_S"]) + 5.0 <= float(dlproxy["stop_grace_period"].removesuffix("s"))


def test_the_compose_files_are_all_there() -> None:
    services = _yaml(COMPOSE / "compose.yaml")["services"]
    assert set(services) == {"dlproxy", "redis", "prometheus", "grafana"}
    assert services["dlproxy"]["read_only"] is True
    mounted = [
        volume.split(":")[0] for one in services.values() for volume in one.get("volumes", []) if volume.startswith("./")
    ]
    made = (COMPOSE / "generate.sh").read_text("utf-8")
    for path in mounted:
        assert (COMPOSE / path).exists() or path.removeprefix("./") in made, path
    assert os.access(COMPOSE / "generate.sh", os.X_OK)


def test_each_value_has_a_default_and_a_schema() -> None:
    values, schema = _yaml(CHART / "values.yaml"), json.loads((CHART / "values.schema.json").read_text("utf-8"))
    assert set(values) == set(schema["properties"]) - {"global"}
    used = set(re.findall(r"\.Values\.(\w+)", TEMPLATES + (CHART / "templates" / "_helpers.tpl").read_text("utf-8")))
    assert used == set(values)


def test_nothing_but_what_is_built_from_goes_to_the_builder() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert copied == kept
    assert "USER 10001:10001" in DOCKERFILE
