"""Lets the lanes of one machine take turns on its cores: carries wants to the arbiter and its grants back.

Called by serve/driver.py for models whose batches are arbitrated. Not aware of: lanes, instances, what a batch is.
"""

from collections.abc import Callable, Mapping

from dlproxy.policy.arbiter import Arbiter, Want


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
