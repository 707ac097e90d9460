"""A scenario to its result: the lanes are those that would serve, the load is as asked for, and one seed gives one result."""

import re
from collections import Counter
from math import inf
from pathlib import Path

import msgspec
import pytest

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.instance.trial import Measured
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.report.result import Tally
from dlproxy.lab.simulate import run
from dlproxy.lab.simulate.engine import LoopCosts
from dlproxy.lab.simulate.faults import FaultError, parse
from dlproxy.lab.simulate.run import MANY_NODES, Scenario, build, make_calls, plan_model, simulate, uniform
from dlproxy.policy.balancing import BALANCERS, LeastPeakEwma, PowerOfTwo

TIMES = "base=10ms,row=0.5ms"


def scenario(
    *, rate: float = 100.0, slo: str = "", service: str = TIMES, duration_s: float = 5.0, **others: object
) -> Scenario:
    models = {"m": plan_model("m", ModelConfig(path="m.onnx", slo=slo), service)}
    arrivals = make_arrivals("poisson", rate=rate, seed=1)
    return msgspec.structs.replace(Scenario(models=models, arrivals=arrivals, duration_s=duration_s), **others)


def test_a_run_says_what_was_asked_for_and_what_came_of_it() -> None:
    ticks: list[float] = []
    result = simulate(scenario(seed=3), ticks.append)
    assert (result.kind, result.target, result.started, result.interrupted) == ("simulation", "m", "", False)
    assert result.sent == result.ok
    assert result.errors == {}
    assert result.latency_ms["p50"] >= 10.5
    assert result.setup["models"]["m"]["service"] == TIMES
    assert result.setup["seed"] == 3
    assert sum(times * size for size, times in result.batch_sizes.items()) == result.ok
    assert ticks
    assert max(ticks) < 5.0


def test_a_model_of_the_configuration_splits_large_requests_as_it_does_when_served() -> None:
    def slowest_ms(**knobs: int) -> float:
        made = scenario(rate=1.0, rows=64)
        config = ModelConfig(path="m.onnx", run="thread", instances=2, max_batch=64, **knobs)  # type: ignore[arg-type]
        made.models["m"] = plan_model("m", config, "base=1ms,row=1ms")
        result = simulate(made)
        assert (result.sent, result.errors) == (result.ok, {})
        return result.latency_ms["p50"]

    assert slowest_ms() == pytest.approx(65.0, rel=0.01)
    assert slowest_ms(part_rows=32) == pytest.approx(33.0, rel=0.01)


def test_the_objective_of_a_model_is_each_requests_deadline_as_it_is_when_served() -> None:
    calls = list(make_calls(scenario(slo="p99=50ms")))
    assert {call.timeout_s for call in calls} == {0.050}
    assert {call.timeout_s for call in make_calls(scenario(slo="p99=50ms", timeout_s=0.020))} == {0.020}
    assert {call.timeout_s for call in make_calls(scenario(slo="p99=50ms", timeout_s=0.100))} == {0.050}
    assert {call.timeout_s for call in make_calls(scenario())} == {inf}


def test_an_overload_with_an_objective_is_shed_and_what_is_answered_is_in_time() -> None:
    result = simulate(scenario(rate=5000.0, slo="p99=50ms", objective_s=0.050, duration_s=2.0))
    assert result.errors["deadline"] > 1000
    assert result.goodput_rps == pytest.approx(result.rate_rps, rel=0.02)


def test_each_of_several_models_has_figures_of_its_own() -> None:
    two = scenario(rate=2000.0, slo="p99=1s")
    two.models["slow"] = plan_model("slow", ModelConfig(path="slow.onnx", slo="p99=60ms"), "base=50ms,row=20ms")
    result = simulate(two)
    quick, slow = result.models["m"], result.models["slow"]
    assert quick.sent + slow.sent == result.sent
    assert quick.ok + slow.ok == result.ok
    assert quick.errors == {}
    assert slow.errors == result.errors
    assert slow.failed > 0
    assert quick.latency_ms["p50"] < slow.latency_ms["p50"]
    assert (quick.objective_ms, quick.in_time) == (1000.0, 1.0)
    assert slow.objective_ms == pytest.approx(60.0)
    assert slow.in_time is not None
    assert slow.in_time < 0.9
    assert simulate(scenario()).models == {}, "of one model all is said already"


