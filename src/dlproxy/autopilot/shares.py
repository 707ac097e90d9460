"""Turns the shares of the cores among models that take turns on them, while no model's own knobs are on trial.

Held by host.py. Not aware of: the arbiter (Tuned tells it), what a share should be (policy/tuning/shares.py).
"""

import logging
from collections.abc import Callable, Mapping

from dlproxy.autopilot.flight import Flight, in_words
from dlproxy.policy.tuning.pilot import Order
from dlproxy.policy.tuning.shares import Member, SharedCores
from dlproxy.policy.tuning.window import Window

log = logging.getLogger(__name__)


class SharedTurns:
    """All models of a process that are tuned and take turns."""

    def __init__(self, cores: Callable[[], int], clock: Callable[[], float]) -> None:
        self._cores = cores
        self._clock = clock
        self._shared: SharedCores | None = None
        self._members: dict[str, Flight] = {}
        self._told = 0

    @property
    def trying(self) -> bool:
        return self._shared is not None and self._shared.pilot.trying

    def look(self, windows: Mapping[Flight, Window], now: float) -> None:
        """Called with the windows of all models whenever they have been made."""
        members = {flight: window for flight, window in windows.items() if flight.mode == "on" and flight.tuned.turn_cores()}
        if len(members) < 2:
            self.end()
            return
        if any(flight.pilot is not None and flight.pilot.trying for flight in members):
            return
        if self._shared is None:
            self._shared, self._told = SharedCores(self._cores(), now), 0
        self._members = {f"{flight.tuned.name}/{flight.tuned.version}": flight for flight in members}
        seen = {
            name: Member(members[flight], flight.tuned.turn_cores(), flight.tuned.weight())
            for name, flight in self._members.items()
        }
        self._carry_out(self._shared.look(seen, now), now)

    def end(self) -> None:
        """Whoever is left has all that it needs."""
        if self._shared is not None:
            self._shared = None
            for flight in self._members.values():
                flight.tuned.weigh(1.0)
            self._members = {}

    def hold(self, reason: str, now: float) -> None:
        """What is on trial ends, and nothing is tried for some seconds."""
        if self._shared is not None:
            pilot = self._shared.pilot
            order = pilot.pause(now, reason)
            pilot.resume()
            self._carry_out(order, now)

    def forget(self, flight: Flight) -> None:
        """It goes; what is on trial ends with the next look, which finds other members."""
        self._members = {name: member for name, member in self._members.items() if member is not flight}

    def _carry_out(self, order: Order | None, now: float) -> None:
        assert self._shared is not None
        self._tell(self._shared)
        if order is None:
            return
        if order.act == "prepare":
            self._carry_out(self._shared.pilot.ready(order.knobs, now), now)
            return
        for name, flight in self._members.items():
            flight.tuned.weigh(float(order.knobs[name]))

    def _tell(self, shared: SharedCores) -> None:
        """Each decision is in the logs of all models that it is about."""
        decisions = list(shared.pilot.log)[self._told :]
        self._told += len(decisions)
        for decision in decisions:
            log.info("shares of the cores: autopilot %s", in_words(decision))
            for flight in self._members.values():
                flight.log.append(decision)
