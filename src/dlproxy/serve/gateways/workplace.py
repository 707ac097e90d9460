"""The worker processes that gateways share: started when the first asks for them, ended when the last has given them back.

Held by keeper.py. Not aware of: sockets, what gateways do with them (fleet/lent.py).
"""

import asyncio
import logging
from pathlib import Path

import msgspec
from msgspec import Struct, field

from dlproxy.fleet.leases import MOST_WORKERS, Leases
from dlproxy.fleet.lent import Lent
from dlproxy.fleet.processes import count_of, start_processes, threads_of
from dlproxy.fleet.supervised import SupervisedFleet
from dlproxy.instance.runtime import ModelError
from dlproxy.serve.gateways.messages import Borrow

log = logging.getLogger(__name__)


class _Shared(Struct, eq=False):
    """Of one model. `users`: slots of gateways."""

    number: int
    folder: Path
    starting: "asyncio.Task[SupervisedFleet]"
    lent: Lent
    users: set[int] = field(default_factory=set)
    leases: Leases | None = None


class Workplace:
    """`folder`: for sockets and tables of leases. `slots`: gateways that may hold leases at a time."""

    def __init__(self, folder: Path, slots: int) -> None:
        self._folder, self._slots = folder, slots
        self._shared: dict[bytes, _Shared] = {}
        self._made = 0

    async def borrow(self, slot: int, asked: Borrow) -> Lent:
        """For the gateway in this slot. Raises ModelError, ConfigError."""
        key = msgspec.msgpack.encode((asked.name, asked.config, asked.trust.model, asked.trust.version))
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = self._start(asked)
        shared.users.add(slot)
        try:
            await asyncio.shield(shared.starting)
        except BaseException:
            shared.users.discard(slot)
            if self._shared.get(key) is shared and shared.starting.done():
                del self._shared[key]  # whoever asks again has it tried again
            raise
        return shared.lent

    async def give_back(self, slot: int, loan: int) -> None:
        """Its last user ends the workers."""
        await self._left(slot, [shared for shared in self._shared.values() if shared.number == loan])

    async def gone(self, slot: int) -> None:
        """The gateway has ended, however: whatever it had is given back."""
        await self._left(slot, [shared for shared in self._shared.values() if slot in shared.users])

    async def close(self) -> None:
        for slot in {slot for shared in self._shared.values() for slot in shared.users}:
            await self.gone(slot)

    def _start(self, asked: Borrow) -> _Shared:
        self._made += 1
        folder = self._folder / f"workers-{self._made}"
        Leases.create(folder)
        count = count_of(asked.config)
        if count > MOST_WORKERS:
            raise ModelError(f"{asked.name}: gateways can share {MOST_WORKERS} worker processes of a model, not {count}")
        starting = start_processes(asked.name, asked.config, asked.trust, asked.graphs, str(folder))
        task = asyncio.create_task(starting, name=f"dlproxy-workers-{asked.name}")
        return _Shared(self._made, folder, task, Lent(self._made, str(folder), count, threads_of(asked.config, count)))

    async def _left(self, slot: int, left: list[_Shared]) -> None:
        for shared in left:
            if shared.leases is None:
                shared.leases = Leases(shared.folder, slot, self._slots)
            shared.leases.clear(slot)
            shared.users.discard(slot)
            if not shared.users:
                self._shared = {key: other for key, other in self._shared.items() if other is not shared}
                shared.leases.close()
                await self._end(shared)

    async def _end(self, shared: _Shared) -> None:
        if not shared.starting.done():
            shared.starting.cancel()
        await asyncio.wait([shared.starting])
        if not shared.starting.cancelled() and shared.starting.exception() is None:
            await shared.starting.result().stop()
