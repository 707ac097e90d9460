"""Keeps so many instances of a model alive: starts them, replaces those that are lost, grows and shrinks their number.

Made by fleet/supervised.py, one per model whose instances can be lost. Not aware of: what an instance is, requests, lanes.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from msgspec import Struct

from dlproxy.fleet.names import instance_names
from dlproxy.instance import Instance
from dlproxy.instance.padding import without_padding
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.warmup import Calibration
from dlproxy.message import Signature, text_of

FIRST_DELAY_S = 0.1
MOST_DELAY_S = 10.0
HEALTHY_S = 1.0  # whoever lived so long did not die of its start: the next delay is the first again

log = logging.getLogger(__name__)


class Startable(Instance, Protocol):
    """An instance with one life."""

    on_lost: Callable[[str], None] | None
    """Called once, on the event loop, with the reason, if it ends without having been told to."""
    calibration: Calibration | None
    """What its start measured of the model, if it measured anything."""

    async def start(self) -> Signature:
        """Become able to run batches. Raises ModelError; cancelling it ends what was started."""
        ...

    def adopt(self, signature: Signature) -> None:
        """Gather by this one, which another instance found of the same model: what they measured may differ."""
        ...


class Host(Protocol):
    """Who gives the instances their batches and knows how each is: a Roster before a Driver."""

    def instance_starts(self, instance: Instance) -> None: ...

    def instance_failed(self, instance: Instance, reason: str) -> None:
        """Its start did."""
        ...

    def add_instance(self, instance: Instance) -> None:
        """It has started."""
        ...

    def lose_instance(self, name: str, reason: str, *, crashed: bool) -> None:
        """It was added and has died."""
        ...

    def instance_waits(self, name: str, delay_s: float) -> None:
        """It will be started then."""
        ...

    def retire_instance(self, name: str) -> None:
        """Added or not, it will not come back: no more batches for it; one that runs is let finish."""
        ...

    def kept(self, name: str) -> int:
        """Sequences whose state would be gone with it: those that keep the fewest go first."""
        ...


class _Place(Struct, eq=False):
    """One of the `count` instances, now and after each restart: the same name, one life after the other."""

    name: str
    instance: Startable | None = None
    lost: asyncio.Future[str] | None = None  # of this life
    known: bool = False  # to the host
    keeper: asyncio.Task[None] | None = None


class Supervisor:
    """`make` gives an instance of this name, not started. The host is told of all that are up once there is one."""

    def __init__(self, model: str, make: Callable[[str], Startable]) -> None:
        self._model = model
        self._make = make
        self._host: Host | None = None
        self._signature: Signature | None = None
        self._places: dict[str, _Place] = {}
        self._changing = asyncio.Lock()
        self._starting: asyncio.Future[list[BaseException | None]] | None = None
        self._stopping = False

    @property
    def instances(self) -> list[Startable]:
        """Those that are up, in order of their names' numbers."""
        return [place.instance for place in self._places.values() if place.instance is not None]

    async def start(self, count: int) -> Signature:
        """Start the first instance and then the others side by side; their signature. Raises ModelError, and none is left.

        The first alone: what it says of a bad model is said once, and nothing disturbs it if it measures how quick it is.
        """
        assert count >= 1
        async with self._changing:
            try:
                await self._grow(1)
                await self._grow(count)
            except BaseException:
                await self._shrink(list(self._places.values()))
                raise
        assert self._signature is not None
        return self._signature

    def attach(self, host: Host) -> None:
        """From now on `host` hears of every instance, beginning with how each is."""
        self._host = host
        for place in self._places.values():
            if place.instance is not None:
                self._tell(place, place.instance)
            else:  # lost while the others started, and on its way back
                host.instance_waits(place.name, 0.0)

    async def scale(self, count: int) -> None:
        """Keep so many from now on; returns when they are up, and when those too many have finished their batches.

        Raises ModelError if a further one cannot be started: then those stay that were.
        """
        assert count >= 0
        async with self._changing:
            if self._stopping:
                raise ModelError(f"{self._model} is being stopped")
            await self._grow(count)
            newest = list(self._places.values())[::-1]
            down_first = sorted(newest, key=lambda place: (place.instance is not None, self._kept(place)))
            await self._shrink(down_first[: max(len(down_first) - count, 0)])

    async def replace(self, names: Collection[str]) -> None:
        """Start others beside these, and let these go when those are up. Those that are gone already are replaced as ever.

        Raises ModelError if the others cannot be started: then these stay.
        """
        async with self._changing:
            leaving = [place for place in self._places.values() if place.name in names]
            if self._stopping or not leaving:
                return
            await self._grow(len(self._places) + len(leaving))
            await self._shrink(leaving)

    async def stop(self) -> None:
        """Restart no more, let running batches finish, stop all. What the host has stopped already is fine too."""
        self._stopping = True
        if self._starting is not None:
            self._starting.cancel()
        async with self._changing:
            await self._shrink(list(self._places.values()))

    # Growing and shrinking

    def _kept(self, place: _Place) -> int:
        return 0 if self._host is None else self._host.kept(place.name)

    async def _grow(self, count: int) -> None:
        names = [name for name in instance_names(self._model, count) if name not in self._places]
        fresh = [_Place(name) for name in names[: max(count - len(self._places), 0)]]
        self._places.update((place.name, place) for place in fresh)
        try:
            self._starting = asyncio.gather(*map(self._bring_up, fresh), return_exceptions=True)
            problems = [outcome for outcome in await self._starting if outcome is not None]
            if problems:
                raise problems[0]
        except BaseException as error:
            await self._shrink(fresh)
            if self._stopping and isinstance(error, asyncio.CancelledError):
                raise ModelError(f"{self._model} was stopped meanwhile") from None
            raise
        finally:
            self._starting = None
        for place in fresh:
            place.keeper = asyncio.create_task(self._keep(place), name=f"dlproxy-{place.name}")

    async def _shrink(self, places: Iterable[_Place]) -> None:
        await asyncio.gather(*(self._let_go(place) for place in places))

    async def _let_go(self, place: _Place) -> None:
        if place.keeper is not None:
            place.keeper.cancel()
            await asyncio.wait([place.keeper])
        if self._host is not None:
            self._host.retire_instance(place.name)
        if place.instance is not None:
            await place.instance.stop()
            log.info("%s: stopped", place.name)
        self._places.pop(place.name, None)

    # One place

    async def _keep(self, place: _Place) -> None:
        """Replace its instance for as long as this is not cancelled."""
        loop = asyncio.get_running_loop()
        delay_s = FIRST_DELAY_S
        while True:
            if place.instance is not None and place.lost is not None:
                up_at = loop.time()
                await place.lost
                if loop.time() - up_at >= HEALTHY_S:
                    delay_s = FIRST_DELAY_S
            log.info("%s: starts again in %g s", place.name, delay_s)
            if self._host is not None:
                self._host.instance_waits(place.name, delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, MOST_DELAY_S)
            try:
                await self._bring_up(place)
            except ModelError as error:
                log.error("%s: did not start: %s", place.name, error)
            except Exception:  # whatever it was, the next try may do better, and nobody else would make one
                log.exception("%s: did not start", place.name)

    async def _bring_up(self, place: _Place) -> None:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        instance = self._make(place.name)
        lost = place.lost = loop.create_future()
        instance.on_lost = lambda reason: self._lost(place, lost, reason)
        log.info("%s: starting", place.name)
        if self._host is not None:
            self._host.instance_starts(instance)
        try:
            await self._start(instance, lost)
        except Exception as error:  # whoever asked for it handles it
            if self._host is not None:
                self._host.instance_failed(instance, text_of(error))
            raise
        place.instance = instance
        log.info("%s: up after %.2f s", place.name, loop.time() - began_at)
        self._tell(place, instance)

    async def _start(self, instance: Startable, lost: "asyncio.Future[str]") -> None:
        signature = await instance.start()
        if lost.done() and not lost.cancelled():
            raise ModelError(f"it was lost as soon as it had started: {lost.result()}")
        if self._signature is None:
            self._signature = signature
        elif signature == self._signature:
            return
        elif without_padding(signature) == without_padding(self._signature):
            instance.adopt(self._signature)
        else:
            await instance.stop()
            raise ModelError("its inputs or outputs are not those that are served: has the model's file changed?")

    def _lost(self, place: _Place, lost: asyncio.Future[str], reason: str) -> None:
        log.warning("%s: lost: %s", place.name, reason)
        known, place.known, place.instance = place.known, False, None
        if known and self._host is not None:
            self._host.lose_instance(place.name, reason, crashed=True)
        if not lost.done():  # cancelled: nobody waits for it, it was leaving anyway
            lost.set_result(reason)

    def _tell(self, place: _Place, instance: Startable) -> None:
        if self._host is not None and not place.known:
            place.known = True
            self._host.add_instance(instance)
