"""What a placement is worth, by one rule for every solver: the objectives, and a placement's figures.

Called by the solvers beside it and by whoever reads their results. Not aware of: how a placement was found.
"""

from abc import abstractmethod
from typing import NamedTuple, Protocol

import numpy as np
from msgspec import Struct

from dlproxy.lab.tune.placement.delay import Curve, curve
from dlproxy.lab.tune.placement.problem import Floats, Ints, Problem

UNSERVED_SLOS = 10.0  # a row that nobody serves counts as one answered after ten times its objective
UNSERVED_WEIGHT = 100.0  # to leave one percent of the demand unserved costs as much as all the cores there are


class Pieces(NamedTuple):
    """The straight pieces of one model's curves on all nodes, cheapest first: where, how wide per copy, what a row/s costs."""

    node: Ints
    widths: Floats
    slopes: Floats


class Objective(Protocol):
    """What is minimised: the sum over the models of `cost(m, copies of m per node)`, of which each depends on nothing else."""

    name: str
    problem: Problem
    spreads: bool  # whether spare resources are worth filling with copies

    @abstractmethod
    def cost(self, m: int, row: Ints) -> float: ...

    @abstractmethod
    def worth(self) -> Floats:
        """(m, n): how much a copy there promises; what searches draw by. 0 where none may stand."""
        ...

    @abstractmethod
    def floor(self) -> float:
        """No placement costs less: what MILP's bound is compared with."""
        ...


class MeanResponse:
    """Seconds from arrival to answer of the mean row, when rows are routed as well as can be.

    For each model: minimise sum_n x[n] * G_n(y[n] / x[n]) + UNSERVED_SLOS * SLO * unserved with sum_n y[n] + unserved = rate,
    where y[n] are the rows/s of node n and G_n is its curve. G_n is convex, so filling the cheapest pieces first is optimal.
    """

    name = "response"
    spreads = True

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.total = float(problem.rate.sum())
        self.unserved_s: Floats = np.array([UNSERVED_SLOS * model.slo_s for model in problem.models])
        self.pieces = [self._pieces(m) for m in range(len(problem.models))]

    def cost(self, m: int, row: Ints) -> float:
        pieces, rate = self.pieces[m], float(self.problem.rate[m])
        filled = np.minimum(np.cumsum(row[pieces.node] * pieces.widths), rate)
        served = float(filled[-1])
        filled[1:] -= filled[:-1].copy()
        return (float(pieces.slopes @ filled) + float(self.unserved_s[m]) * (rate - served)) / self.total

    def route(self, m: int, row: Ints) -> Floats:
        """(n): rows/s of the model that each node serves."""
        pieces = self.pieces[m]
        filled = np.minimum(np.cumsum(row[pieces.node] * pieces.widths), self.problem.rate[m])
        served: Floats = np.bincount(
            pieces.node, weights=np.diff(filled, prepend=0.0), minlength=len(self.problem.nodes)
        ).astype(float)
        return served

    def worth(self) -> Floats:
        fastest = np.full_like(self.problem.usable, np.inf)
        for m, pieces in enumerate(self.pieces):
            np.minimum.at(fastest[m], pieces.node, pieces.slopes)
        return np.where(self.problem.most > 0, self.problem.usable / fastest, 0.0)

    def floor(self) -> float:
        return float(self.problem.rate @ np.array([pieces.slopes[0] for pieces in self.pieces])) / self.total

    def _pieces(self, m: int) -> Pieces:
        """A row never costs more than one that is not served: a copy near its limit is no worse than none."""
        problem, model = self.problem, self.problem.models[m]
        known: dict[float, Curve] = {}
        nodes, widths, slopes = [], [], []
        for n in np.flatnonzero(problem.most[m]):
            speed = float(problem.speed[m, n])
            if speed not in known:
                base_s, row_s, limit = model.base_s / speed, model.row_s / speed, int(problem.batch[m, n])
                known[speed] = curve(float(problem.usable[m, n]), base_s=base_s, row_s=row_s, limit=limit)
            nodes.append(np.full(known[speed].widths.size, n))
            widths.append(known[speed].widths)
            slopes.append(known[speed].slopes)
        node, width, slope = np.concatenate(nodes), np.concatenate(widths), np.concatenate(slopes)
        order = np.argsort(slope, kind="stable")
        return Pieces(node[order], width[order], np.minimum(slope[order], self.unserved_s[m]))


class Utilisation:
    """The share of demand not served, weighed with UNSERVED_WEIGHT, plus the share of all cores that copies hold.

    Served demand needs its seconds of service whoever holds the cores, so the fewest cores are the best used.
    """

    name = "utilisation"
    spreads = False

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.core_share: Floats = problem.takes[:, :, 0] / problem.has[:, 0].sum()
        self.unserved_cost: Floats = UNSERVED_WEIGHT / problem.rate.sum() * np.ones(len(problem.models))

    def cost(self, m: int, row: Ints) -> float:
        problem = self.problem
        unserved = max(0.0, float(problem.rate[m]) - float(problem.usable[m] @ row))
        return float(self.unserved_cost[m]) * unserved + float(self.core_share[m] @ row)

    def worth(self) -> Floats:
        return np.where(self.problem.most > 0, self.problem.usable / self.core_share, 0.0)

    def floor(self) -> float:
        return 0.0


class Evaluation(Struct):
    """A placement's figures. `cost` is the objective's; `response_s` of the mean row, unserved rows at their penalty.

    `rows_per_s` (m, n): the routing. `unserved` (m): rows/s that no copy takes. `utilisation`: of the rows/s of all copies, the
    part in use, weighed by cores. `violations`: what the placement breaks; with any of them it cannot be carried out.
    """

    cost: float
    response_s: float
    rows_per_s: Floats
    unserved: Floats
    served_share: float
    cores_share: float
    utilisation: float
    violations: list[str]


class Placement(Struct):
    """Copies (m, n) of each model on each node, and what they are worth."""

    copies: Ints
    evaluation: Evaluation

    def missing(self, problem: Problem) -> list[str]:
        """The demand that is not served, model by model, in words; empty if all is."""
        unserved = self.evaluation.unserved
        return [
            f"model {model.name}: {unserved[m]:.4g} of {model.rate:.4g} rows/s find no copy"
            for m, model in enumerate(problem.models)
            if unserved[m] > 1e-9 * model.rate
        ]


def evaluate(objective: Objective, copies: Ints) -> Evaluation:
    """Judge a placement. Rows are routed for the least response whatever the objective."""
    problem = objective.problem
    if copies.shape != problem.most.shape:
        raise ValueError(problem.violations(copies)[0])
    response = objective if isinstance(objective, MeanResponse) else MeanResponse(problem)
    models = range(len(problem.models))
    flow = np.array([response.route(m, copies[m]) for m in models])
    cores = problem.takes[:, :, 0] * copies
    busy = np.divide(flow, problem.rows_per_s, out=np.zeros_like(flow), where=problem.rows_per_s > 0) * problem.takes[:, :, 0]
    served = flow.sum(axis=1)
    return Evaluation(
        cost=sum(objective.cost(m, copies[m]) for m in models),
        response_s=sum(response.cost(m, copies[m]) for m in models),
        rows_per_s=flow,
        unserved=np.maximum(problem.rate - served, 0.0),
        served_share=float(served.sum() / problem.rate.sum()),
        cores_share=float(cores.sum() / problem.has[:, 0].sum()),
        utilisation=float(busy.sum() / cores.sum()) if cores.any() else 0.0,
        violations=problem.violations(copies),
    )
