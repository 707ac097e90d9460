"""Instances of one model in worker processes that the keeper of several gateways has started, and lends to each of them.

Joined by fleet/start.py. Not aware of: lanes, requests, how the keeper is asked.
"""

import asyncio
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.fleet.leases import Leases
from dlproxy.fleet.memory import resident_bytes
from dlproxy.fleet.names import instance_names, number_of
from dlproxy.fleet.processes import shared_at
from dlproxy.fleet.roster import Roster
from dlproxy.fleet.supervisor import Supervisor
from dlproxy.instance.integrity import Trust
from dlproxy.instance.process.instance import ProcessInstance, WorkerSettings
from dlproxy.instance.process.lent import LentWorker
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.instance.trial import Way
from dlproxy.instance.warmup import Calibration
from dlproxy.message import Signature

AGAIN_S = 0.05  # a worker that has died is on its way back: it is looked for so often


class Lent(Struct, frozen=True):
    """Workers of one model: so many, reached in `folder`, each with so many threads. `number`: of the loan."""

    number: int
    folder: str
    instances: int
    threads: int


class Lender(Protocol):
    """The keeper, as a gateway reaches it. `slot` of `slots`: this gateway among all that may hold leases."""

    slot: int
    slots: int

    async def borrow(self, name: str, config: ModelConfig, trust: Trust, graphs: str) -> Lent:
        """The same workers as everybody else who asks for the same. Raises ModelError."""
        ...

    def give_back(self, loan: int) -> None: ...


async def borrow(lender: Lender, name: str, config: ModelConfig, trust: Trust, graphs: str) -> "LentFleet":
    """Raises ModelError, ConfigError."""
    if config.autoscale != "off":  # run = "auto", which has become "process"
        raise ConfigError("autoscale: gateways share worker processes, whose number is fixed; set instances", "autoscale")
    lent = await lender.borrow(name, config, trust, graphs)
    settings = WorkerSettings(batch_timeout_s=config.batch_timeout_s, start_timeout_s=config.load_timeout_s)
    supervisor = Supervisor(
        name, lambda instance: LentInstance(instance, shared_at(lent.folder, number_of(instance)), settings)
    )
    try:
        signature = await supervisor.start(lent.instances)
        leases = Leases(Path(lent.folder), lender.slot, lender.slots)
    except BaseException:
        await supervisor.stop()
        lender.give_back(lent.number)
        raise
    return LentFleet(name, supervisor, signature, leases, lent, lender)


class LentInstance(ProcessInstance):
    """One that is reached at `path`. Its start waits for a worker that is not there yet."""

    def __init__(self, name: str, path: str, settings: WorkerSettings) -> None:
        super().__init__(name, PythonSpec("", {}), settings)
        self._path = path

    async def _open(self) -> LentWorker:
        while not _answers(self._path):  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(AGAIN_S)
        try:
            slots = self._take_slots()
            return LentWorker(self._path, self.name, [slot.fd for slot in slots], self._on_report, self._on_exit)
        except OSError as error:
            self._close_slots()
            raise ModelError(f"{self.name}: cannot use its worker: {error}") from error


class LentFleet:
    """Shared by gateways. `leases`: which of them uses which worker now."""

    run = "process"
    most_rows: int | None = None

    def __init__(
        self, name: str, supervisor: Supervisor, signature: Signature, leases: Leases, lent: Lent, lender: Lender
    ) -> None:
        self.signature = signature
        self.leases = leases
        self.instances = instance_names(name, lent.instances)
        found = (instance.calibration for instance in supervisor.instances if instance.calibration is not None)
        self.calibration = next(found, Calibration((), signature.batched))
        self.way = Way(inline=False, instances=lent.instances, threads=lent.threads)
        self._supervisor = supervisor
        self._lent = lent
        self._lender = lender

    def attach(self, roster: Roster) -> None:
        self._supervisor.attach(roster)

    async def scale(self, count: int) -> None:
        if count != self._lent.instances:
            raise ConfigError("gateways share these worker processes, whose number is fixed", "instances")

    async def stop(self) -> None:
        await self._supervisor.stop()
        self.leases.close()
        self._lender.give_back(self._lent.number)

    def elsewhere_bytes(self) -> int:
        """This gateway's part of it, half of the slots being for processes that come while others drain."""
        workers = [getattr(instance, "pid", None) for instance in self._supervisor.instances]
        return sum(resident_bytes(pid) for pid in workers if pid is not None) // max(self._lender.slots // 2, 1)

    def describe(self) -> str:
        count = self._lent.instances
        return f"in {count} worker process{'es' * (count > 1)} that all gateways share"


def _answers(path: str) -> bool:
    """Whether a worker listens there; one that has ended has left its socket's file."""
    try:
        LentWorker.probe(path)
    except OSError:
        return False
    return True
