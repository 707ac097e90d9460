"""The fewest instances that a load needs: as counting them one by one finds them, and a word where no number helps."""

from pathlib import Path

import pytest
from msgspec import json, structs

from dlproxy.cli import main
from dlproxy.cli.terminal import OK
from dlproxy.config import ModelConfig
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.report import wording
from dlproxy.lab.simulate.capacity import SEEDS, Capacity, find_capacity
from dlproxy.lab.simulate.run import Scenario, plan_model, simulate
from dlproxy.lab.simulate.what_if import Change, Today, parse_change

NOTHING = Change("")


def today(service: str, rate: float, slo: str, *, max_batch: int = 16, duration_s: float = 1.5) -> Today:
    """Poisson arrivals at one instance of a model with these times."""
    model = plan_model("m", ModelConfig(path="m.onnx", slo=slo, max_batch=max_batch, instances=1), service)

    def at(times: float, seed: int, slo_s: object) -> Scenario:
        arrivals = make_arrivals("poisson", rate=rate * times, seed=seed)
        return Scenario(models={"m": model}, arrivals=arrivals, duration_s=duration_s, seed=seed)

    return Today(at, rate=rate, rows={"m": (1, 1)}, aims=True)


def one_by_one(load: Today, times: float) -> int:
    """The fewest instances, by trying every number from 1 on."""
    for instances in range(1, 100):
        change = parse_change(f"instances={instances},rate={times}x", ["m"])
        results = [simulate(load.scenario(change, seed)) for seed in range(SEEDS)]
        if sum(wording.in_time(result) or 0.0 for result in results) / SEEDS >= 0.99:
            return instances
    raise AssertionError("no number up to 99 was enough")


@pytest.mark.parametrize(
    ("service", "rate", "slo", "max_batch"),
    [
        ("base=10ms,row=0.5ms,cv=0.1", 500.0, "p99=50ms", 16),
        ("base=10ms,row=0.5ms,cv=0.1", 100.0, "p99=30ms", 1),
        ("base=2ms,row=2ms,cv=0.3", 300.0, "p99=40ms", 16),
        ("base=10ms", 1.0, "p99=200ms", 16),
    ],
)
def test_the_search_finds_what_counting_finds(service: str, rate: float, slo: str, max_batch: int) -> None:
    load = today(service, rate, slo, max_batch=max_batch)
    found = find_capacity(load, NOTHING, "3x", seed=0)
    assert found.instances == one_by_one(load, 3.0)
    tried = {step.instances: step for step in found.steps}
    assert tried[found.instances].passed
    assert found.instances == 1 or not tried[found.instances - 1].passed, "the one below was tried, too"
    assert found.rate_rps == pytest.approx(3 * rate)


def test_the_sentence_names_cores_instances_and_what_one_less_would_miss() -> None:
    found = find_capacity(today("base=10ms", 100.0, "p99=30ms", max_batch=1), NOTHING, "3x", seed=0)
    fewer = next(step for step in found.steps if step.instances == (found.instances or 0) - 1)
    count = found.instances
    assert found.sentence == (
        f"3x today's load (300 /s) at p99 = 30 ms needs {count} cores: {count} instances of 1 thread "
        f"({count - 1 if count else ''} would miss {wording.share(fewer.missed, 1.0)})"
    )
    by_rate = find_capacity(today("base=10ms", 100.0, "p99=30ms", max_batch=1), NOTHING, "300/s", seed=0)
    assert by_rate.instances == count
    assert by_rate.sentence.startswith("300 /s at p99 = 30 ms needs")


def test_instances_of_more_threads_take_their_cores() -> None:
    load = today("base=10ms", 100.0, "p99=30ms", max_batch=1)
    one, two = (find_capacity(load, parse_change(f"threads={threads}", ["m"]), "3x", seed=0) for threads in (1, 2))
    assert one.instances is not None
    assert two.instances is not None
    assert two.instances < one.instances, "each is quicker"
    assert f"needs {2 * two.instances} cores: {two.instances} instances of 2 threads" in two.sentence


def test_no_number_of_instances_makes_one_request_quicker() -> None:
    found = find_capacity(today("base=10ms,cv=0.1", 100.0, "p99=9ms"), NOTHING, "3x", seed=0)
    assert (found.instances, found.steps) == (None, [])
    assert found.nearest_ms == pytest.approx(12.6, rel=0.03), "10 ms and 2.33 deviations, log-normal"
    assert "no number of instances meets p99 = 9 ms" in found.sentence
    assert f"takes {wording.duration(found.nearest_ms)} at p99, which is the nearest objective" in found.sentence
    nearest = today("base=10ms,cv=0.1", 100.0, f"p99={found.nearest_ms * 1.2}ms")
    assert find_capacity(nearest, NOTHING, "3x", seed=0).instances is not None


def test_where_the_event_loop_is_what_holds_it_up_no_number_is_named() -> None:
    load = today("base=10ms", 100.0, "p99=50ms", duration_s=0.5)
    slow_loop = Today(
        lambda times, seed, slo_s: structs.replace(load.scenario(NOTHING, seed), costs=_slow(load)),
        rate=100.0,
        rows={"m": (1, 1)},
        aims=True,
    )
    found = find_capacity(slow_loop, NOTHING, "1x", seed=0)
    assert found.instances is None
    assert "even 256 instances miss" in found.sentence
    assert [step.instances for step in found.steps] == [1, 2, 4, 8, 16, 32, 64, 128, 256]


def _slow(load: Today) -> object:
    return structs.replace(load.base.costs, read_s=0.2)


def test_the_command_prints_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    model = ["m", "--service=m=base=10ms,row=0.5ms,cv=0.1", "--slo=p99=50ms", "--rate=300", "--duration=2"]
    assert main(["simulate", *model, "--capacity=3x", f"--json={out}"]) == OK
    said = capsys.readouterr().out
    found = json.decode(out.read_bytes(), type=Capacity)
    assert found.sentence[1:20] in said
    assert "too few" in said
    assert "enough" in said
    assert "cores of its own" in said
