"""Which gateway uses which worker now: a table in shared memory behind a lock of files, and a datagram to whoever waited.

Asked by serve/leasing.py for every batch of a model whose workers are shared, cleared by the keeper when a gateway has gone.
A table that were wrong would cost time, not answers: workers run one batch at a time. Not aware of: batches, lanes.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from time import monotonic

MOST_WORKERS = 64
MOST_GATEWAYS = 256
_OWNER = struct.Struct("<H")  # of a worker: the gateway's number + 1; 0: it is free
_WANT = struct.Struct("<dQ")  # of a gateway: since when it waits (0: it does not), and for which workers, a bit each
_OWNERS_BYTES = MOST_WORKERS * _OWNER.size
_BYTES = _OWNERS_BYTES + MOST_GATEWAYS * _WANT.size


class Leases:
    """The handle of one of `gateways` on the table in this folder. `on_granted` is called with a worker's number, on the event
    loop, when that was freed for it.

    Work-conserving and fair: a worker that is freed goes to the gateway that has waited longest for it, before its old owner
    may take it again; one that nobody waits for is taken at once.
    """

    def __init__(
        self, folder: Path, gateway: int, gateways: int, on_granted: Callable[[int], None] = lambda worker: None
    ) -> None:
        self._folder, self._gateway = folder, gateway
        self._wants_end = _OWNERS_BYTES + gateways * _WANT.size
        self._paths = [str(folder / str(number)) for number in range(gateways)]
        self._fd = os.open(folder / "leases", os.O_RDWR)
        self._table = mmap(self._fd, _BYTES)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self.on_granted = on_granted

    @staticmethod
    def create(folder: Path) -> None:
        """The table for a model's workers, in a folder of its own."""
        folder.mkdir(mode=0o700)
        with open(folder / "leases", "xb") as file:
            file.truncate(_BYTES)

    def listen(self) -> None:
        """From now on grants are heard of."""
        path = self._folder / str(self._gateway)
        path.unlink(missing_ok=True)  # of the process before
        self._socket.bind(str(path))

    def fileno(self) -> int:
        """Of what becomes readable with a grant; then `hear`."""
        return self._socket.fileno()

    def hear(self) -> None:
        """What was granted since."""
        while True:
            try:
                data = self._socket.recv(1)
            except (BlockingIOError, InterruptedError):
                return
            self.on_granted(data[0])

    def want(self, workers: Iterable[int]) -> int | None:
        """One of these that is free, from now on this gateway's; None: one will be granted. Replaces what was wanted before,
        which keeps its place in time.
        """
        wanted = 0
        with self._locked():
            for worker in workers:
                if not self._owner(worker):
                    self._set_owner(worker, self._gateway + 1)
                    self._set_want(self._gateway, 0.0, 0)
                    return worker
                wanted |= 1 << worker
            since, _ = self._want(self._gateway)
            self._set_want(self._gateway, since or monotonic(), wanted)
        return None

    def release(self, worker: int) -> None:
        """Its batch has ended: it is whoever's waits for it longest."""
        with self._locked():
            if self._owner(worker) == self._gateway + 1:
                self._pass_on(worker)

    def clear(self, gateway: int) -> None:
        """It has gone: what it held is free, and it waits for nothing."""
        with self._locked():
            self._set_want(gateway, 0.0, 0)
            for worker in range(MOST_WORKERS):
                if self._owner(worker) == gateway + 1:
                    self._pass_on(worker)

    def close(self) -> None:
        self._socket.close()
        self._table.close()
        os.close(self._fd)

    def _pass_on(self, worker: int) -> None:
        waiting = sorted((since, gateway) for gateway, since in self._waiting(worker))
        for _, gateway in waiting:
            try:
                self._socket.sendto(bytes([worker]), self._paths[gateway])
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):  # gone; or so busy that it reads nothing
                continue
            self._set_owner(worker, gateway + 1)
            self._set_want(gateway, 0.0, 0)
            return
        self._set_owner(worker, 0)

    def _waiting(self, worker: int) -> Iterator[tuple[int, float]]:
        for gateway, (since, wanted) in enumerate(_WANT.iter_unpack(self._table[_OWNERS_BYTES : self._wants_end])):
            if since and wanted >> worker & 1:
                yield gateway, since

    def _owner(self, worker: int) -> int:
        owner: int = _OWNER.unpack_from(self._table, worker * _OWNER.size)[0]
        return owner

    def _set_owner(self, worker: int, owner: int) -> None:
        _OWNER.pack_into(self._table, worker * _OWNER.size, owner)

    def _want(self, gateway: int) -> tuple[float, int]:
        since, wanted = _WANT.unpack_from(self._table, _OWNERS_BYTES + gateway * _WANT.size)
        return since, wanted

    def _set_want(self, gateway: int, since: float, wanted: int) -> None:
        _WANT.pack_into(self._table, _OWNERS_BYTES + gateway * _WANT.size, since, wanted)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The kernel gives it back when a process ends, however that is."""
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)
