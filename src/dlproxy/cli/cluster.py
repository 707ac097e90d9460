"""Watches the control ports of a cluster's nodes, and has models loaded and unloaded there until each is where it should be.

Called by cli/place.py. Nothing that serves depends on it: it keeps nothing that it could not see again. Not aware of: how
control ports are asked (control_port.py), where a model should be (policy/placement).
"""

from collections.abc import Callable, Mapping
from queue import SimpleQueue
from threading import Thread
from typing import Protocol, TypeVar

from msgspec import Struct

from dlproxy.cli.control_port import ControlError
from dlproxy.cli.told import ModelState
from dlproxy.config.cluster import MEMORY, ClusterConfig, PlacedConfig
from dlproxy.policy.placement.moves import Health, Loads, Move, Phase, moves, waiting, wanted
from dlproxy.policy.placement.problem import Model, Node, Placement, Problem

AGAIN_S, LONGEST_S = 30.0, 600.0  # until a model is tried again on a node that could not load it; doubled each time
MIB = 1 << 20

Solve = Callable[[Problem], Placement]
Key = tuple[str, str]
Asked = TypeVar("Asked")


class NodePort(Protocol):
    """The control port of one node. Each method waits, and raises ControlError."""

    def models(self) -> list[ModelState]: ...

    def cores(self) -> float: ...

    def load(self, model: str, wanted: PlacedConfig) -> None: ...

    def unload(self, model: str) -> None: ...


class Round(Struct):
    """What one look at the nodes came to. `begun`: the moves; `under_way`: how many are, these included; `lacks`: what cannot
    be had, in words; `silent`: nodes that do not answer, with the reason; `target`: where models shall be.
    """

    begun: list[Move]
    under_way: int
    lacks: list[str]
    silent: dict[str, str]
    target: Placement


class _Bar(Struct):
    """A model that a node could not load so many times, and until when it is not tried there."""

    times: int
    until: float


