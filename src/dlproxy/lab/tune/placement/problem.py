"""The placement problem: models with a demand and an objective, nodes with resources, and what a copy can do where.

How many copies x[m,n] of model m run on node n, such that sum_m takes[m,n] * x[m,n] <= has[n] in cores, memory and
accelerators, and a copy stands only where a batch meets its deadline. Called by the solvers beside it and their callers.
Not aware of: how a placement is valued (evaluate.py) or found.
"""

from collections.abc import Mapping, Sequence
from math import floor, isfinite

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.policy.batching import SLO_SHARE
from dlproxy.policy.cost import LatencyModel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESOURCES = ("cores", "memory", "accelerators")
PARTS = 1000  # cores and accelerators are counted in thousandths, as Kubernetes counts CPUs
MEMORY_UNIT = 1 << 20  # bytes: memory is counted in MiB; what a copy takes is rounded up, what a node has is rounded down
TARGET_UTILISATION = 0.7  # of a copy's rows/s are planned for, as Knative plans for 70 % of a container's concurrency


class PlacementError(ValueError):
    """The problem cannot be posed: a value makes no sense, or a model fits on no node."""


class Model(Struct, kw_only=True, frozen=True):
    """A model: `rate` rows/s of demand, L(b) = base_s + row_s * b seconds for a batch of b rows at speed 1, and its needs.

    One copy takes `cores` and `memory_bytes`; on a node with accelerators also `accelerators` of them (0.5: two copies share
    one), unless that is 0. `needs_accelerator`: it does not run on a node without.
    """

    name: str
    rate: float
    base_s: float
    row_s: float
    slo_s: float
    memory_bytes: int
    most_copies: int
    cores: float = 1.0
    accelerators: float = 0.0
    needs_accelerator: bool = False
    max_batch: int = 64


class Node(Struct, kw_only=True, frozen=True):
    """A node: what it has, and how many times as quick as the node on which L(b) was fitted.

    `accelerator_speed` holds for the models that use its accelerators.
    """

    name: str
    cores: float
    memory_bytes: int
    speed: float = 1.0
    accelerators: float = 0.0
    accelerator_speed: float = 1.0


