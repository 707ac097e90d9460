"""Replicas of models on nodes, as a problem: resources by kind, domains that fail together, and what a placement costs.

Solved by solve.py, exactly by lab/tune/placement/cluster.py. Not aware of: how nodes are asked, how a replica gets there.
"""

from collections.abc import Iterable, Mapping, Set
from typing import TypeAlias

from msgspec import Struct

Placement: TypeAlias = dict[str, frozenset[str]]
"""Nodes by model."""

# What is priced, in moves: without a replica a model is not served at all; to load one only to spread load has to take a tenth
# of a node off a node that has too much.
GONE = 10_000.0
SHORT = 1_000.0
ALONE = 100.0
MOVE = 1.0
OVERLOAD = 10.0

FULL = 0.7  # the share of a node's time, and of an instance's, that is planned for, as Knative plans for 70 % of a container
SLACK = 1e-9  # sums of shares such as 0.1 and 0.2 are not exact


class Node(Struct, frozen=True, kw_only=True):
    """`has`: of each kind of resource. `capacity`: seconds of work that it does in a second: cores, times how quick they are.
    `domain`: what fails together; empty: it fails alone.
    """

    name: str
    has: Mapping[str, float] = {}
    capacity: float = 1.0
    domain: str = ""

    @property
    def fails_with(self) -> str:
        return self.domain or f"node {self.name}"


class Model(Struct, frozen=True, kw_only=True):
    """`takes`: what one replica does, of each kind. `replicas`: how many are wanted, each on another node. `load`: seconds of
    work a second of all of them together. `barred`: nodes that do not get it now.
    """

    name: str
    takes: Mapping[str, float] = {}
    replicas: int = 1
    load: float = 0.0
    barred: Set[str] = frozenset()

    @property
    def share(self) -> float:
        """Of the load, for each replica: whoever asks them balances."""
        return self.load / self.replicas if self.replicas else 0.0


class Problem:
    """`before`: what is there now. Names are unique; nodes that are not up are left out."""

    def __init__(self, models: Iterable[Model], nodes: Iterable[Node], before: Placement | None = None) -> None:
        self.models = {model.name: model for model in models}
        self.nodes = {node.name: node for node in nodes}
        known = before or {}
        self.before = {name: known.get(name, frozenset()) & self.nodes.keys() for name in self.models}
        self.domains = {name: node.fails_with for name, node in self.nodes.items()}
        self._several = len(set(self.domains.values())) > 1

    def spreads(self, model: Model) -> bool:
        """Whether its replicas shall be in more than one domain."""
        return self._several and model.replicas > 1

    def model_cost(self, model: Model, places: Set[str]) -> float:
        """What is missing, replicas that would fail all at once, and what has to be loaded."""
        count = len(places)
        cost = SHORT * max(model.replicas - count, 0) + MOVE * len(places - self.before[model.name])
        if not count and model.replicas:
            cost += GONE
        if self.spreads(model) and len({self.domains[node] for node in places}) < 2:
            cost += ALONE
        return cost

    def node_cost(self, node: Node, load: float) -> float:
        """Load beyond what is planned for, in capacities of the node."""
        return OVERLOAD * max(load / node.capacity - FULL, 0.0) if node.capacity else OVERLOAD * load

    def cost(self, placement: Placement) -> float:
        loads = dict.fromkeys(self.nodes, 0.0)
        for name, places in placement.items():
            for node in places:
                loads[node] += self.models[name].share
        return sum(self.model_cost(model, placement.get(name, frozenset())) for name, model in self.models.items()) + sum(
            self.node_cost(node, loads[name]) for name, node in self.nodes.items()
        )

    def violations(self, placement: Placement) -> list[str]:
        """What cannot be, in words; empty if it may be carried out."""
        found, used = [], {name: dict[str, float]() for name in self.nodes}
        for name, places in placement.items():
            model = self.models[name]
            if len(places) > model.replicas:
                found.append(f"model {name}: {len(places)} replicas, {model.replicas} are wanted")
            found += [f"model {name} may not be on {node}" for node in sorted(places & model.barred)]
            for node in places:
                for kind, amount in model.takes.items():
                    used[node][kind] = used[node].get(kind, 0.0) + amount
        for name, kinds in used.items():
            has = self.nodes[name].has
            found += [
                f"node {name}: replicas take {amount:g} {kind}, it has {has.get(kind, 0.0):g}"
                for kind, amount in kinds.items()
                if amount > has.get(kind, 0.0) + SLACK
            ]
        return found

    def lacks(self, placement: Placement) -> list[str]:
        """Which models have too few replicas, or all in one domain, and what lacks, in words."""
        free = {name: dict(node.has) for name, node in self.nodes.items()}
        for name, places in placement.items():
            for node in places:
                for kind, amount in self.models[name].takes.items():
                    free[node][kind] = free[node].get(kind, 0.0) - amount
        found = []
        for name, model in self.models.items():
            places = placement.get(name, frozenset())
            missing = model.replicas - len(places)
            if missing > 0:
                found.append(
                    f"model {name}: {missing} of {model.replicas} replicas find no place: {self._why(model, places, free)}"
                )
            elif self.spreads(model) and len(domains := {self.domains[node] for node in places}) < 2:
                (domain,) = domains
                found.append(f"model {name}: all replicas are in {domain}: {self._why(model, self._within(domain), free)}")
        return found

    def _within(self, domain: str) -> Set[str]:
        return {name for name in self.nodes if self.domains[name] == domain}

    def _why(self, model: Model, elsewhere: Set[str], free: Mapping[str, Mapping[str, float]]) -> str:
        """Nodes by what keeps the model from them."""
        reasons: dict[str, list[str]] = {}
        for name, node in self.nodes.items():
            if name in elsewhere:
                continue
            lacking = [kind for kind, amount in model.takes.items() if amount > free[name].get(kind, 0.0) + SLACK]
            if name in model.barred:
                why = "could not load it lately"
            elif never := [kind for kind in lacking if model.takes[kind] > node.has.get(kind, 0.0) + SLACK]:
                why = "have less than " + " and ".join(f"{model.takes[kind]:g} {kind}" for kind in never)
            else:
                why = "have less than " + " and ".join(f"{model.takes[kind]:g} {kind} left" for kind in lacking)
            reasons.setdefault(why, []).append(name)
        if not reasons:
            return "there are no other nodes"
        return "; ".join(f"{_some(names)} {why}" for why, names in reasons.items())


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:3])} and {len(names) - 3} more"
