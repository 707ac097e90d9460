"""Every solver against every constraint, the exact one against brute force, and the searches against the exact one."""

import itertools
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.lab.tune.placement.annealing import anneal
from dlproxy.lab.tune.placement.ants import send_ants
from dlproxy.lab.tune.placement.evaluate import MeanResponse, Objective, Utilisation, evaluate
from dlproxy.lab.tune.placement.exact import solve_exactly
from dlproxy.lab.tune.placement.first_fit import first_fit
from dlproxy.lab.tune.placement.genetic import evolve
from dlproxy.lab.tune.placement.problem import Ints, PlacementError, Problem
from dlproxy.lab.tune.placement.search import Budget, Solution
from tests.lab.tune.problems import GIB, enlarged, model, node, problems

Solver = Callable[[Objective], Solution]
SMALL = Budget(evaluations=400)
GAP = 1e-7
ROUNDING = 1e-6  # to which HiGHS holds constraints, and its absolute gap (mip_abs_gap, which scipy lets nobody change)
SEARCHES: dict[str, Solver] = {
    "first fit": first_fit,
    "annealing": lambda objective: anneal(objective, SMALL, seed=3),
    "genetic": lambda objective: evolve(objective, SMALL, seed=3),
    "ants": lambda objective: send_ants(objective, SMALL, seed=3),
}
SOLVERS: dict[str, Solver] = {**SEARCHES, "exact": solve_exactly}
objectives = pytest.mark.parametrize("make", [MeanResponse, Utilisation])


def brute_force(objective: Objective) -> float:
    """The least cost of all placements that keep the constraints."""
    problem, best = objective.problem, np.inf
    rows: list[list[tuple[Ints, float]]] = []
    for m, most in enumerate(problem.most):
        possible = (np.array(row) for row in itertools.product(*(range(count + 1) for count in most)))
        rows.append([(row, objective.cost(m, row)) for row in possible if row.sum() <= problem.most_copies[m]])
    for chosen in itertools.product(*rows):
        cost = sum(cost for _, cost in chosen)
        if cost < best and not problem.violations(np.array([row for row, _ in chosen])):
            best = cost
    return float(best)


@objectives
@settings(max_examples=20, deadline=None)
@given(problem=problems())
def test_exact_is_the_best_of_all_placements(make: type, problem: Problem) -> None:
    objective = make(problem)
    solution = solve_exactly(objective, gap=GAP)
    assert solution.status == "optimal"
    best = brute_force(objective)
    assert solution.placement.evaluation.cost == pytest.approx(best, rel=ROUNDING, abs=ROUNDING)
    assert solution.bound <= best * (1 + ROUNDING)
    assert objective.floor() <= best * (1 + ROUNDING)


@objectives
@settings(max_examples=12, deadline=None)
@given(problem=problems(most_models=5, most_nodes=4))
def test_every_solver_keeps_every_constraint_and_none_beats_the_bound(make: type, problem: Problem) -> None:
    objective = make(problem)
    exact = solve_exactly(objective, gap=GAP)
    baseline = first_fit(objective).placement.evaluation.cost
    for name, solver in SOLVERS.items():
        solution = solver(objective)
        evaluation = solution.placement.evaluation
        assert problem.violations(solution.placement.copies) == [], name
        assert evaluation.cost >= exact.bound * (1 - ROUNDING), name
        assert evaluation.cost <= baseline * (1 + ROUNDING) or name == "exact"
        served = evaluation.rows_per_s.sum(axis=1)
        assert served + evaluation.unserved == pytest.approx(problem.rate)
        assert (evaluation.rows_per_s <= problem.usable * solution.placement.copies * (1 + 1e-9)).all(), name


@objectives
@settings(max_examples=15, deadline=None)
@given(problem=problems(), cores=st.integers(0, 3), gib=st.integers(0, 4), copies=st.integers(0, 2))
def test_more_resources_never_make_the_optimum_worse(make: type, problem: Problem, cores: int, gib: int, copies: int) -> None:
    before = solve_exactly(make(problem), gap=GAP).placement.evaluation.cost
    after = solve_exactly(make(enlarged(problem, cores=cores, gib=gib, copies=copies)), gap=GAP).placement.evaluation.cost
    assert after <= before * (1 + ROUNDING)