class Operator:
    """`patience_s`: instead of the configuration's. `tell` is told in words what happens. `begin` runs a move: in a thread."""

    def __init__(
        self,
        cluster: ClusterConfig,
        ports: Mapping[str, NodePort],
        solve: Solve,
        tell: Callable[[str], None],
        *,
        begin: Callable[[Callable[[], None]], None] | None = None,
        patience_s: float | None = None,
        dry: bool = False,
    ) -> None:
        place = cluster.place
        self._cluster, self._ports, self._solve, self._tell, self._dry = cluster, ports, solve, tell, dry
        self._begin = begin or in_background
        patience_s = place.patience_s if patience_s is None else patience_s
        self._health = {name: Health(patience_s=patience_s, steady_s=place.steady_s) for name in ports}
        self._loads = Loads(place.window_s)
        self._states: dict[str, list[ModelState]] = {name: [] for name in ports}
        self._cores: dict[str, float] = {name: node.cores for name, node in cluster.nodes.items()}
        self._sizes: dict[str, float] = {}
        self._barred: dict[Key, _Bar] = {}
        self._under_way: dict[Key, Move] = {}
        self._said: dict[str, str] = {}
        self._posed: tuple[object, ...] = ()
        self._target: Placement = {}
        self.done: SimpleQueue[tuple[Move, str]] = SimpleQueue()
        """Moves that have ended, with what was wrong."""

    def round(self, now: float) -> Round:
        """Look at all nodes, and begin what comes next."""
        while not self.done.empty():
            self._ended(*self.done.get(), now)
        silent = self._look(now)
        counting = [name for name, health in self._health.items() if health.counts(now)]
        replicas = self._replicas(counting)
        problem = self._problem(counting, replicas, now)
        held = self._held(silent)
        if not held:
            self._aim(problem)
        most = self._cluster.place.moves - len(self._under_way)
        begun = [] if held else moves(problem, self._target, replicas, most=most)
        begun = [move for move in begun if move.node not in silent]
        for move in begun:
            self._move(move)
        lacks = [held] if held else [*problem.lacks(self._target), *waiting(problem, self._target, self._replicas(counting))]
        self._say_all("lacks", lacks)
        return Round(begun, len(self._under_way), lacks, silent, self._target)

    def _aim(self, problem: Problem) -> None:
        """At the same target as long as the problem is the same."""
        posed = (problem.models, problem.nodes, problem.before)
        if posed != self._posed:
            self._target, self._posed = self._solve(problem), posed

    def _held(self, silent: Mapping[str, str]) -> str:
        """Why nothing is moved now; empty: it is."""
        unknown = [name for name, health in self._health.items() if not health.known]
        if unknown:
            return f"nothing is moved before {', '.join(unknown)} has answered, or is given up"
        if 2 * len(silent) > len(self._ports):
            many = f"{len(silent)} of {len(self._ports)} nodes do not answer"
            return f"{many}: nothing is moved, as it may be this machine's network"
        return ""

    # What is there

    def _look(self, now: float) -> dict[str, str]:
        """Who does not answer, and why."""
        silent = {}
        for name, told in _all_of({name: port.models for name, port in self._ports.items()}).items():
            health, was_lost = self._health[name], self._health[name].lost
            answers = not isinstance(told, ControlError)
            health.look(answers, now)
            if isinstance(told, ControlError):
                silent[name] = str(told)
                self._say(name, f"node {name} does not answer: {told}")
                if health.lost and not was_lost:
                    self._tell(f"node {name} is lost")
                continue
            if was_lost:
                self._say(name, f"node {name} answers again, and counts when it has done so for {health.steady_s:g} s")
            elif health.counts(now):
                self._say(name, "" if name not in self._said else f"node {name} counts")
            self._states[name] = told
            self._measure(name, told, now)
        return silent

    def _measure(self, name: str, states: list[ModelState], now: float) -> None:
        busy_s: dict[str, float] = {}
        for state in states:
            busy_s[state.name] = busy_s.get(state.name, 0.0) + state.busy_s
            if state.name in self._cluster.models:
                held = sum(one.size_bytes for one in states if one.name == state.name) / MIB
                self._sizes[state.name] = max(self._sizes.get(state.name, 0.0), held)
        self._loads.look(name, busy_s, now)
        if not self._cores[name]:
            try:
                self._cores[name] = self._ports[name].cores()
            except ControlError:
                self._cores[name] = 1.0

    def _replicas(self, nodes: list[str]) -> dict[Key, Phase]:
        """On these nodes, of the cluster's models, with what is under way."""
        found: dict[Key, Phase] = {}
        for node in nodes:
            for state in self._states[node]:
                key = (state.name, node)
                if state.name not in self._cluster.models or (state.phase in ("wanted", "failed") and not state.ready):
                    continue
                if state.phase == "leaving":
                    found.setdefault(key, "leaving")
                elif state.ready or found.get(key) != "up":
                    found[key] = "up" if state.ready else "coming" if state.phase == "loading" else found.get(key, "coming")
        for (model, node), move in self._under_way.items():
            if node in nodes:
                found[model, node] = "coming" if move.load else "leaving"
        return found

    # What should be

    def _problem(self, counting: list[str], replicas: Mapping[Key, Phase], now: float) -> Problem:
        models = []
        for name, placed in self._cluster.models.items():
            there = {node for model, node in replicas if model == name and replicas[model, node] != "leaving"}
            up = [node for node in sorted(there) if replicas[name, node] == "up"]
            load = self._loads.of(name, up, lambda node: self._cluster.nodes[node].speed)
            each = [self._does(name, node) for node in up]
            most = min(placed.most_replicas or len(self._ports), len(self._ports))
            now_wanted = wanted(
                load,
                each=sum(each) / len(each) if each else 1.0,
                now=len(there),
                least=placed.replicas,
                most=max(most, placed.replicas),
            )
            takes = dict(placed.takes)
            if any(MEMORY in node.has for node in self._cluster.nodes.values()):
                takes[MEMORY] = max(takes.get(MEMORY, 0.0), self._sizes.get(name, 0.0))
            barred = frozenset(node for node in counting if self._is_barred((name, node), now))
            model = Model(name=name, takes=takes, replicas=now_wanted, load=_rounded(load or 0.0), barred=barred - there)
            models.append(model)
        before = {
            model: frozenset(node for of, node in replicas if of == model and replicas[of, node] != "leaving")
            for model in self._cluster.models
        }
        return Problem(models, [self._node(name) for name in counting], before)

    def _node(self, name: str) -> Node:
        """Without what models hold that are nobody's here."""
        node = self._cluster.nodes[name]
        has = dict(node.has)
        if MEMORY in has:
            others = sum(state.size_bytes for state in self._states[name] if state.name not in self._cluster.models)
            has[MEMORY] = max(has[MEMORY] - others / MIB, 0.0)
        return Node(name=name, has=has, capacity=(self._cores[name] or 1.0) * node.speed, domain=node.domain)

    def _does(self, model: str, node: str) -> float:
        """Seconds of work a second that a replica there can do: one for each instance, on a node of speed 1."""
        instances = sum(len(state.instances) for state in self._states[node] if state.name == model)
        return max(instances, 1) * self._cluster.nodes[node].speed

    def _is_barred(self, key: Key, now: float) -> bool:
        return key in self._barred and self._barred[key].until > now

    # What is done

    def _move(self, move: Move) -> None:
        verb = "load" if move.load else "unload"
        if self._dry:
            self._tell(f"would {verb} {move.model} on {move.node}")
            return
        self._tell(f"{verb}ing {move.model} on {move.node}")
        self._under_way[move.model, move.node] = move
        port, placed = self._ports[move.node], self._cluster.models[move.model]

        def work() -> None:
            wrong = ""
            try:
                if move.load:
                    port.load(move.model, placed)
                else:
                    port.unload(move.model)
            except ControlError as error:
                wrong = str(error)
            self.done.put((move, wrong))

        self._begin(work)

    def _ended(self, move: Move, wrong: str, now: float) -> None:
        key, verb = (move.model, move.node), "load" if move.load else "unload"
        self._under_way.pop(key, None)
        if not wrong:
            self._barred.pop(key, None)
            self._tell(f"{verb}ed {move.model} on {move.node}")
            return
        times = self._barred[key].times if key in self._barred else 0
        again_s = min(AGAIN_S * 2.0**times, LONGEST_S)
        if move.load:
            self._barred[key] = _Bar(times + 1, now + again_s)
        self._tell(f"could not {verb} {move.model} on {move.node}: {wrong}")

    def _say(self, about: str, text: str) -> None:
        """Once, as long as it is so."""
        if text and self._said.get(about) != text:
            self._tell(text)
        if text:
            self._said[about] = text

    def _say_all(self, about: str, texts: list[str]) -> None:
        for text in texts:
            self._say(f"{about} {text}", text)
        for key in [key for key in self._said if key.startswith(f"{about} ") and key.removeprefix(f"{about} ") not in texts]:
            del self._said[key]


def _rounded(number: float) -> float:
    """Two digits: what load does beyond them is no reason to think anew."""
    return float(f"{number:.2g}")


def in_background(work: Callable[[], None]) -> None:
    """A thread that nobody waits for: who ends the program leaves what is under way to the nodes."""
    Thread(target=work, daemon=True).start()


def _all_of(asks: Mapping[str, Callable[[], Asked]]) -> dict[str, Asked | ControlError]:
    """What each returns or raises, asked at the same time."""
    answers: SimpleQueue[tuple[str, Asked | ControlError]] = SimpleQueue()

    def ask(name: str, one: Callable[[], Asked]) -> None:
        try:
            answers.put((name, one()))
        except ControlError as error:
            answers.put((name, error))

    for name, one in asks.items():
        Thread(target=ask, args=(name, one), daemon=True).start()
    found = dict(answers.get() for _ in asks)
    return {name: found[name] for name in asks}
