"""What a copy can do where, which placements break which rule, and how an impossible problem is named."""

import numpy as np
import pytest

from dlproxy.lab.tune.placement.problem import PlacementError, Problem
from dlproxy.policy.batching import SLO_SHARE
from tests.lab.tune.problems import GIB, model, node


def test_batch_is_the_largest_within_the_lanes_share_of_the_objective() -> None:
    problem = Problem([model(base_s=0.008, row_s=0.002, slo_s=0.1, max_batch=64)], [node(), node("quick", speed=2.0)])
    assert problem.batch.tolist() == [[19, 42]]
    for n, batch in enumerate(problem.batch[0]):
        assert (0.008 + 0.002 * batch) / problem.speed[0, n] <= SLO_SHARE * 0.1 < (0.010 + 0.002 * batch) / problem.speed[0, n]
    assert problem.rows_per_s[0] == pytest.approx([19 / 0.046, 42 * 2 / 0.092])


def test_usable_rate_is_the_target_share_and_never_more_than_the_demand() -> None:
    problem = Problem([model(rate=1e4), model("idle", rate=1.0)], [node()], utilisation=0.5)
    assert problem.usable[:, 0] == pytest.approx([0.5 * 19 / 0.046, 1.0])


def test_speed_of_a_pair_goes_before_the_accelerators_and_that_before_the_nodes() -> None:
    gpu = node("gpu", speed=2.0, accelerators=1, accelerator_speed=10.0)
    problem = Problem([model("a", accelerators=0.5), model("b")], [gpu, node("cpu")], speeds={("b", "cpu"): 3.0})
    assert problem.speed.tolist() == [[10.0, 1.0], [2.0, 3.0]]
    assert problem.takes[0, :, 2].tolist() == [500, 0]  # on a node without, a model that can do without takes none
    assert problem.most[0].tolist() == [2, 2]


def test_resources_are_whole_units_rounded_against_the_placement() -> None:
    problem = Problem([model(memory_bytes=GIB + 1, cores=0.1, most_copies=99)], [node(cores=0.3, memory_bytes=4 * GIB - 1)])
    assert problem.takes[0, 0].tolist() == [100, 1025, 0]
    assert problem.has[0].tolist() == [300, 4095, 0]
    assert problem.most.tolist() == [[3]]


@pytest.mark.parametrize(
    ("copies", "broken"),
    [
        ([[5, 0], [0, 0]], ["node n: copies take 5 cores, it has 4 cores", "model m: more than 2 copies"]),
        ([[1, 1], [0, 1]], []),
        ([[0, 0], [1, 0]], ["model gpu may not run 1 times on n"]),
        ([[-1, 0], [0, 0]], ["model m may not run -1 times on n"]),
        ([[0, 0], [0, 2]], ["node g: copies take 2 accelerators, it has 1 accelerators"]),
        ([[0, 0]], ["copies have the shape (1, 2), (2, 2) is right"]),
    ],
)
def test_every_broken_rule_is_named(copies: list[list[int]], broken: list[str]) -> None:
    both = [model(), model("gpu", accelerators=1.0, needs_accelerator=True)]
    problem = Problem(both, [node(), node("g", accelerators=1.0)])
    assert problem.violations(np.array(copies)) == broken


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"slo_s": 0.02}, "n: one row takes 10 ms, and 9.2 ms is what its objective leaves for a batch"),
        ({"cores": 5.0}, "n: a copy takes 5 cores, it has 4 cores"),
        ({"memory_bytes": 9 * GIB}, "n: a copy takes 9216 MiB, it has 8192 MiB"),
        ({"accelerators": 1.0, "needs_accelerator": True}, "n: has no accelerator"),
    ],
)
def test_model_that_fits_nowhere_is_named_with_the_reason(values: dict[str, object], reason: str) -> None:
    with pytest.raises(PlacementError) as raised:
        Problem([model("fine"), model("big", **values)], [node()])
    assert str(raised.value) == f"model big fits on no node: {reason}"


@pytest.mark.parametrize(
    ("models", "nodes", "options", "words"),
    [
        ([], [node()], {}, "there is no model"),
        ([model()], [], {}, "there is no node"),
        ([model(), model()], [node()], {}, "two models are called m"),
        ([model(rate=0.0)], [node()], {}, "model m: rate is 0, and must be above 0"),
        ([model(base_s=-1.0)], [node()], {}, "model m: base_s is -1, and must be 0 or more"),
        ([model(slo_s=float("nan"))], [node()], {}, "model m: slo_s is nan, and must be above 0"),
        ([model(needs_accelerator=True)], [node()], {}, "model m needs an accelerator: accelerators must be above 0"),
        ([model()], [node(speed=0.0)], {}, "node n: speed is 0, and must be above 0"),
        ([model()], [node()], {"utilisation": 1.0}, "utilisation 1 must be above 0 and below 1: at 1 queues have no end"),
        ([model()], [node()], {"speeds": {("m", "x"): 1.0}}, "speeds name ('m', 'x'): there is no such model and node"),
        ([model()], [node()], {"speeds": {("m", "n"): 0.0}}, "the speed 0 of model m on node n must be above 0"),
    ],
)
def test_nonsense_is_refused(models: list, nodes: list, options: dict, words: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(PlacementError) as raised:
        Problem(models, nodes, **options)
    assert str(raised.value) == words
