"""The placement problem as a mixed-integer linear program, solved by HiGHS through scipy.optimize.milp (extra: tune).

Integer x[m,n]: copies. Continuous f[m,n,k]: the share of m's demand on piece k of its curve on n; u[m]: the share unserved.
Exact for the objectives of evaluate.py, whose curves are straight pieces. Not aware of: searches.
"""

from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlproxy.lab.tune.placement.evaluate import MeanResponse, Placement, Utilisation, evaluate
from dlproxy.lab.tune.placement.problem import Floats, Ints, PlacementError, Problem
from dlproxy.lab.tune.placement.search import Progress, Solution

GAP = 1e-4  # HiGHS's own default: the cost is proven to within a ten-thousandth
STATUS = {0: "optimal", 1: "time limit"}


class Rows:
    """Sparse rows a @ variables within [low, high], collected as triplets."""

    def __init__(self) -> None:
        self.entries: list[tuple[Ints, Ints, Floats]] = []
        self.low: list[Floats] = []
        self.high: list[Floats] = []
        self.count = 0

    def add(self, count: int, entries: list[tuple[Ints, Ints, Floats]], low: Floats | float, high: Floats | float) -> None:
        """`count` rows; entries are (row among them, variable, coefficient)."""
        self.entries += [(rows + self.count, columns, values) for rows, columns, values in entries]
        self.low.append(np.broadcast_to(low, count).astype(float))
        self.high.append(np.broadcast_to(high, count).astype(float))
        self.count += count


def solve_exactly(objective: MeanResponse | Utilisation, *, seconds: float = 60.0, gap: float = GAP) -> Solution:
    """The best placement, or after `seconds` the best found and how far from the best it may be (`bound`).

    Raises PlacementError without scipy, and if HiGHS gives up (it never should: to serve nothing is allowed).
    """
    began_at = perf_counter()
    problem = objective.problem
    pairs = np.argwhere(problem.most > 0)
    rows = Rows()
    costs = _response(objective, pairs, rows) if isinstance(objective, MeanResponse) else _utilisation(objective, pairs, rows)
    _resources(problem, pairs, rows)
    size, copies = len(costs), len(pairs)
    unit = float(np.abs(costs).max())
    upper = np.ones(size)
    upper[:copies] = problem.most[tuple(pairs.T)]
    result = program(costs / unit, rows, whole=np.arange(size) < copies, upper=upper, seconds=seconds, gap=gap)
    placed = np.zeros_like(problem.most)
    if result.x is not None:
        placed[tuple(pairs.T)] = np.rint(result.x[:copies]).astype(np.int64)
    elif result.status not in STATUS:
        raise PlacementError(f"HiGHS gave up: {result.message}")
    dual = None if result.mip_dual_bound is None else float(result.mip_dual_bound) * unit
    took_s = perf_counter() - began_at
    placement = Placement(placed, evaluate(objective, placed))
    bound = max(objective.floor(), -np.inf if dual is None else dual)
    status = STATUS.get(result.status, "time limit")
    return Solution("exact", placement, bound, status, took_s, history=[Progress(0, took_s, placement.evaluation.cost)])


def program(costs: Floats, rows: Rows, *, whole: NDArray[np.bool_], upper: Floats, seconds: float, gap: float) -> Any:
    """Minimise costs @ variables, each within 0 and `upper`, those that are `whole` in whole numbers: what milp returns.

    Raises PlacementError without scipy.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array
    except ImportError:
        raise PlacementError("the exact solver needs scipy: pip install 'dlproxy[tune]'") from None
    row, column, value = (np.concatenate(part) for part in zip(*rows.entries, strict=True))
    matrix = csr_array((value, (row, column)), shape=(rows.count, len(costs)))
    return milp(
        costs,
        integrality=whole,
        bounds=Bounds(0.0, upper),
        constraints=LinearConstraint(matrix, np.concatenate(rows.low), np.concatenate(rows.high)),
        options={"time_limit": seconds, "mip_rel_gap": gap},
    )


def _response(objective: MeanResponse, pairs: Ints, rows: Rows) -> Floats:
    """sum_k f + u = 1 for each model, and f[m,n,k] <= width / rate * x[m,n]: convexity fills the pieces in their order."""
    problem, copies = objective.problem, len(pairs)
    at = np.full(problem.most.shape, -1)
    at[tuple(pairs.T)] = np.arange(copies)
    sizes = [pieces.node.size for pieces in objective.pieces]
    flows = sum(sizes)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    node, width, slope = (np.concatenate(part) for part in zip(*objective.pieces, strict=True))
    models, number = np.arange(len(sizes)), np.arange(flows)
    flow, unserved = copies + number, copies + flows + models
    rows.add(len(sizes), [(owner, flow, np.ones(flows)), (models, unserved, np.ones(len(sizes)))], 1.0, 1.0)
    widths = width / problem.rate[owner]
    rows.add(flows, [(number, flow, np.ones(flows)), (number, at[owner, node], -widths)], -np.inf, 0.0)
    share = problem.rate / objective.total
    return np.concatenate((np.zeros(copies), share[owner] * slope, share * objective.unserved_s))


def _utilisation(objective: Utilisation, pairs: Ints, rows: Rows) -> Floats:
    """sum_n usable / rate * x[m,n] + u >= 1 for each model."""
    problem, copies = objective.problem, len(pairs)
    models, (m, n) = np.arange(len(problem.models)), pairs.T
    shares = problem.usable[m, n] / problem.rate[m]
    unserved = (models, copies + models, np.ones(len(models)))
    rows.add(len(models), [(m, np.arange(copies), shares), unserved], 1.0, np.inf)
    return np.concatenate((objective.core_share[m, n], objective.unserved_cost * problem.rate))


def _resources(problem: Problem, pairs: Ints, rows: Rows) -> None:
    """sum_m takes * x <= has on each node, in whole numbers that are as small as can be, and most copies of each model."""
    (m, n), copies = pairs.T, np.arange(len(pairs))
    rows.add(len(problem.models), [(m, copies, np.ones(len(copies)))], 0.0, problem.most_copies.astype(float))
    for r in range(problem.has.shape[1]):
        divisor = np.ones(len(problem.nodes), dtype=np.int64)
        for one in range(len(problem.nodes)):
            divisor[one] = max(1, int(np.gcd.reduce(problem.takes[:, one, r])))
        takes = problem.takes[m, n, r] // divisor[n]
        rows.add(len(problem.nodes), [(n, copies, takes.astype(float))], 0.0, (problem.has[:, r] // divisor).astype(float))