class Problem:
    """Models and nodes as arrays, m models by n nodes. Raises PlacementError, which names the model or node.

    `speeds[model, node]` replaces a node's speed for one model. A copy is loaded with at most `utilisation` of its rows/s.
    Arrays: `speed`, `batch` (rows of the largest batch with L(b) / speed <= SLO_SHARE * SLO, 0: none), `rows_per_s` (of a
    copy with such batches), `usable` (the rows/s that are planned for, at most the model's rate), `most` (copies that fit
    there), all (m, n); `takes` (m, n, resource) and `has` (n, resource) in whole units; `rate`, `most_copies` (m).
    """

    def __init__(
        self,
        models: Sequence[Model],
        nodes: Sequence[Node],
        *,
        speeds: Mapping[tuple[str, str], float] | None = None,
        utilisation: float = TARGET_UTILISATION,
    ) -> None:
        _check(models, nodes, speeds or {}, utilisation)
        self.models, self.nodes, self.utilisation = tuple(models), tuple(nodes), utilisation
        self.rate: Floats = np.array([model.rate for model in models], dtype=float)
        self.most_copies: Ints = np.array([model.most_copies for model in models], dtype=np.int64)
        self.has: Ints = np.array([_supply(node) for node in nodes], dtype=np.int64)
        self.takes: Ints = np.array([[_demand(model, node) for node in nodes] for model in models], dtype=np.int64)
        self.speed: Floats = np.array([[_speed(model, node, speeds or {}) for node in nodes] for model in models])
        self.batch: Ints = np.array([[_batch(m, speed) for speed in row] for m, row in zip(models, self.speed, strict=True)])
        base_s = np.array([[model.base_s] for model in models])
        row_s = np.array([[model.row_s] for model in models])
        self.rows_per_s: Floats = self.speed * self.batch / (base_s + row_s * np.maximum(self.batch, 1))
        self.usable: Floats = np.minimum(utilisation * self.rows_per_s, self.rate[:, None])
        fitting = np.where(self.takes > 0, self.has // np.maximum(self.takes, 1), self.most_copies[:, None, None]).min(axis=2)
        self.most: Ints = np.where(self.allowed, np.minimum(fitting, self.most_copies[:, None]), 0)
        for m, model in enumerate(models):
            if not self.most[m].any():
                raise PlacementError(f"model {model.name} fits on no node: {self._why(m)}")

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """(m, n): a batch meets its deadline there, and an accelerator is there if one is needed."""
        lacking = [[model.needs_accelerator and not node.accelerators for node in self.nodes] for model in self.models]
        allowed: NDArray[np.bool_] = (self.batch > 0) & ~np.array(lacking)
        return allowed

    def violations(self, copies: Ints) -> list[str]:
        """What a placement breaks, in words; empty if it may be carried out."""
        if copies.shape != self.most.shape:
            return [f"copies have the shape {copies.shape}, {self.most.shape} is right"]
        used = np.einsum("mnr,mn->nr", self.takes, copies)
        found = [
            f"node {self.nodes[n].name}: copies take {_words(used[n, r], r)}, it has {_words(self.has[n, r], r)}"
            for n, r in np.argwhere(used > self.has)
        ]
        too_many = np.flatnonzero(copies.sum(axis=1) > self.most_copies)
        found += [f"model {self.models[m].name}: more than {self.most_copies[m]} copies" for m in too_many]
        forbidden = np.argwhere((copies < 0) | ((copies > 0) & ~self.allowed))
        found += [f"model {self.models[m].name} may not run {copies[m, n]} times on {self.nodes[n].name}" for m, n in forbidden]
        return found

    def _why(self, m: int) -> str:
        return "; ".join(f"{node.name}: {self._obstacle(m, n)}" for n, node in enumerate(self.nodes))

    def _obstacle(self, m: int, n: int) -> str:
        model, node = self.models[m], self.nodes[n]
        if model.needs_accelerator and not node.accelerators:
            return "has no accelerator"
        if not self.batch[m, n]:
            takes_s, may_s = (model.base_s + model.row_s) / self.speed[m, n], SLO_SHARE * model.slo_s
            return f"one row takes {takes_s * 1e3:.4g} ms, and {may_s * 1e3:.4g} ms is what its objective leaves for a batch"
        short = [
            f"a copy takes {_words(takes, r)}, it has {_words(has, r)}"
            for r, (takes, has) in enumerate(zip(self.takes[m, n], self.has[n], strict=True))
            if takes > has
        ]
        return " and ".join(short)


def _words(units: int, resource: int) -> str:
    return f"{units} MiB" if RESOURCES[resource] == "memory" else f"{units / PARTS:g} {RESOURCES[resource]}"


def _supply(node: Node) -> tuple[int, int, int]:
    return _parts(node.cores), node.memory_bytes // MEMORY_UNIT, _parts(node.accelerators)


def _demand(model: Model, node: Node) -> tuple[int, int, int]:
    accelerators = model.accelerators if node.accelerators else 0.0
    return _parts(model.cores), -(-model.memory_bytes // MEMORY_UNIT), _parts(accelerators)


def _parts(number: float) -> int:
    return floor(number * PARTS + 0.5)


def _speed(model: Model, node: Node, speeds: Mapping[tuple[str, str], float]) -> float:
    usual = node.accelerator_speed if node.accelerators and model.accelerators else node.speed
    return speeds.get((model.name, node.name), usual)


def _batch(model: Model, speed: float) -> int:
    """Rows of the largest batch within the objective; 0 if not even one row is. The rule is the lane's own."""
    budget_s = SLO_SHARE * model.slo_s * speed
    line = LatencyModel([(rows, model.base_s + model.row_s * rows) for rows in (1, 2)])
    return line.rows_within(budget_s, most=model.max_batch) if model.base_s + model.row_s <= budget_s else 0


def _check(models: Sequence[Model], nodes: Sequence[Node], speeds: Mapping[tuple[str, str], float], utilisation: float) -> None:
    for kind, named in (("model", [model.name for model in models]), ("node", [node.name for node in nodes])):
        if not named:
            raise PlacementError(f"there is no {kind}")
        if len(set(named)) < len(named):
            raise PlacementError(f"two {kind}s are called {next(name for name in named if named.count(name) > 1)}")
    if not 0.0 < utilisation < 1.0:
        raise PlacementError(f"utilisation {utilisation:g} must be above 0 and below 1: at 1 queues have no end")
    for model in models:
        _positive(f"model {model.name}", model, ("rate", "slo_s", "most_copies", "max_batch", "cores", "row_s"))
        _positive(f"model {model.name}", model, ("base_s", "memory_bytes", "accelerators"), or_zero=True)
        if model.needs_accelerator and not model.accelerators:
            raise PlacementError(f"model {model.name} needs an accelerator: accelerators must be above 0")
    for node in nodes:
        _positive(f"node {node.name}", node, ("cores", "speed", "accelerator_speed"))
        _positive(f"node {node.name}", node, ("memory_bytes", "accelerators"), or_zero=True)
    known = {(model.name, node.name) for model in models for node in nodes}
    for pair, speed in speeds.items():
        if pair not in known:
            raise PlacementError(f"speeds name {pair}: there is no such model and node")
        if speed <= 0.0 or not isfinite(speed):
            raise PlacementError(f"the speed {speed:g} of model {pair[0]} on node {pair[1]} must be above 0")


def _positive(owner: str, holder: Struct, names: Sequence[str], *, or_zero: bool = False) -> None:
    for name in names:
        value = getattr(holder, name)
        if not isfinite(value) or value < 0 or (value == 0 and not or_zero):
            raise PlacementError(f"{owner}: {name} is {value:g}, and must be {'0 or more' if or_zero else 'above 0'}")
