"""Two models on shared cores: an agent for each and a coordinator of shares, or one central agent that turns all knobs at once.

Called by deploy.py. Not aware of: pages.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

from benchmarks.autopilot.shared import CORES, Outcome, Shared, Weighed, make
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.simulate.autopilot import SimulatedPilot, SimulatedShares, Telemetry, Ways
from dlproxy.lab.simulate.engine import Call, Node, SimulatedModel
from dlproxy.lab.simulate.machine import Machine
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.policy.arbiter import Arbiter
from dlproxy.policy.events import KnobsChanged
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.tuning.pilot import Order, Pilot
from dlproxy.policy.tuning.protocol import Knobs, Proposal, Space
from dlproxy.policy.tuning.rules import Cost, Rules, batch_within
from dlproxy.policy.tuning.shares import PAYS, TRIAL_OBJECTIVE_S, Member, Shares, together
from dlproxy.policy.tuning.window import Window, added, fitted

Way = Literal["nobody", "one for each", "one for all"]
MOST_BATCH = 64
UNTIL_S = 40.0
ROWS = ".max_batch"
BEGIN: dict[str, Any] = {"max_batch": 1, "max_wait_s": 0.0, "instances": CORES, "threads": 1, "discipline": "edf"}


def ways() -> tuple[Way, ...]:
    return get_args(Way)


def compare(seed: int) -> dict[Way, float]:
    """Of two random models: the weighed share of requests that are answered in time, from the first one on."""
    return {way: run(make(seed, 31)[:2], seed, way) for way in ways()}


def run(models: list[Shared], seed: int, way: Way) -> float:
    outcome = Outcome([0.0], [0.0], [])
    simulation = Weighed(models, outcome, lambda due_at: 0)
    simulated = {model.name: _model(model, seed) for model in models}
    node = simulation.add("node-0", list(simulated.values()), arbiter=Arbiter({"cores": CORES}))
    telemetries = {}
    for model in models:
        one = simulated[model.name]
        telemetries[model.name] = one.hears = Telemetry(model.objective_s)
        turned = Ways(node, one, Fitted(model.base_s, model.row_s, cv=0.1, seed=seed), Machine(CORES))
        turned.run(CORES, 1, 0.0)
        if way == "one for each":
            space = Space(cores=CORES, max_batch=MOST_BATCH, ways=((CORES, 1),), objective_s=model.objective_s)
            telemetry = _Heard(one, model.objective_s)
            SimulatedPilot(node, one, turned, Pilot(Rules(), space, BEGIN, 0.0), telemetry, start_s=0.5, until=UNTIL_S)
    weights = {model.name: model.weight for model in models}
    if way == "one for each":
        SimulatedShares(node, telemetries, weights, CORES, until=UNTIL_S)
    if way == "one for all":
        _Central(node, telemetries, weights, models)
    simulation.run(_calls(models, seed), drain_s=10.0)
    return outcome.good[0] / outcome.offered[0]


class _Heard(Telemetry):
    """Hears of a model beside whoever hears of it already."""

    def __init__(self, model: SimulatedModel, objective_s: float) -> None:
        super().__init__(objective_s)
        self._other, model.hears = model.hears, self

    def arrived(self, now: float) -> None:
        super().arrived(now)
        assert self._other is not None
        self._other.arrived(now)

    def batch(self, rows: int, seconds: float) -> None:
        super().batch(rows, seconds)
        assert self._other is not None
        self._other.batch(rows, seconds)

    def ended(self, ticket: Any, failure: Any, now: float) -> None:
        super().ended(ticket, failure, now)
        assert self._other is not None
        self._other.ended(ticket, failure, now)


class Central:
    """A KnobPolicy of several models: shares by their names, and NAME.max_batch. It proposes batches that suit each objective
    and the shares that suit those at once.
    """

    def __init__(self, objectives_s: Mapping[str, float]) -> None:
        self._objectives_s = objectives_s
        self._members: dict[str, Member] = {}

    def observe(self, members: Mapping[str, Member]) -> None:
        self._members = dict(members)

    def act(self, window: Window, knobs: Knobs, space: Space, now: float) -> Proposal | None:
        if window.missed <= space.tolerated * window.ended:
            return None
        rows, after, needs_now, needs_then = {}, {}, {}, {}
        for name, member in self._members.items():
            if not member.window.answered or not member.window.costs:
                return None
            cost = Cost(*fitted(member.window.costs))
            rows[name] = batch_within(cost, self._objectives_s[name], space.max_batch)
            rate = member.window.arrived / member.window.seconds
            present = min(int(knobs[name + ROWS]), rows[name])
            needs_now[name] = rate * cost.seconds(present) / present / space.cores
            needs_then[name] = rate * cost.seconds(rows[name]) / rows[name] / space.cores
            batches = max(round(member.window.arrived / rows[name]), 1)
            costs = {rows[name]: (batches, batches * cost.seconds(rows[name]))}
            seen = msgspec.structs.replace(member.window, answered=batches * rows[name], costs=costs)
            after[name] = msgspec.structs.replace(member, window=seen)
        shares = Shares()
        shares.observe(after)
        wanted = shares.wanted(space.cores)
        before = {name: float(knobs[name]) for name in wanted}
        gain = self._good(wanted, needs_then) - self._good(before, needs_now)
        proposed = {**wanted, **{name + ROWS: size for name, size in rows.items()}}
        if gain < PAYS or proposed.keys() != knobs.keys():
            return None
        return Proposal(knobs=proposed, reason="batches and shares that suit each other", gain=gain)

    def learn(self, knobs: Knobs, window: Window, *, kept: bool) -> None:
        """What batches cost is learnt from every window."""

    def _good(self, shares: Mapping[str, float], needs: Mapping[str, float]) -> float:
        """Weighed share of the requests that find room."""
        worth = {name: member.weight * member.window.arrived for name, member in self._members.items()}
        left = max(1.0 - sum([min(shares[name], needs[name]) for name in needs]), 0.0)  # what one does not use is the others'
        room = {name: min((min(shares[name], needs[name]) + left) / max(needs[name], 1e-9), 1.0) for name in needs}
        return sum([worth[name] * room[name] for name in needs]) / max(sum(worth.values()), 1e-9)


class _Joint:
    """As SharedCores, of all knobs."""

    def __init__(self, models: list[Shared]) -> None:
        self._policy = Central({model.name: model.objective_s for model in models})
        knobs: dict[str, Any] = {model.name: 1.0 / len(models) for model in models}
        knobs |= {model.name + ROWS: 1 for model in models}
        space = Space(cores=CORES, max_batch=MOST_BATCH, ways=(), objective_s=TRIAL_OBJECTIVE_S)
        self.pilot = Pilot(self._policy, space, knobs, 0.0)
        self._recent: list[dict[str, Member]] = []

    def look(self, members: Mapping[str, Member], now: float) -> Order | None:
        if len(members) < 2:
            return None
        self._recent = [*self._recent[-9:], dict(members)]
        costs = {name: added([one[name].window.costs for one in self._recent if name in one]) for name in members}
        self._policy.observe(
            {
                name: msgspec.structs.replace(member, window=msgspec.structs.replace(member.window, costs=costs[name]))
                for name, member in members.items()
            }
        )
        return self.pilot.look(together(members), now)


class _Central(SimulatedShares):
    """Turns the lanes' knobs, too."""

    def __init__(self, node: Node, telemetries: Mapping[str, Telemetry], weights: Mapping[str, float], models: list[Shared]):
        super().__init__(node, telemetries, weights, CORES, until=UNTIL_S)
        self.shared: Any = _Joint(models)
        self._now = 0.0

    def _carry_out(self, order: Order | None, now: float) -> None:
        self._now = now
        super()._carry_out(order, now)

    def turn(self, knobs: Knobs) -> None:
        super().turn({name: value for name, value in knobs.items() if not name.endswith(ROWS)})
        for name, model in self._node.models.items():
            before = model.lane.view().knobs
            after = msgspec.structs.replace(before, max_batch=int(knobs[name + ROWS]))
            if after != before:
                self._node.happen((model, KnobsChanged(after)), self._now)


def _model(model: Shared, seed: int) -> SimulatedModel:
    knobs = LaneKnobs(slo_s=model.objective_s, max_batch=1, arbitrated=True)
    prior = [(rows, model.base_s + model.row_s * rows) for rows in (1, 64)]
    times = Fitted(model.base_s, model.row_s, cv=0.1, seed=seed)
    return SimulatedModel(model.name, Lane(knobs, prior), times, [], needs={"cores": 1.0})


def _calls(models: list[Shared], seed: int) -> list[Call]:
    found = []
    for place, model in enumerate(models):
        for chunk in make_arrivals("poisson", rate=model.rate, seed=seed * 100 + place).chunks(UNTIL_S):
            found += [Call(model.name, 1, model.objective_s, at_s) for at_s in chunk.tolist()]
    return sorted(found, key=lambda call: call.due_at)
