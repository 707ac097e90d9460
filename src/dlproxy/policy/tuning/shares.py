"""Shares of the cores for models that take turns on them: to each what it needs; if that is too much, where it helps most.

Told of the windows of all models of a machine; its proposals go through a Pilot like all others. Not aware of: the arbiter.
"""

from collections.abc import Mapping

from msgspec import Struct, structs

from dlproxy.policy.tuning.pilot import Order, Pilot
from dlproxy.policy.tuning.protocol import Knobs, Proposal, Space
from dlproxy.policy.tuning.window import Window

LEAST = 0.02  # of the cores, for every model: nobody starves, and what it costs can still be measured
SPARE = 1.1  # times what a model needs: arrivals come in bursts
CHANGED = 0.2  # relative: smaller differences between shares change nothing that could be measured
PAYS = 0.005  # of all requests
NEWEST = 0.3  # weight of the newest window in what is known of a model


class Member(Struct, frozen=True):
    """One model in a window: what a batch of it takes of the cores, and how much its answers count beside others'."""

    window: Window
    cores: float
    weight: float = 1.0


class _Known(Struct):
    """Requests per second, core-seconds of each, and their weight, over the last seconds."""

    rate: float
    core_s: float
    weight: float


class Shares:
    """A KnobPolicy whose knobs are models, by name, and whose values are their shares, 1 in all.

    Where everybody's needs fit, shares are in proportion to them. Else the model whose answers count most per core-second comes
    first (the greedy rule is optimal for the fractional knapsack: Dantzig, 1957), and each keeps LEAST.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def observe(self, members: Mapping[str, Member]) -> None:
        self._known = {name: known for name, known in self._known.items() if name in members}
        for name, member in members.items():
            window = member.window
            ran_s = sum([seconds for _, seconds in window.costs.values()]) * member.cores
            if not window.answered or not ran_s:
                continue
            rate, core_s = window.arrived / window.seconds, ran_s / window.answered
            before = self._known.get(name)
            if before is None:
                self._known[name] = _Known(rate, core_s, member.weight)
            else:
                before.rate += NEWEST * (rate - before.rate)
                before.core_s += NEWEST * (core_s - before.core_s)
                before.weight = member.weight

    def act(self, window: Window, knobs: Knobs, space: Space, now: float) -> Proposal | None:
        if window.missed <= space.tolerated * window.ended or self._known.keys() != knobs.keys():
            return None
        shares = self.wanted(space.cores)
        if all(abs(share - float(knobs[name])) <= CHANGED * float(knobs[name]) for name, share in shares.items()):
            return None
        before, after = self._good({name: float(knobs[name]) for name in knobs}, space.cores), self._good(shares, space.cores)
        gain = after - before
        if gain < PAYS:
            return None
        first = max(shares, key=lambda name: shares[name] - float(knobs[name]))
        return Proposal(knobs=shares, reason=f"the cores' time is worth most for {first}", gain=gain)

    def learn(self, knobs: Knobs, window: Window, *, kept: bool) -> None:
        """What models cost is learnt from every window."""

    def wanted(self, cores: float) -> dict[str, float]:
        """The shares that suit what is known."""
        needs = {name: known.rate * known.core_s * SPARE / cores for name, known in self._known.items()}
        left = max(1.0 - LEAST * len(needs), 0.0)
        shares = dict.fromkeys(needs, LEAST)
        for name in sorted(needs, key=lambda name: -self._known[name].weight / self._known[name].core_s):
            more = min(max(needs[name] - LEAST, 0.0), left)
            shares[name] += more
            left -= more
        total = sum(shares.values())
        return {name: share / total for name, share in shares.items()}

    def _good(self, shares: Mapping[str, float], cores: float) -> float:
        """The part of all requests, weighed, that would be answered: what one does not use is the others'."""
        left, open_, done = float(cores), dict(self._known), 0.0
        while open_:
            total = sum([shares[name] for name in open_])
            content = {
                name: known
                for name, known in open_.items()
                if known.rate * known.core_s <= left * shares[name] / max(total, 1e-12)
            }
            if not content:
                done += sum([known.weight * left * shares[name] / total / known.core_s for name, known in open_.items()])
                break
            for name, known in content.items():
                done += known.weight * known.rate
                left -= known.rate * known.core_s
                del open_[name]
        return done / max(sum([known.weight * known.rate for known in self._known.values()]), 1e-12)


TRIAL_OBJECTIVE_S = 0.5  # of shares: a slice lasts four times as long, because queues of several models must settle


class SharedCores:
    """Turns the shares of a machine's models. Hosted beside their own pilots. The shares that hold are `shares`."""

    def __init__(self, cores: int, now: float) -> None:
        self._policy = Shares()
        space = Space(cores=cores, max_batch=1, ways=(), objective_s=TRIAL_OBJECTIVE_S)
        self.pilot = Pilot(self._policy, space, {}, now)

    def look(self, members: Mapping[str, Member], now: float) -> Order | None:
        """As Pilot.look; the knobs of an order are shares by model."""
        pilot = self.pilot
        if members.keys() != pilot.knobs.keys():
            pilot.configure(pilot.space, dict.fromkeys(members, 1.0 / max(len(members), 1)), now)
            return Order("finish", pilot.knobs)
        self._policy.observe(members)
        return pilot.look(together(members), now) if members else None


def together(members: Mapping[str, Member]) -> Window:
    """One window of all models, in which each request counts for its weight."""
    windows = [member.window for member in members.values()]
    weights = [member.weight for member in members.values()]
    scale = len(weights) / sum(weights)

    def total(name: str) -> int:
        weighed = [float(getattr(window, name)) * weight for window, weight in zip(windows, weights, strict=True)]
        return round(sum(weighed) * scale)

    dispersions = [window.dispersion for window in windows]
    return structs.replace(
        windows[0],
        arrived=total("arrived"),
        answered=total("answered"),
        in_time=total("in_time"),
        refused=total("refused"),
        failed=total("failed"),
        dispersion=sum(dispersions) / len(dispersions),
        up=1,
        costs={},
    )
