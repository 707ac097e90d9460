"""A good placement from the one that there is: what may stay stays, what is missing is placed, a local search mends the rest.

First fit decreasing, then chains of ejections (Glover 1996): a replica takes the place of another, which finds one of its own.
Called by cli/cluster.py and benchmarks/placement. Not aware of: clocks, chance, how a placement is reached.
"""

from itertools import combinations

from dlproxy.policy.placement.problem import SLACK, Model, Placement, Problem

LENGTH = 3  # replicas that get another place so that one more finds one
PAIR = 3  # of them on one node
WORK = 200_000  # replicas that are tried on nodes, in the local search; a second or two


def solve(problem: Problem, *, work: int = WORK) -> Placement:
    """A replica that is wanted, fits and is there stays or gets another place; one of several may make room for the first of a
    model that has none. More work, better placements: the same for the same problem.
    """
    searches = [_Search(problem, work) for _ in range(2)]
    for search, easy in zip(searches, (False, True), strict=True):
        search.keep()
        search.fill(easy_first=easy)
    search = min(searches, key=lambda one: problem.cost(one.placement()))
    search.work, ejections = work, 0
    while ejections <= LENGTH and search.work > 0:
        ejections = 0 if search.mend(ejections) else ejections + 1
    return search.placement()


class _Search:
    """A placement under change that never breaks a constraint."""

    def __init__(self, problem: Problem, work: int) -> None:
        self.problem, self.work = problem, work
        self.at: dict[str, set[str]] = {name: set() for name in problem.models}
        self.on: dict[str, set[str]] = {name: set() for name in problem.nodes}
        self.free = {name: dict(node.has) for name, node in problem.nodes.items()}
        self.load = dict.fromkeys(problem.nodes, 0.0)
        self.hardest = sorted(problem.models.values(), key=lambda model: (-self._difficulty(model), model.name))

    def _difficulty(self, model: Model) -> float:
        """The largest share of what there is of a kind."""
        has = self.problem.nodes.values()
        return max(
            (amount / (sum(node.has.get(kind, 0.0) for node in has) or 1e-9) for kind, amount in model.takes.items()),
            default=0.0,
        )

    def placement(self) -> Placement:
        return {name: frozenset(places) for name, places in self.at.items()}

    def step(self, name: str, node: str, by: int) -> float:
        """Put a replica there, or (-1) take it away. What the cost changes by."""
        self.work -= 1
        problem, model, where = self.problem, self.problem.models[name], self.problem.nodes[node]
        cost = problem.model_cost(model, self.at[name]) + problem.node_cost(where, self.load[node])
        (self.at[name].add if by > 0 else self.at[name].remove)(node)
        (self.on[node].add if by > 0 else self.on[node].remove)(name)
        self.load[node] += by * model.share
        free = self.free[node]
        for kind, amount in model.takes.items():
            free[kind] = free.get(kind, 0.0) - by * amount
        return problem.model_cost(model, self.at[name]) + problem.node_cost(where, self.load[node]) - cost

    def fits(self, model: Model, node: str) -> bool:
        self.work -= 1
        if node in self.at[model.name] or node in model.barred:
            return False
        free = self.free[node]
        return all(amount <= free.get(kind, 0.0) + SLACK for kind, amount in model.takes.items())

    def keep(self) -> None:
        """What is there and still fits; of more replicas than are wanted those that cost least."""
        for model in self.hardest:
            for node in sorted(self.problem.before[model.name]):
                if self.fits(model, node):
                    self.step(model.name, node, 1)
            while len(places := self.at[model.name]) > model.replicas:
                self.step(model.name, min(sorted(places), key=lambda node: self._without(model.name, node)), -1)

    def _without(self, name: str, node: str) -> tuple[float, float]:
        """What the cost would change by, and below zero how loaded the node is: ties go to the fullest."""
        change, loaded = self.step(name, node, -1), self._loaded(node)
        self.step(name, node, 1)
        return change, -loaded

    def _loaded(self, node: str) -> float:
        return self.load[node] / (self.problem.nodes[node].capacity or 1e-9)

    def fill(self, *, easy_first: bool) -> None:
        """First a replica of each, the hardest first, then the others, each where it costs least and least is done. With the
        easy ones first, more of those others find a place where not all do.
        """
        for most in (1, max((model.replicas for model in self.hardest), default=1)):
            for model in self.hardest[:: -1 if easy_first and most > 1 else 1]:
                while len(self.at[model.name]) < min(most, model.replicas) and (node := self._best(model)) is not None:
                    self.step(model.name, node, 1)

    def _best(self, model: Model) -> str | None:
        used = {self.problem.domains[node] for node in self.at[model.name]}

        def worth(node: str) -> tuple[bool, float, float, str]:
            problem, there = self.problem, self.problem.nodes[node]
            over = problem.node_cost(there, self.load[node] + model.share) - problem.node_cost(there, self.load[node])
            return problem.domains[node] in used, over, self._loaded(node), node

        return min((node for node in self.problem.nodes if self.fits(model, node)), key=worth, default=None)

    def mend(self, ejections: int) -> bool:
        """One pass over what is missing, what is in one domain and what has too much to do; whether anything became better."""
        better = False
        for model in self.hardest:
            while len(self.at[model.name]) < model.replicas and self._moved(model, "", ejections):
                better = True
        for model in self.hardest:
            if self.problem.spreads(model) and len({self.problem.domains[node] for node in self.at[model.name]}) < 2:
                better |= any(self._moved(model, node, ejections) for node in sorted(self.at[model.name]))
        for node in sorted(self.problem.nodes, key=self._loaded, reverse=True):
            while self.problem.node_cost(self.problem.nodes[node], self.load[node]) and self._relieved(node, ejections):
                better = True
        return better

    def _relieved(self, node: str, ejections: int) -> bool:
        models = sorted(self.on[node], key=lambda name: (-self.problem.models[name].share, name))
        return any(self._moved(self.problem.models[name], node, ejections) for name in models)

    def _moved(self, model: Model, node: str, ejections: int) -> bool:
        """Whether it costs less if the replica on this node (empty: one that is missing) gets another place; then it has."""
        change = self.step(model.name, node, -1) if node else 0.0
        if self._placed([model], change, ejections, frozenset({(model.name, node)})):
            return True
        if node:
            self.step(model.name, node, 1)
        return False

    def _placed(self, todo: list[Model], change: float, ejections: int, fixed: frozenset[tuple[str, str]]) -> bool:
        """Whether each of these finds a place, or can be spared, and the cost, changed by `change` so far, falls; else nothing
        has changed. `fixed`: replicas that were moved, and places that they had.
        """
        if not todo:
            return change < -SLACK
        model, *rest = todo
        open_ = [node for node in self.problem.nodes if self.work > 0 and self._may(model, node, fixed)]
        for node in self._cheapest(model, [node for node in open_ if self.fits(model, node)])[: None if rest else 1]:
            by = self.step(model.name, node, 1)
            if self._placed(rest, change + by, ejections, fixed | {(model.name, node)}):
                return True
            self.step(model.name, node, -1)
        if len(self.at[model.name]) and self._placed(rest, change, ejections, fixed):
            return True
        return any(
            self._in_place_of(others, todo, node, change, ejections - len(others), fixed)
            for size in range(1, min(ejections, PAIR) + 1)
            for node in open_
            for others in combinations(sorted(name for name in self.on[node] if (name, node) not in fixed), size)
        )

    def _may(self, model: Model, node: str, fixed: frozenset[tuple[str, str]]) -> bool:
        has = self.problem.nodes[node].has
        able = all(amount <= has.get(kind, 0.0) + SLACK for kind, amount in model.takes.items())
        return able and node not in self.at[model.name] and node not in model.barred and (model.name, node) not in fixed

    def _cheapest(self, model: Model, nodes: list[str]) -> list[str]:
        costs = {}
        for node in nodes:
            costs[node] = self.step(model.name, node, 1)
            self.step(model.name, node, -1)
        return sorted(nodes, key=lambda node: (costs[node], self._loaded(node), node))

    def _in_place_of(
        self,
        others: tuple[str, ...],
        todo: list[Model],
        node: str,
        change: float,
        ejections: int,
        fixed: frozenset[tuple[str, str]],
    ) -> bool:
        """The first of `todo` on a node in place of these, which are to be placed as well."""
        if self.work <= 0:
            return False
        (model, *rest), models = todo, self.problem.models
        by = sum(self.step(other, node, -1) for other in others)
        if self.fits(model, node):
            by += self.step(model.name, node, 1)
            moved = {(model.name, node), *((other, node) for other in others)}
            if self._placed([*rest, *(models[other] for other in others)], change + by, ejections, fixed | moved):
                return True
            self.step(model.name, node, -1)
        for other in others:
            self.step(other, node, 1)
        return False
