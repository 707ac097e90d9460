"""Which layouts and values are tried, and what sorts before what."""

from pathlib import Path

import msgspec
import pytest

from dlproxy.config import ModelConfig
from dlproxy.config.effects import check
from dlproxy.instance.runtime import ModelError
from dlproxy.lab.tune.search.problem import (
    Layout,
    Outcome,
    Point,
    TuneError,
    better_first,
    layouts,
    make_space,
    objective_of,
)
from tests.lab.tune.search.fixtures import ONE, TWO, problem
from tests.models import DType, identity, save

SLEEP = "sleep:base=1ms,row=1ms"


def _names(config: ModelConfig, cores: int) -> list[str]:
    return [str(layout) for layout in layouts(config, cores)]


def test_an_onnx_model_is_tried_in_every_way_that_fits_the_cores(tmp_path: Path) -> None:
    config = ModelConfig(path=str(save(identity(DType.FP32), tmp_path / "m.onnx")))
    assert _names(config, 2) == [
        *("inline", "1 thread", "1 thread of 2 threads", "2 threads"),
        *("1 process", "1 process of 2 threads", "2 processes"),
    ]
    assert all(layout.cores <= 6 for layout in layouts(config, 6))
    assert Layout("thread", 6, 1) in layouts(config, 6)


def test_python_runs_in_processes_and_a_model_without_threads_has_one_each(tmp_path: Path) -> None:
    assert {layout.run for layout in layouts(ModelConfig(path="my_module:MyModel"), 4)} == {"process"}
    assert {layout.threads for layout in layouts(ModelConfig(path=SLEEP), 4)} == {1}


def test_what_the_configuration_says_is_not_turned() -> None:
    assert layouts(ModelConfig(path=SLEEP, run="thread", instances=3, threads=2), 2) == [Layout("thread", 3, 2)]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (ModelConfig(path="http://host:8000/m"), "another server"),
        (ModelConfig(path=SLEEP, autoscale="in-flight"), "autoscale"),
    ],
)
def test_what_cannot_be_tuned_is_refused(config: ModelConfig, said: str) -> None:
    with pytest.raises(TuneError, match=said):
        layouts(config, 2)


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match=r"nowhere\.onnx"):
        layouts(ModelConfig(path="nowhere.onnx"), 2)


def test_points_are_different_and_can_be_configured() -> None:
    space = make_space(problem(), [ONE, TWO, Layout("inline", 1, 1)], batched=True)
    points = list(space.points())
    assert len(points) == len(set(points))
    for point in points:
        check(point.on(problem().config))
        assert not (point.hedge and point.layout.instances == 1)
    assert {space.point(**arguments).layout for arguments in space.defaults()} == set(space.layouts)


def test_neighbours_are_points_too_and_each_other_s() -> None:
    space = make_space(problem(), [ONE, TWO], batched=True)
    points = set(space.points())
    for point in list(points)[::7]:
        near = list(space.neighbours(point))
        assert near
        assert points.issuperset(near)
        assert all(point in space.neighbours(other) for other in near if min(other.max_batch, point.max_batch) > 1)


def test_no_batch_exceeds_the_configured_one() -> None:
    small = msgspec.structs.replace(problem(), config=ModelConfig(path=SLEEP, max_batch=6))
    assert make_space(small, [ONE], batched=True).batches == (1, 2, 4, 6)
    assert make_space(small, [ONE], batched=False).batches == (1,)


def test_the_objective_comes_first_then_goodput_cores_and_latency() -> None:
    found = {
        Point(TWO, 8): Outcome(100.0, 1.0, 0.010),
        Point(ONE, 8): Outcome(100.0, 0.995, 0.030),
        Point(ONE, 4): Outcome(100.0, 0.995, 0.020),
        Point(ONE, 2): Outcome(100.0, 0.95, 0.001),
        Point(ONE, 1): Outcome(100.0, 1.0, 0.051),
    }
    ranked = sorted(found, key=lambda point: better_first(point, found[point], 0.05, 100.0))
    assert ranked == [Point(ONE, 4), Point(ONE, 8), Point(TWO, 8), Point(ONE, 1), Point(ONE, 2)]


def test_an_objective_is_needed() -> None:
    with pytest.raises(TuneError, match="--slo p99=20ms"):
        objective_of(ModelConfig(path=SLEEP))
