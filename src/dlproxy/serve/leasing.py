"""One lane's turns where the instances are shared with other processes: each batch leases the one that it runs on.

Made by serve/assemble.py where a fleet has leases, in the place of turns.py's Taker. Not aware of: how leases are kept.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from dlproxy.fleet.leases import Leases
from dlproxy.policy.events import WantTurn


class LeaseTaker:
    """`instances`: their names, by the numbers of their workers. `on_turn(instance)`: a batch may start there now."""

    def __init__(self, leases: Leases, instances: Sequence[str], on_turn: Callable[[str], None]) -> None:
        self.needs: Mapping[str, float] = {}
        self.weight = 1.0
        """Turns are by time of waiting, whatever a model's share."""
        self._leases = leases
        self._numbers = {name: number for number, name in enumerate(instances)}
        self._names = list(instances)
        self._on_turn = on_turn
        self._unused: int | None = None
        self._held: dict[int, int] = {}  # by batch
        self._left = False
        leases.on_granted = self._granted
        leases.listen()
        asyncio.get_running_loop().add_reader(leases.fileno(), leases.hear)

    def leave(self) -> None:
        """The lane wants no turns any more."""
        if not self._left:
            self._left = True
            self.pass_on()
            for worker in self._held.values():
                self._leases.release(worker)
            self._held.clear()
            asyncio.get_running_loop().remove_reader(self._leases.fileno())

    def want(self, command: WantTurn) -> None:
        """As the lane says."""
        worker = self._leases.want([self._numbers[name] for name in command.instances])
        if worker is not None:
            self._granted(worker)

    def pass_on(self) -> None:
        """The turn was granted for nothing."""
        worker, self._unused = self._unused, None
        if worker is not None:
            self._leases.release(worker)

    def start(self, batch_id: int, now: float) -> None:
        """A batch begins with the turn that was granted, if one was."""
        worker, self._unused = self._unused, None
        if worker is not None:
            self._held[batch_id] = worker

    def first_part(self, batch_id: int, used_s: float) -> None:
        """The worker is busy until the answers have ended."""

    def end(self, batch_id: int, used_s: float) -> None:
        """A batch has ended, or was lost with its instance."""
        worker = self._held.pop(batch_id, None)
        if worker is not None:
            self._leases.release(worker)

    lose = end

    @property
    def is_at_rest(self) -> bool:
        """It holds nothing."""
        return self._unused is None and not self._held

    def _granted(self, worker: int) -> None:
        self._unused = worker
        if self._left:
            self.pass_on()
        else:
            self._on_turn(self._names[worker])
