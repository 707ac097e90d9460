"""`dlproxy why` on a real server: the list, one request, and mistakes in one line."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.on_a_server import Succeeds, fixtures
from tests.clients.server import ServerProcess, asked, write_config

run, complaint = fixtures("why")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Model m was asked for something that it took, and for something that it did not."""
    model = {"path": "sleep:base=1ms", "run": "inline", "batching": "off"}
    config = write_config(tmp_path_factory.mktemp("why") / "dlproxy.toml", {"m": model})
    with ServerProcess("--config", config) as process:
        for name, inputs in (("good", [[1.0]]), ("bad", [["x"]])):
            headers: dict[str, Any] = {"x-request-id": name}
            asked(f"http://{process.address}/predict/m", {"inputs": inputs}, **headers)
        yield process


def test_the_list_has_the_newest_first(run: Succeeds) -> None:
    headings, bad, good = run()
    assert headings.split("  ")[0] == "request"
    assert bad.startswith("bad")
    assert "invalid_argument" in bad
    assert good.startswith("good")
    assert [line.split()[0] for line in run("--kind", "failed")] == ["request", "bad"]
    assert [one["request_id"] for one in json.loads("\n".join(run("--json")))] == ["bad", "good"]


def test_one_is_told_with_its_phases(run: Succeeds) -> None:
    page = "\n".join(run("good"))
    assert "request good (number 1) to model m version 1" in page
    assert "in batch 1: 1 row of 1 request, on m-0" in page
    assert "█" in page
    assert "compute" in page


def test_a_failure_says_why(run: Succeeds) -> None:
    page = "\n".join(run("bad"))
    assert "failed (invalid_argument: " in page
    assert "[bad_request]" in page


def test_nothing_of_a_model_that_was_not_asked(run: Succeeds) -> None:
    assert run("--model", "none") == ["no request of model none is known that was slow or failed; --kind sample lists others"]


@pytest.mark.parametrize(
    ("arguments", "says"), [(["goood"], "request 'goood' is not known"), (["--limit", "0"], "limit is '0'; it can be 1 to")]
)
def test_mistakes_are_one_line(complaint: "Succeeds", arguments: list[str], says: str) -> None:
    assert says in complaint(*arguments)


def test_another_port_is_told_apart(server: ServerProcess, complaint: "Succeeds") -> None:
    inference = f"http://{server.address}"
    assert "is an inference port" in complaint("good", control=inference)
