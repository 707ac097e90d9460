"""Autoscaling in virtual time: what is steady stays, what starts takes its time and is paid for, and sleep costs no request."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from dlproxy.config import ModelConfig
from dlproxy.lab.load.arrivals import Arrivals, make_arrivals
from dlproxy.lab.report.result import Result, Tally
from dlproxy.lab.simulate.run import Autoscaling, ModelPlan, Scenario, build, make_calls, plan_model, simulate
from dlproxy.policy.scaling import Bounds, Rule, ScalePolicy, Static, make_policy
from tests.fleet.forecast_models import forecast

HOUR_S = 3600.0
BATCHES = "base=80ms,row=20ms,cv=0.1"
SLOW_BATCHES, SLOW_SINGLES = "base=320ms,row=80ms,cv=0.1", "base=120ms,row=1us,cv=0.2"


def model(
    service: str,
    policy: Callable[[], ScalePolicy],
    *,
    start_s: float = 10.0,
    zero_after_s: float = 0.0,
    max_batch: int = 256,
    slo: str = "p99=500ms",
) -> ModelPlan:
    config = ModelConfig(path="m.onnx", run="thread", instances=1, slo=slo, max_batch=max_batch)
    plan = plan_model("m", config, service)
    plan.autoscaling = Autoscaling(policy, Bounds(1, 8, zero_after_s), start_s)
    return plan


def at(*instants: float) -> Arrivals:
    def draw() -> Iterator[NDArray[np.float64]]:
        yield np.array(instants)

    return Arrivals("listed", 1.0, draw)


def run(plan: ModelPlan, arrivals: Arrivals, seconds: float) -> Result:
    return simulate(Scenario(models={"m": plan}, arrivals=arrivals, duration_s=seconds))


@pytest.mark.parametrize(
    ("service", "max_batch", "rate", "forecast"),
    [
        (SLOW_BATCHES, 256, 3.0, "trend"),
        (SLOW_SINGLES, 1, 5.0, "off"),
        ("base=1s,row=1us", 1, 0.5, "trend"),
    ],
)
def test_under_poisson_load_of_one_rate_nothing_changes_in_an_hour(
    service: str, max_batch: int, rate: float, forecast: str
) -> None:
    """Once it has found its number, for which it gets half an hour."""
    plan = model(service, lambda: make_policy(Rule(), forecast), max_batch=max_batch, slo="p99=2s")
    arrivals = make_arrivals("poisson", rate=rate, seed=2)
    scenario = Scenario(models={"m": plan}, arrivals=arrivals, duration_s=1.5 * HOUR_S)
    simulation = build(scenario, Tally(0.5 * HOUR_S, 1.5 * HOUR_S))
    simulation.run(make_calls(scenario))
    assert simulation.scalers["m"].result().changes == 0


def test_instances_that_start_are_paid_for_and_serve_when_they_are_up() -> None:
    result = run(model(BATCHES, lambda: Static(3), start_s=20.0), make_arrivals("constant", rate=60.0, seed=1), 60.0)
    scaling = result.scaling["m"]
    assert (scaling.most, scaling.changes) == (3, 1)
    assert scaling.instance_s == pytest.approx(60.0 + 2 * 59.0)  # decided after the first second
    usage = result.instances["node-0"]
    assert usage["m-0"]["utilisation"] > 0.9
    for later in ("m-1", "m-2"):
        assert 0.3 < usage[later]["utilisation"] < 0.66


def test_nothing_is_lost_when_instances_leave_or_all_sleep() -> None:
    plan = model(BATCHES, lambda: make_policy(Rule()), zero_after_s=30.0)
    instants = [*np.arange(0.0, 60.0, 0.02), 300.0, 300.1, 305.0, 600.0, 641.05]
    result = run(plan, at(*instants), 700.0)
    late = [second for second in result.timeline if second.at_s >= 100.0]
    assert sum(second.failed for second in late) == 0
    assert sum(second.ok for second in late) == 5
    assert [round(second.p99_ms, -2) for second in late if second.ok][:1] == [10100.0]
    assert result.scaling["m"].instance_s < 0.75 * 700.0


def test_one_node_scales_apart_from_the_other() -> None:
    plan = model(BATCHES, lambda: make_policy(Rule()))
    scenario = Scenario(models={"m": plan}, arrivals=make_arrivals("poisson", rate=90.0, seed=1), duration_s=120.0, nodes=2)
    result = simulate(scenario)
    assert set(result.scaling) == {"node-0/m", "node-1/m"}
    assert all(scaling.most > 1 for scaling in result.scaling.values())


def test_a_learnt_forecast_scales_in_virtual_time_as_when_served(tmp_path: Path) -> None:
    """It expects four times what there is, and so has more instances."""
    path = forecast(tmp_path / "f.onnx", times=4.0)
    found = {}
    for knob in ("off", path):
        config = ModelConfig(path="m.onnx", run="thread", instances=1, slo="p99=500ms", autoscale="in-flight", max_instances=8)
        plan = plan_model("m", replace(config, forecast=knob), SLOW_BATCHES)
        found[knob] = run(plan, make_arrivals("poisson", rate=4.0, seed=1), 300.0).scaling["m"].most
    assert found["off"] < found[path]
