"""The parts of bench-learn about deployment, on small budgets: their pages have every row."""

import argparse
from pathlib import Path

import pytest

from benchmarks.learn import central
from benchmarks.learn.central import Central, compare, ways
from dlproxy.policy.tuning.protocol import Space
from dlproxy.policy.tuning.shares import Member
from tests.policy.tuning.lanes import window

OPTIONS = argparse.Namespace(folder=Path("nowhere"), seeds=1, write=False)


def test_a_central_agent_turns_batches_and_shares_at_once() -> None:
    agent = Central({"a": 0.1, "b": 0.2})
    seen = window(0.5, arrived=100, missed=50)
    agent.observe({"a": Member(seen, 1.0, 5.0), "b": Member(seen, 1.0)})
    knobs = {"a": 0.5, "b": 0.5, "a.max_batch": 1, "b.max_batch": 1}
    proposal = agent.act(seen, knobs, Space(cores=2, max_batch=64, ways=(), objective_s=0.25), 0.5)
    assert proposal is not None
    assert int(proposal.knobs["b.max_batch"]) > int(proposal.knobs["a.max_batch"]) > 1
    assert float(proposal.knobs["a"]) + float(proposal.knobs["b"]) == pytest.approx(1.0)
    assert 0.0 < proposal.gain <= 1.0


def test_who_turns_knobs_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(central, "UNTIL_S", 6.0)
    found = compare(2)
    assert tuple(found) == ways()
    assert found["nobody"] < found["one for each"] <= 1.0
    assert found["nobody"] < found["one for all"] <= 1.0


@pytest.mark.extras
def test_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.learn import deploy, pareto

    monkeypatch.setattr(central, "UNTIL_S", 2.0)
    monkeypatch.setattr(deploy, "LONG_S", 4.0)
    monkeypatch.setattr(deploy, "TURN_S", 2.0)
    page = deploy.measure(OPTIONS)
    assert all(f"| {name} | 0 | 0 | 1 | " in page for name in deploy.OTHERS), "too short for any decision"
    assert all(f"| {way} | " in page for way in ways())
    monkeypatch.setattr(pareto, "TRIALS", 3)
    monkeypatch.setattr(pareto, "PHASE_S", 2.0)
    page = pareto.measure(OPTIONS)
    assert all(f"| {name} | 0." in page for name in ("rules", "bandit", pareto.NSGA))
    assert "- rules dominates " in page
