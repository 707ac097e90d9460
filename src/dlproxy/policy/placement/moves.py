"""The next moves from what is there to a placement: loads before unloads, a bounded number at a time.

Called by cli/cluster.py at every look at the nodes. Not aware of: why the placement is what it is, how a move is made.
"""

from collections.abc import Callable, Iterable, Mapping
from math import ceil
from typing import Literal, TypeAlias

from msgspec import Struct

from dlproxy.policy.placement.problem import FULL, SLACK, Placement, Problem

Phase = Literal["coming", "up", "leaving"]
Replicas: TypeAlias = Mapping[tuple[str, str], Phase]
"""By model and node, on nodes that are up. Each takes what its model takes."""

EASY = 0.5  # a replica less is wanted when the load would fill the others no more than this


class Move(Struct, frozen=True):
    """`load`: else it is unloaded."""

    model: str
    node: str
    load: bool


def moves(problem: Problem, target: Placement, replicas: Replicas, *, most: int) -> list[Move]:
    """At most so many. A model is loaded where it fits beside all that is there now, those first that have the fewest replicas;
    a replica is unloaded once every replica that the target has of its model is up, and there is one.
    """
    found: list[Move] = []
    free = {name: dict(node.has) for name, node in problem.nodes.items()}
    for model, node in replicas:
        _take(problem, free, model, node)
    up = {name: {node for node in problem.nodes if replicas.get((name, node)) == "up"} for name in problem.models}
    for name in sorted(problem.models, key=lambda name: (len(up[name]), name)):
        for node in sorted(target[name]):
            if (name, node) not in replicas and fits(problem, free, name, node):
                _take(problem, free, name, node)
                found.append(Move(name, node, load=True))
    for name, places in up.items():
        if target[name] <= places and (target[name] or not problem.models[name].replicas):
            found += [Move(name, node, load=False) for node in sorted(places - target[name])]
    return found[: max(most, 0)]


def waiting(problem: Problem, target: Placement, replicas: Replicas) -> list[str]:
    """What is to be loaded and finds no room yet, in words."""
    free = {name: dict(node.has) for name, node in problem.nodes.items()}
    for model, node in replicas:
        _take(problem, free, model, node)
    return [
        f"model {name} waits for room on {node}, where others have to leave first"
        for name in sorted(target)
        for node in sorted(target[name])
        if (name, node) not in replicas and not fits(problem, free, name, node)
    ]


def fits(problem: Problem, free: Mapping[str, Mapping[str, float]], model: str, node: str) -> bool:
    return all(amount <= free[node].get(kind, 0.0) + SLACK for kind, amount in problem.models[model].takes.items())


def _take(problem: Problem, free: Mapping[str, dict[str, float]], model: str, node: str) -> None:
    if model in problem.models and node in free:
        for kind, amount in problem.models[model].takes.items():
            free[node][kind] = free[node].get(kind, 0.0) - amount


def wanted(load: float | None, *, each: float, now: int, least: int, most: int) -> int:
    """Replicas for a load of so many seconds of work a second, of which one does `each`; None: it is not known.

    As many as are FULL by it; fewer than there are now only when that many would be no more than EASY, so that a load between
    the two changes nothing.
    """
    if load is None:
        return min(max(now, least), most)
    needed, enough = ceil(load / (FULL * each) - SLACK), ceil(load / (EASY * each) - SLACK)
    return min(max(needed, min(now, enough), least), most)


class Health:
    """Whether a node counts. One that does not answer is lost after `patience_s`; one that is back has to answer for `steady_s`
    before anything is placed there, twice as long after each loss, eight times at most.
    """

    def __init__(self, *, patience_s: float, steady_s: float) -> None:
        self._patience_s, self._steady_s = patience_s, steady_s
        self._since: float | None = None  # the last answer, or else the first look
        self._back_at: float | None = None
        self._losses = 0
        self.known = False  # whether it has answered, or is lost
        self.lost = False

    def look(self, answers: bool, now: float) -> None:
        if answers:
            if self.lost:
                self._back_at, self.lost = now, False
            self._since, self.known = now, True
            return
        self._since = now if self._since is None else self._since
        if not self.lost and now - self._since >= self._patience_s:
            self.lost = self.known = True
            self._losses += 1

    @property
    def steady_s(self) -> float:
        """How long it has to answer."""
        return self._steady_s * min(2.0 ** (self._losses - 1), 8.0)

    def counts(self, now: float) -> bool:
        """Whether models are placed there, and those that are there count."""
        return self.known and not self.lost and (self._back_at is None or now - self._back_at >= self.steady_s)


class Loads:
    """Seconds of work a second of each replica, from counters that only rise; over `window_s`."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._seen: dict[tuple[str, str], list[tuple[float, float]]] = {}

    def look(self, node: str, busy_s: Mapping[str, float], now: float) -> None:
        """`busy_s`: by model, of all that the node has now. A counter that has fallen is another one's: it starts anew."""
        for key in [key for key in self._seen if key[1] == node and key[0] not in busy_s]:
            del self._seen[key]
        for model, seconds in busy_s.items():
            points = self._seen.setdefault((model, node), [])
            if points and seconds < points[-1][1]:
                points.clear()
            points.append((now, seconds))
            while len(points) > 2 and points[1][0] <= now - self._window_s:
                points.pop(0)

    def of(self, model: str, nodes: Iterable[str], weight: Callable[[str], float]) -> float | None:
        """On these nodes, in work of a node of speed 1; None while one of them was seen once only."""
        total = 0.0
        for node in nodes:
            points = self._seen.get((model, node), [])
            if len(points) < 2 or points[-1][0] <= points[0][0]:
                return None
            total += weight(node) * (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])
        return total
