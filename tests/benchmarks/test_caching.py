"""The part of benchmarks/caching that needs no server: it counts what the cache does, and its page has all parts."""

from itertools import count
from pathlib import Path

import pytest

from benchmarks import caching
from benchmarks.harness.processes import Children, Cores


def test_look_ups_are_counted_and_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A clock that goes on by a millionth with each look at it: what `auto` decides is of the requests, not of the machine."""
    ticks = count()
    for clock in ("monotonic", "perf_counter"):
        monkeypatch.setattr(caching, clock, lambda: next(ticks) * 1e-6)
    monkeypatch.setattr(caching, "CHUNKS", 40)
    with Children(tmp_path) as children:
        findings = caching.look_ups(caching.Stage(children, Cores(None, None), tmp_path, 1, 1))
    measured = {check.result: check.measured for check in findings.checks}
    assert 0 < measured["requests for 200 keys until auto is on"] < caching.TURNS
    assert 0 < measured["requests of which none comes twice until it is off"] < caching.TURNS
    assert 0.0 < measured["us of a hit beside the hash, cache = on"] < caching.LOOKUP_US, "it looks at the clock once or twice"
    page = caching._page([findings] * len(caching.PARTS), "a machine")
    assert page.count("us of a hit beside the hash, cache = auto") == len(caching.PARTS)
