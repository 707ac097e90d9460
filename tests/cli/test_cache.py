"""`dlproxy cache` on a real server: what it shows and clears, and that mistakes are one line and exit code 2; options of
`dlproxy serve`.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import msgspec
import pytest

from dlproxy.cli import USER_ERROR, main
from dlproxy.cli.cache import _remarks
from dlproxy.cli.control_port import ControlPort
from dlproxy.cli.told import CacheState
from tests.cli.on_a_server import Succeeds, fixtures, succeeds
from tests.clients.server import HANG_S, ServerProcess, write_config


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """digits remembers, plain does not."""
    models = {
        "digits": {"path": "sleep:base=10us", "run": "inline", "cache": "on"},
        "plain": {"path": "sleep:base=10us", "run": "inline"},
    }
    config = write_config(tmp_path_factory.mktemp("cache") / "dlproxy.toml", models)
    with ServerProcess("--config", config, "--cache-memory-mb", "3") as process:
        yield process


@pytest.fixture
def cache(server: ServerProcess, capsys: pytest.CaptureFixture[str]) -> Succeeds:
    """Runs a `dlproxy cache` command that succeeds, after all is forgotten; the lines of its output."""
    run = succeeds("cache", server, capsys)
    run("clear")
    return run


_, complaint = fixtures("cache")


def ask(server: ServerProcess, number: float, **headers: str) -> str:
    """One request for digits; what the cache had for it."""
    body = json.dumps({"inputs": [[number]]}).encode()
    request = Request(f"http://{server.address}/predict/digits", body, headers)
    with urlopen(request, timeout=HANG_S) as reply:
        return str(reply.headers["x-dlproxy-cache"])


def test_what_is_remembered_stands_in_a_table_and_can_be_cleared(server: ServerProcess, cache: Succeeds) -> None:
    before = json.loads("\n".join(cache("show", "digits", "--json")))[0]
    assert [ask(server, number) for number in (1.0, 2.0, 1.0, 1.0)] == ["miss", "miss", "hit", "hit"]
    assert ask(server, 1.0, **{"cache-control": "no-store"}) == "bypass"
    headings, row = cache()
    wanted = ("model", "version", "cache", "answers", "memory", "hits", "joined", "misses", "bypassed", "hit ratio")
    assert re.split(r"  +", headings) == list(wanted)
    hits, misses, bypassed = before["hits"] + 2, before["misses"] + 2, before["bypassed"] + 1
    assert re.fullmatch(rf"digits +1 +on +2 +[12].\d+ KiB of 3 MiB +{hits} +0 +{misses} +{bypassed} +\d+\.\d%", row)
    assert cache("show") == cache("show", "digits") == cache(), "the fixture clears once"
    assert cache("clear", "digits") == ["2 answers forgotten"]
    assert ask(server, 2.0) == "miss"
    assert cache("clear") == ["1 answer forgotten"]
    assert json.loads("\n".join(cache("clear", "--json"))) == {"forgotten": 0}


def test_a_model_shows_what_it_remembers(server: ServerProcess, cache: Succeeds, capsys: pytest.CaptureFixture[str]) -> None:
    cache("clear")
    ask(server, 7.0)
    control = f"http://127.0.0.1:{server.control_port}"
    assert main(["models", "show", "digits", "--control", control]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  cache ")]
    assert re.fullmatch(r"  cache    on, 1 answer in \d+ B of 3 MiB, \d+.\d% of the requests were hits", line)
    port = ControlPort(control)
    (shown,) = port.states(port.model("digits"))
    assert isinstance(shown.cache, CacheState)
    assert (shown.cache.state, shown.cache.ttl_s, shown.cache.budget_bytes) == ("on", 0.0, 3 * 2**20)


def test_a_model_that_remembers_nothing_says_so(cache: Succeeds) -> None:
    assert cache("show", "plain") == ['plain remembers no answers: the knob cache says which do, as cache = "on"']
    assert cache("clear", "plain") == ["0 answers forgotten"]


@pytest.mark.parametrize(
    ("arguments", "clues"),
    [
        (["show", "digts"], ["serves no model 'digts'", "did you mean 'digits'?"]),
        (["clear", "zzz"], ["serves no model 'zzz'", "it serves digits, plain"]),
    ],
)
def test_a_mistyped_model_is_one_line(complaint: Callable[..., str], arguments: list[str], clues: list[str]) -> None:
    line = complaint(*arguments)
    assert not [clue for clue in clues if clue not in line], line


def test_a_server_that_is_down_and_one_that_is_none_are_named(server: ServerProcess, complaint: Callable[..., str]) -> None:
    line = complaint(control="http://127.0.0.1:1")
    assert line == "dlproxy: cannot reach http://127.0.0.1:1: connection refused; is dlproxy running there?"
    assert "is an inference port" in complaint("show", control=f"http://{server.address}")
    assert "is an inference port" in complaint("clear", control=f"http://{server.address}")


def test_models_of_the_command_line_remember(capsys: pytest.CaptureFixture[str]) -> None:
    with ServerProcess("m=sleep:base=10us", "--cache", "on", "--cache-ttl-s", "60", "--cache-policy", "lru") as process:
        control = f"http://127.0.0.1:{process.control_port}"
        assert main(["models", "show", "m", "--json", "--control", control]) == 0
        shown = json.loads(capsys.readouterr().out)
    assert "  cache    answers are remembered for 60 s\n" in process.report
    assert (shown["cache"]["state"], shown["cache"]["ttl_s"]) == ("on", 60.0)


@pytest.mark.parametrize(
    ("arguments", "clues"),
    [
        (["m=sleep:base=1ms", "--cache", "yes"], ["--cache: ", "'yes'", "on"]),
        (["m=sleep:base=1ms", "--cache-ttl-s", "5"], ["cache_ttl_s", "no effect", "cache"]),
        (["m=sleep:base=1ms", "--cache", "on", "--cache-ttl-s", "-1"], ["--cache-ttl-s: ", ">= 0"]),
        (["m=sleep:base=1ms", "--cache-policy", "mru"], ["--cache-policy: 'mru'", "did you mean 'lru'?"]),
        (["m=sleep:base=1ms", "--cache-memory-mb", "0"], ["--cache-memory-mb: ", ">= 1"]),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], clues: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments, "--http-port", "0", "--control-port", "0"]) == USER_ERROR
    line = capsys.readouterr().err
    assert not [clue for clue in clues if clue not in line], line


def test_cache_without_a_model_on_the_command_line_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "dlproxy.toml", {"m": {"path": "sleep:base=1ms"}})
    assert main(["serve", "--config", str(config), "--cache", "on"]) == USER_ERROR
    assert "--cache is for models given on the command line, and there are none" in capsys.readouterr().err


def test_no_memory_and_what_nodes_share_are_said() -> None:
    redis = {
        "address": "redis://db:6379/0",
        "connected": False,
        "trouble": "refused",
        "circuit": "open",
        "found": 3,
        "stored": 2,
    }
    counts = dict.fromkeys(("hits", "misses", "joined", "bypassed", "evicted", "expired", "entries", "bytes"), 0)
    told = {"name": "m", "version": "1", "state": "on", "ttl_s": 0.0, "budget_bytes": 0, "hit_ratio": None, **counts}
    poor, shares = (msgspec.convert(told | more, CacheState) for more in ({}, {"budget_bytes": 1, "redis": redis}))
    assert list(_remarks([poor])) == [
        "m remembers nothing: the result cache leaves 256 MiB of the memory free, and no more is left"
    ]
    (line,) = _remarks([shares])
    assert line == (
        "m shares answers by redis://db:6379/0, not connected (refused), not asked for a while: 3 found there, 2 stored"
    )
