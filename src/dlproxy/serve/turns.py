"""Lets the lanes of one machine take turns on its cores: carries wants to the arbiter and its grants back.

Called by serve/driver.py and lab/simulate/engine.py for models whose batches are arbitrated. Not aware of: instances, clocks.
"""

from collections.abc import Callable, Mapping

from dlproxy.policy.arbiter import Arbiter, Want
from dlproxy.policy.events import WantTurn


class Turns:
    """One per process; everything happens on the event loop."""

    def __init__(self, arbiter: Arbiter, clock: Callable[[], float]) -> None:
        self._arbiter = arbiter
        self._clock = clock
        self._takers: dict[str, Callable[[int], None]] = {}
        self._granting = False

    def join(self, lane: str, on_turn: Callable[[int], None]) -> str:
        """`on_turn(lease)` is called when the lane may start a batch; `release` must follow once, sooner or later.

        The name under which it wants from now on: another where a lane of this name is there, which goes.
        """
        name, number = lane, 1
        while self._takers.get(name, on_turn) != on_turn:
            number += 1
            name = f"{lane}#{number}"
        self._takers[name] = on_turn
        return name

    def change_needs(self, lane: str, needs: Mapping[str, float]) -> None:
        """Its batches need so much from now on, also the one that it may have wanted already."""
        self._arbiter.change_needs(lane, needs, self._clock())
        self._grant()

    def leave(self, lane: str) -> None:
        """It wants nothing more. What it has leased it must still release."""
        self._takers.pop(lane, None)
        self._arbiter.forget(lane)
        self._grant()

    def want(self, want: Want) -> None:
        """In place of what the lane wanted before."""
        self._arbiter.want(want, self._clock())
        self._grant()

    def release(self, lease: int, used_s: float) -> None:
        """The batch of this lease ended after so many seconds; 0 if none was started."""
        self._arbiter.release(lease, self._clock(), used_s)
        self._grant()

    def provide(self, resources: Mapping[str, float]) -> None:
        """There is so much of these, too."""
        self._arbiter.provide(resources)

    @property
    def free(self) -> Mapping[str, float]:
        """What nobody has leased."""
        return self._arbiter.free

    def _grant(self) -> None:
        if self._granting:  # a turn that was passed on, or a batch that began, wants more: the loop below goes on
            return
        self._granting = True
        try:
            while leases := self._arbiter.grants(self._clock()):
                for lease in leases:
                    self._takers[lease.lane](lease.id)
        finally:
            self._granting = False


class Taker:
    """One lane's part in it: the turn that it was granted, and those that its batches hold. They are given back also after
    the lane has left. `on_turn`: a batch may start now.
    """

    def __init__(self, turns: Turns, lane: str, on_turn: Callable[[], None]) -> None:
        self._turns = turns
        self._lane = lane
        self._on_turn = on_turn
        self.needs: Mapping[str, float] = {}
        """Of each batch."""
        self.weight = 1.0
        """The lane's share of the cores beside others, under the discipline "fair"."""
        self._unused: int | None = None
        self._held: dict[int, tuple[int, float]] = {}  # by batch: its lease, and when it began

    def join(self, needs: Mapping[str, float]) -> None:
        """Batches need so much each. Or again: from now on they need this much."""
        self.needs = needs
        self._lane = self._turns.join(self._lane, self._granted)
        self._turns.change_needs(self._lane, needs)

    def leave(self) -> None:
        """The lane wants no turns any more."""
        self._turns.leave(self._lane)

    def want(self, command: WantTurn) -> None:
        """As the lane says."""
        self._turns.want(Want(self._lane, self.needs, command.cost_s, command.deadline_at, command.priority, self.weight))

    def pass_on(self) -> None:
        """The turn was granted for nothing."""
        lease, self._unused = self._unused, None
        if lease is not None:
            self._turns.release(lease, 0.0)

    def start(self, batch_id: int, now: float) -> None:
        """A batch begins with the turn that was granted, if one was."""
        lease, self._unused = self._unused, None
        if lease is not None:
            self._held[batch_id] = lease, now

    def first_part(self, batch_id: int, used_s: float) -> None:
        """Whoever reads the rest of an answer slowly must not keep the cores from other models."""
        self.end(batch_id, used_s)

    def end(self, batch_id: int, used_s: float) -> None:
        """A batch has used its turn for so many seconds."""
        held = self._held.pop(batch_id, None)
        if held is not None:
            self._turns.release(held[0], used_s)

    def lose(self, batch_id: int, now: float) -> None:
        """A batch has gone with its instance."""
        held = self._held.get(batch_id)
        if held is not None:
            self.end(batch_id, now - held[1])

    @property
    def is_at_rest(self) -> bool:
        """It holds nothing."""
        return self._unused is None and not self._held

    def _granted(self, lease: int) -> None:
        self._unused = lease
        self._on_turn()