def fleet() -> Problem:
    """Eight models that crowd four nodes, one of them with two accelerators."""
    crowd = [
        model(
            f"m{m}",
            rate=60.0 * (m + 1),
            base_s=0.001 * (m + 1),
            memory_bytes=(1 + m % 3) * GIB,
            most_copies=4,
            accelerators=0.5,
        )
        for m in range(8)
    ]
    nodes = [node(f"n{n}", cores=5.0, memory_bytes=10 * GIB, speed=(0.8, 1.0, 1.25)[n]) for n in range(3)]
    return Problem(crowd, [*nodes, node("gpu", accelerators=2.0, accelerator_speed=5.0)])


@objectives
@pytest.mark.parametrize("name", SOLVERS)
def test_same_seed_gives_the_same_placement(make: type, name: str) -> None:
    first, second = (SOLVERS[name](make(fleet())) for _ in range(2))
    assert (first.placement.copies == second.placement.copies).all()
    assert [(step.evaluations, step.cost) for step in first.history][:-1] == [
        (step.evaluations, step.cost) for step in second.history
    ][:-1]


@objectives
@pytest.mark.parametrize("search", [anneal, evolve, send_ants])
def test_searches_keep_their_budget_and_only_get_better(make: type, search: Callable[..., Solution]) -> None:
    objective = make(fleet())
    best = solve_exactly(objective).bound
    solutions = []
    for evaluations in (300, 3000):
        solution = search(objective, Budget(evaluations=evaluations), seed=1)
        history = [step.cost for step in solution.history]
        assert history == sorted(history, reverse=True)
        assert history[-1] == pytest.approx(solution.placement.evaluation.cost)
        assert evaluations <= solution.evaluations < evaluations + 400  # one placement is built to its end
        solutions.append(solution)
    brief, long = (solution.placement.evaluation.cost for solution in solutions)
    assert long <= brief
    assert long <= 1.25 * best
    assert search(objective, Budget(evaluations=300), seed=2).history != solutions[0].history


@pytest.mark.parametrize("name", SOLVERS)
def test_demand_that_nobody_can_serve_is_reported(name: str) -> None:
    objective = MeanResponse(Problem([model("hot", rate=5000.0), model("cool", rate=10.0)], [node()]))
    placement = SOLVERS[name](objective).placement
    assert placement.missing(objective.problem) == ["model hot: 4422 of 5000 rows/s find no copy"]
    assert placement.evaluation.served_share == pytest.approx(588.26 / 5010, rel=1e-3)


def test_response_counts_unserved_rows_at_ten_objectives() -> None:
    objective = MeanResponse(Problem([model(rate=50.0), model("other", rate=150.0, slo_s=0.2)], [node()]))
    nothing = evaluate(objective, np.zeros((2, 1), dtype=np.int64))
    assert nothing.cost == pytest.approx(0.25 * 10 * 0.1 + 0.75 * 10 * 0.2)
    assert nothing.served_share == nothing.utilisation == 0.0


def test_utilisation_is_served_work_over_held_cores() -> None:
    problem = Problem([model(rate=100.0)], [node()])
    held = evaluate(Utilisation(problem), np.array([[2]]))
    assert held.cost == pytest.approx(2 / 4)
    assert held.utilisation == pytest.approx(100.0 / (2 * 19 / 0.046))


def test_placement_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"copies have the shape \(2, 2\), \(1, 1\) is right"):
        evaluate(Utilisation(Problem([model()], [node()])), np.zeros((2, 2), dtype=np.int64))


def test_exact_without_time_still_gives_a_placement_and_a_bound() -> None:
    objective = MeanResponse(fleet())
    solution = solve_exactly(objective, seconds=0.0)
    assert solution.status == "time limit"
    assert solution.placement.evaluation.violations == []
    assert objective.floor() <= solution.bound <= solve_exactly(objective).placement.evaluation.cost


def test_exact_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(PlacementError, match="needs scipy: pip install"):
        solve_exactly(MeanResponse(fleet()))
