"""The metrics page of a real server: in the form that is asked for, and as long as it was, whatever clients send."""

import shutil
import subprocess
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests import models
from tests.clients.server import ServerProcess, asked

ROWS = {"inputs": {"image": [[[[0.0] * 8] * 8]]}}
OPENMETRICS = "application/openmetrics-text"
PROMETHEUS = (
    f"{OPENMETRICS};version=1.0.0;escaping=allow-utf-8;q=0.5,{OPENMETRICS};version=0.0.1;q=0.4,text/plain;q=0.3,*/*;q=0.1"
)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(models.DIGITS) as process:
        yield process


def metrics(server: ServerProcess, accept: str) -> tuple[str, str]:
    """Content type and text."""
    told = asked(f"http://127.0.0.1:{server.control_port}/metrics", accept=accept)
    assert told.status == 200
    return told.headers["content-type"], told.body.decode()


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("*/*", False),
        ("text/plain", False),
        ("text/plain;version=0.0.4", False),
        (f"text/plain, {OPENMETRICS};q=0.5", False),
        (f"{OPENMETRICS};q=0", False),
        (f"{OPENMETRICS};q=x", False),
        ("Application/OpenMetrics-Text; Version=1.0.0", True),
        (f"text/plain;q=0.2, {OPENMETRICS}", True),
        (PROMETHEUS, True),
    ],
)
def test_who_asks_for_openmetrics_gets_it(server: ServerProcess, accept: str, openmetrics: bool) -> None:
    kind, text = metrics(server, accept)
    assert kind.startswith(OPENMETRICS if openmetrics else "text/plain")
    assert text.endswith("# EOF\n") is openmetrics
    assert list((parse_openmetrics if openmetrics else text_string_to_metric_families)(text))


def test_a_request_s_own_name_is_beside_its_bucket(server: ServerProcess) -> None:
    metrics(server, PROMETHEUS)
    assert asked(f"http://{server.address}/predict/digits", ROWS, **{"x-request-id": "mine-7"}).status == 200
    _, text = metrics(server, PROMETHEUS)
    found = {
        sample.labels["phase"]
        for family in parse_openmetrics(text)
        for sample in family.samples
        if sample.exemplar is not None and sample.exemplar.labels == {"request_id": "mine-7"}
    }
    assert found == {"queue", "batch", "compute", "split", "request"}
    assert "mine-7" not in metrics(server, "*/*")[1]


def test_no_client_makes_a_series(server: ServerProcess) -> None:
    def series() -> set[tuple[str, frozenset[tuple[str, str]]]]:
        families = text_string_to_metric_families(metrics(server, "*/*")[1])
        return {(sample.name, frozenset(sample.labels.items())) for family in families for sample in family.samples}

    asked(f"http://{server.address}/predict/digits", ROWS)
    before = series()
    for number in range(30):
        headers = {"x-request-id": f"r{number}", "x-tenant-id": f"t{number}", "x-request-priority": str(number)}
        headers |= {"traceparent": f"00-{number + 1:032x}-{1:016x}-01", "user-agent": f"a{number}"}
        assert asked(f"http://{server.address}/predict/digits", ROWS, **headers).status == 200
        assert asked(f"http://{server.address}/predict/m{number}", ROWS, **headers).status == 404
        assert asked(f"http://{server.address}/predict/digits", {"inputs": {f"i{number}": [1]}}, **headers).status == 400
    assert series() == before


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_no_fault_in_it(server: ServerProcess) -> None:
    text = metrics(server, "*/*")[1].encode()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    told = (done.stdout + done.stderr).decode().splitlines()
    assert [line for line in told if not line.startswith(("nv_", "process_", "python_"))] == []