def test_a_fault_is_told_with_what_it_did() -> None:
    fault = parse("slow:node=node-0,at=2,for=2,factor=20")
    (told,) = simulate(scenario(duration_s=6.0, faults=[fault], rate=20.0)).faults
    found = re.fullmatch(
        r"slow:node=node-0,at=2,for=2,factor=20: while it lasted, p99 (\d+) ms in the median second, 0 failures; "
        r"otherwise p99 ([\d.]+) ms in the median second, 0 failures",
        told,
    )
    assert found is not None, told
    assert float(found[1]) > 5 * float(found[2])


def test_models_get_their_shares_of_the_load() -> None:
    two = scenario(rate=2000.0)
    two.models["other"] = plan_model("other", ModelConfig(path="other.onnx", slo="p99=1s"), TIMES)
    two.models["m"].share = 3.0
    calls = list(make_calls(two))
    asked = Counter(call.model for call in calls)
    assert asked["m"] / asked["other"] == pytest.approx(3.0, rel=0.1)
    assert {(call.model, call.timeout_s) for call in calls} == {("m", inf), ("other", 1.0)}
    assert [call.due_at for call in calls] == [call.due_at for call in make_calls(scenario(rate=2000.0))]


def test_the_path_is_added_to_each_latency_and_to_nothing_else() -> None:
    near, far = simulate(scenario()), simulate(scenario(costs=LoopCosts(0.0, 0.0, 5.0)))
    assert far.latency_ms["mean"] == pytest.approx(near.latency_ms["mean"] + 5000.0)
    assert [second.sent for second in far.timeline][:5] == [second.sent for second in near.timeline][:5]
    assert sum(second.ok for second in far.timeline if second.at_s < 5.0) == 0
    assert far.batch_sizes == near.batch_sizes


@pytest.mark.parametrize("balancer", sorted(BALANCERS))
@pytest.mark.parametrize("nodes", [1, 3, MANY_NODES + 1])
def test_every_balancer_serves_any_number_of_nodes(balancer: str, nodes: int) -> None:
    result = simulate(
        scenario(rate=20.0 * nodes, balancer=balancer, nodes=nodes, duration_s=2.0 if nodes > MANY_NODES else 5.0)
    )
    assert result.ok == result.sent
    assert len(result.instances) == nodes
    used = sum(of_node["m-0"]["batches"] > 0 for of_node in result.instances.values())
    assert used >= nodes * 0.9 or balancer in ("peak-ewma", "fastest-response")  # these keep to the quick ones


def test_many_nodes_are_compared_two_at_a_time() -> None:
    def balancer(nodes: int) -> object:
        return build(scenario(nodes=nodes), Tally(0.0, 1.0))._balancer

    assert isinstance(balancer(MANY_NODES), LeastPeakEwma)
    assert isinstance(balancer(MANY_NODES + 1), PowerOfTwo)


def test_a_latency_aware_balancer_avoids_the_node_that_fails_at_once_and_one_that_counts_does_not() -> None:
    shares = {}
    for balancer in ("peak-ewma", "least-connections"):
        failing = scenario(rate=400.0, nodes=4, balancer=balancer, faults=[parse("fail:node=node-1,at=1")])
        shares[balancer] = simulate(failing).failed / simulate(failing).sent
    assert shares["least-connections"] > 0.25, "the sinkhole: whoever fails quickly has least in flight"
    assert shares["peak-ewma"] < 0.10


def test_faults_are_checked_against_the_fleet() -> None:
    with pytest.raises(FaultError, match="no node 'node-7'"):
        simulate(scenario(faults=[parse("die:node=node-7")]))


def test_one_seed_gives_one_result_and_another_another() -> None:
    def run(seed: int) -> bytes:
        noisy = scenario(service=f"{TIMES},cv=0.5", seed=seed)
        result = simulate(noisy)
        result.setup = {}
        return msgspec.json.encode(result)

    assert run(1) == run(1)
    assert run(1) != run(2), "the same arrivals, other service times"


