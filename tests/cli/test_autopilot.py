"""`dlproxy autopilot` on a real server: what it shows, switches and pins, and that mistakes are one line and exit code 2."""

import json
import re
from collections.abc import Callable, Iterator

import pytest

from tests.cli.on_a_server import Succeeds, fixtures
from tests.clients.server import ServerProcess, write_config


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """many is tuned; aimless has nothing to be tuned for."""
    models = {
        "many": {"path": "sleep:base=1ms", "run": "thread", "slo": "p99=50ms", "autopilot": "on"},
        "aimless": {"path": "sleep:base=10us", "run": "inline", "autopilot": "advise"},
    }
    with ServerProcess("--config", write_config(tmp_path_factory.mktemp("pilot") / "dlproxy.toml", models)) as process:
        yield process


autopilot, complaint = fixtures("autopilot")


def test_all_models_stand_in_a_table(autopilot: Succeeds) -> None:
    headings, many, aimless = autopilot()
    assert re.split(r"  +", headings) == [*("model", "version", "mode", "objective", "runs as", "max_batch", "state", "pinned")]
    assert re.fullmatch(r"many +1 +on +0.99 within 50 ms +1 x 1 threads +256 +too few requests come to tell +run", many)
    assert re.fullmatch(r"aimless +1 +advise +- +1 x 1 threads +256 +it has no objective to tune for; .* +-", aimless)
    assert [one["name"] for one in json.loads("\n".join(autopilot("--json")))] == ["many", "aimless"]


def test_a_model_is_explained(autopilot: Succeeds) -> None:
    lines = autopilot("explain", "many")
    assert lines[:5] == [
        *("model many version 1, autopilot on", "  now        too few requests come to tell", "  decides    rules"),
        *("  objective  0.99 within 50 ms", "  pinned     run"),
    ]
    assert any(re.fullmatch(r"max_batch +256", line) for line in lines)
    assert '  now        it has no objective to tune for; set one, such as slo = "p99=20ms"' in autopilot("explain", "aimless")


def test_it_is_paused_and_resumed(autopilot: Succeeds) -> None:
    assert " paused " in autopilot("pause", "many")[1]
    assert " paused " in autopilot()[1]
    assert " too few requests come to tell " in autopilot("resume", "many")[1]
    assert " paused" in autopilot("pause")[1]
    assert "paused" not in "".join(autopilot("resume"))


def test_it_is_challenged(autopilot: Succeeds) -> None:
    autopilot("challenge", "bandit", "many")
    assert any(line.startswith("  decides    rules; bandit waits") for line in autopilot("explain", "many"))
    autopilot("challenge", "none", "many")
    assert "  decides    rules" in autopilot("explain", "many")


def test_the_log_is_empty_at_first(autopilot: Succeeds) -> None:
    assert autopilot("log") == autopilot("log", "many") == ["it has decided nothing yet"]


def test_knobs_are_pinned_and_freed(autopilot: Succeeds) -> None:
    told = autopilot("pin", "many", "max_batch=32", "hedge", "instances")
    assert told == ["many: pinned are instances, run, max_batch = 32, hedge = false"]
    assert autopilot("unpin", "many", "max_batch", "hedge", "instances") == ["many: pinned are run"]
    assert " 32 " in autopilot()[1]
    assert autopilot("pin", "many", "threads=2") == ["many: pinned are threads, run"], "for which it is loaded anew"
    assert any(line.startswith("many ") and " 1 x 2 threads " in line for line in autopilot())


@pytest.mark.parametrize(
    ("arguments", "clues"),
    [
        (["explain", "mayn"], ["serves no model 'mayn'", "did you mean 'many'?"]),
        (["pause", "zzz"], ["serves no model 'zzz'", "it serves many, aimless"]),
        (["log", "zzz"], ["serves no model 'zzz'"]),
        (["pin", "zzz", "hedge"], ["'zzz'"]),
        (["pin", "many", "max_bach"], ["'max_bach' is no knob that the autopilot changes", "did you mean 'max_batch'?"]),
        (["pin", "many", "max_batch=0"], ["max_batch: ", ">= 1"]),
        (["challenge", "oracle"], ["there is no policy 'oracle'", "an agent's file (.onnx)"]),
        (["challenge", "gone.onnx", "many"], ["gone.onnx does not exist"]),
        (["unpin", "many", "balancer"], ["'balancer' is not pinned"]),
    ],
)
def test_every_mistake_is_one_line(complaint: Callable[..., str], arguments: list[str], clues: list[str]) -> None:
    line = complaint(*arguments)
    assert not [clue for clue in clues if clue not in line], line


def test_a_server_that_is_down_is_named(complaint: Callable[..., str]) -> None:
    line = complaint(control="http://127.0.0.1:1")
    assert line == "dlproxy: cannot reach http://127.0.0.1:1: connection refused; is dlproxy running there?"