def test_no_two_nodes_draw_the_same_service_times() -> None:
    nodes = build(scenario(service=f"{TIMES},cv=0.5", nodes=3), Tally(0.0, 1.0)).nodes.values()
    assert len({node.models["m"].instances["m-0"].times.draw(1) for node in nodes}) == 3


def test_uniform_numbers_are_endless_and_seeded() -> None:
    first = [number for number, _ in zip(uniform(1), range(10_000), strict=False)]
    assert first == [number for number, _ in zip(uniform(1), range(10_000), strict=False)]
    assert 0.0 <= min(first) <= max(first) < 1.0


def test_ctrl_c_ends_a_run_early_and_keeps_what_there_is() -> None:
    def interrupt(seconds: float) -> None:
        if seconds > 5.0:
            raise KeyboardInterrupt

    result = simulate(scenario(rate=1000.0, duration_s=1000.0), interrupt)
    assert result.interrupted
    assert 5.0 < result.duration_s < 15.0
    assert result.sent == pytest.approx(1000.0 * result.duration_s, rel=0.05)
    assert 0.9 < result.ok / result.sent <= 1.0
    assert 0.0 < result.instances["node-0"]["m-0"]["utilisation"] <= 1.0 + 1e-9


# Service times of a model


def test_a_described_line_calibrates_the_lane_as_warm_up_would() -> None:
    plan = plan_model("m", ModelConfig(path="m.onnx", instances=2), TIMES).plan
    assert plan.prior == [(1, pytest.approx(0.0105)), (64, pytest.approx(0.042))]
    assert (plan.inline, plan.instances) == (False, ["m-0", "m-1"])
    assert plan_model("m", ModelConfig(path="m.onnx"), "base=50us").plan.inline


def test_without_a_description_the_model_itself_is_measured() -> None:
    model = plan_model("m", ModelConfig(path="sleep:base=2ms,row=0.1ms"))
    assert model.service.startswith("calibrated here at ")
    assert model.times(0).mean(1) >= 0.0021
    assert model.times(0).draw(1)[0] >= 0.0021


@pytest.mark.parametrize(
    ("service", "clue"),
    [
        ("10ms", "there is no such event log; write times like base=10ms"),
        ("nowhere.dlog", "there is no such event log"),
        ("base=10", "base=10 is not understood; write it like base=10ms"),
        ("base=10ms,slope=1ms", "no option 'slope'"),
        ("base=10ms,", "no option ''"),
        ("cv=0.1", "base or row must be above 0"),
        ("base=10ms,cv=-1", "cv between 0 and 100"),
        ("base=10ms,cv=nan", "cv between 0 and 100"),
        ("base=10ms,cv=1e200", "cv between 0 and 100"),
        ("base=10ms,cv=much", "cv=much is not understood"),
        ("base=" + "9" * 400 + "s", "s is not understood; write it like base=10ms"),
    ],
)
def test_service_times_that_make_no_sense_are_refused(service: str, clue: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_model("m", ModelConfig(path="m.onnx"), service)
    assert clue in str(caught.value)


def test_an_event_log_whose_name_has_an_equals_sign_is_an_event_log(tmp_path: Path) -> None:
    log = tmp_path / "run=3.dlog"
    log.write_text("dear diary")
    with pytest.raises(Exception, match="breaks off within its header"):
        plan_model("m", ModelConfig(path="m.onnx"), str(log))


@pytest.mark.parametrize(
    ("wide_s", "cores", "share"), [(0.5, 2, 1.0), (0.65, 2, 0.7), (1.2, 2, 0.0), (0.4, 4, 0.8), (inf, 4, None), (1.0, 1, None)]
)
def test_the_parallel_share_is_that_which_amdahl_finds_in_what_was_tried(
    monkeypatch: pytest.MonkeyPatch, wide_s: float, cores: int, share: float | None
) -> None:
    monkeypatch.setattr(run, "usable_cores", lambda: cores)
    found = Measured(narrow_s=1.0, narrow_cpu_s=1.0, slow_s=1.0, beside_s=1.0, wide_s=wide_s)
    assert run.parallel_share(found) == (None if share is None else pytest.approx(share))
