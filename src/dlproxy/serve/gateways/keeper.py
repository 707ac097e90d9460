"""Keeps the gateways of a server: binds their ports, starts them, replaces those that die, lets them drain.

Made by cli/serve.py. It serves no inference itself, so it outlives whatever a model or a client does. Not aware of: what the
control port shows (control.py), how a process is started (process.py).
"""

import asyncio
import logging
import socket
import tempfile
from collections import Counter
from collections.abc import Coroutine, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
from msgspec import Struct, field

from dlproxy.config import Config, ConfigError
from dlproxy.fleet.tasks import end_all
from dlproxy.instance.runtime import ModelError
from dlproxy.policy.quota import Charge
from dlproxy.serve.gateways.messages import (
    Adopt,
    Begin,
    Borrow,
    Charged,
    Counted,
    Drain,
    Failed,
    Follow,
    Followed,
    GiveBack,
    Loan,
    NoLoan,
    Order,
    Ready,
    Reload,
    Report,
)
from dlproxy.serve.gateways.process import GatewayProcess, ending
from dlproxy.serve.gateways.totals import Totals
from dlproxy.serve.gateways.workplace import Workplace
from dlproxy.serve.listeners import Listeners

FIRST_DELAY_S, MOST_DELAY_S = 0.1, 10.0
HEALTHY_S = 5.0  # whoever lived so long did not die of its start: the next delay is the first again
KILL_S = 5.0  # beyond drain_s, for a gateway that does not end

log = logging.getLogger(__name__)


class Life(Struct, eq=False):
    """One process. `slot`: among those that may hold leases of workers. `control`: the path of its control port's Unix socket,
    of no other. `running`: of whom how many requests are under way, where that is limited; `told`: what was charged last, by
    the same keys.
    """

    process: GatewayProcess
    slot: int
    control: str
    ready: "asyncio.Future[list[str]]"
    since: float
    running: Counter[tuple[str, str]] = field(default_factory=Counter)
    told: dict[tuple[str, str], Charge] = field(default_factory=dict)


class Place(Struct, eq=False):
    """One of the gateways, now and after each restart: the same sockets, one process after the other.

    `life`: the one that serves; None while there is none. `adopter`: who accepts its connections meanwhile.
    """

    number: int
    sockets: dict[str, socket.socket]
    life: Life | None = None
    adopter: int | None = None
    restarts: int = 0


class Gateways:
    """`count` of them. `arguments`: of cli/gateway.py, how they log. `start` it, then `stop`."""

    def __init__(self, config: Config, count: int, arguments: Sequence[str]) -> None:
        self.config = config
        self.places: list[Place] = []
        self.lines: list[str] = []
        """What the first gateway found out about the models."""
        self.totals = Totals()
        self._count = count
        self._arguments = arguments
        self._lives: set[Life] = set()  # also those that drain
        self._keepers: list[asyncio.Task[None]] = []
        self._answers: dict[int, asyncio.Future[str]] = {}
        self._orders = 0
        self._started = 0
        self._restarting = asyncio.Lock()
        self._errands: set[asyncio.Task[None]] = set()
        self._slots = 2 * count  # while all are replaced by others, as many drain
        self._folder = tempfile.TemporaryDirectory(prefix="dlproxy-")  # for nobody else to enter
        self._workplace = Workplace(Path(self._folder.name), self._slots)
        if not config.server.store:  # one that starts anew must know what operators have changed
            self._remember_in(str(Path(self._folder.name, "store")))

    def _remember_in(self, store: str) -> None:
        self.config = msgspec.structs.replace(self.config, server=msgspec.structs.replace(self.config.server, store=store))

    @property
    def lives(self) -> list[Life]:
        """Those that serve, in the order of their places."""
        return [place.life for place in self.places if place.life is not None]

    async def start(self, listeners: Listeners) -> None:
        """Returns when all are ready. Raises ModelError, PortError, OSError, and none is left.

        The first one alone: what stands against the configuration is said once, and nothing disturbs what it measures.
        """
        others = [listeners.beside() for _ in range(self._count - 1)]
        first = listeners.take()
        self.places = [Place(number, sockets) for number, sockets in enumerate([first, *others])]
        try:
            self.places[0].life = life = await self._bring_up(self.places[0], follows=False)
            self.lines = life.ready.result()
            rest = [asyncio.create_task(self._bring_up(place)) for place in self.places[1:]]
            try:
                for place, started in zip(self.places[1:], await asyncio.gather(*rest), strict=True):
                    place.life = started
            except BaseException:
                await end_all(rest)
                raise
        except BaseException:
            await self.stop(0.0)
            raise
        self._keepers = [
            asyncio.create_task(self._keep(place), name=f"dlproxy-gateway-{place.number}") for place in self.places
        ]

    async def stop(self, drain_s: float) -> None:
        """No new connections, what is under way is finished (at most so many seconds), and all are gone."""
        await end_all(self._keepers)
        await asyncio.gather(*(self._let_drain(life, drain_s) for life in list(self._lives)))
        await self._workplace.close()
        await end_all(self._errands)
        for place in self.places:
            for listener in place.sockets.values():
                listener.close()
        self._folder.cleanup()

    def kill(self) -> None:
        """End all now, whatever is under way."""
        for life in self._lives:
            life.process.kill()
        self._folder.cleanup()

    async def restart(self) -> None:
        """Replace each by a new process, one after the other: it takes the place of the old one when it is ready, which drains.

        Raises ModelError if one cannot be started: then the old one stays, and those after it.
        """
        async with self._restarting:
            for place in self.places:
                fresh = await self._bring_up(place)
                old, place.life = place.life, fresh
                await self._give_back(place)
                log.info("gateway %d: process %d is ready, process %s drains", place.number, fresh.process.pid, _pid(old))
                if old is not None:
                    await self._let_drain(old, self.config.server.drain_s)

    async def follow(self) -> str:
        """Returns when every gateway is as it is wanted, or has tried: then, what stood against it first."""
        problems = await asyncio.gather(*(self._ordered(life, Follow) for life in self.lives))
        return next(filter(None, problems), "")

    async def reload(self, config: Config) -> None:
        """Serve the models of this configuration from now on; what stands against it is logged."""
        for life in self.lives[:1]:  # the others follow it
            await self._ordered(life, partial(Reload, config))
        self.config = msgspec.structs.replace(self.config, models=config.models)
        await self.follow()

    async def _ordered(self, life: Life, order: "type[Follow] | partial[Reload]") -> str:
        self._orders += 1
        number, answer = self._orders, asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            await life.process.send(order(number))
            await asyncio.wait((answer, life.process.ended), return_when=asyncio.FIRST_COMPLETED)
            return answer.result() if answer.done() else f"gateway process {life.process.pid} has ended"
        finally:
            del self._answers[number]

    # One place

    async def _keep(self, place: Place) -> None:
        """Replace its process for as long as this is not cancelled."""
        delay_s = FIRST_DELAY_S
        while True:
            if (life := place.life) is not None:
                status = await asyncio.shield(life.process.ended)
                if place.life is not life:  # it was replaced
                    continue
                place.life = None
                log.error("gateway %d: its process %s", place.number, ending(status))
                await self._have_adopted(place)
                if monotonic() - life.since >= HEALTHY_S:
                    delay_s = FIRST_DELAY_S
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, MOST_DELAY_S)
            async with self._restarting:
                if place.life is not None:
                    continue
                try:
                    place.life = await self._bring_up(place)
                except (ModelError, OSError) as error:
                    log.error("gateway %d: did not start: %s", place.number, error)
                    continue
            place.restarts += 1
            await self._give_back(place)
            log.warning("gateway %d: serves again, as process %d", place.number, place.life.process.pid)

    async def _bring_up(self, place: Place, *, follows: bool = True) -> Life:
        """A process that is ready. Raises ModelError, OSError."""
        loop = asyncio.get_running_loop()
        self._started += 1
        path = str(Path(self._folder.name, f"{self._started}.sock"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.bind(path)
            sockets = [{knob: listener.fileno() for knob, listener in each.sockets.items()} for each in self.places]
            descriptors = [fd for each in sockets for fd in each.values()]
            ready = loop.create_future()
            heard = partial(self._heard, ready)
            slot = self._free_slot()
            process = GatewayProcess(self._arguments, [*descriptors, control.fileno()], heard)
            life = Life(process, slot, path, ready, monotonic())
            self._lives.add(life)
            process.ended.add_done_callback(partial(self._gone, life))
            await process.send(Begin(self.config, place.number, sockets, control.fileno(), follows, slot, self._slots))
        try:
            await asyncio.wait((ready, process.ended), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise ModelError(f"gateway {place.number} {ending(process.ended.result())} before it was ready")
            ready.result()
        except BaseException:
            process.kill()
            raise
        await self._tell_running(life)
        return life

    def _free_slot(self) -> int:
        """Raises ModelError."""
        free = set(range(self._slots)) - {life.slot for life in self._lives}
        if not free:
            raise ModelError(f"{len(self._lives)} processes are there already, of which some still drain")
        return min(free)

    async def _let_drain(self, life: Life, drain_s: float) -> None:
        await life.process.send(Drain())
        longest_s = drain_s + self.config.node.leave_s + KILL_S
        if not (await asyncio.wait([life.process.ended], timeout=longest_s))[0]:
            log.warning("gateway process %d does not end, and is killed", life.process.pid)
            life.process.kill()
            await life.process.ended

    def _gone(self, life: Life, ended: object) -> None:
        self._lives.discard(life)
        self.totals.over(life.control)
        self._errand(self._workplace.gone(life.slot))
        Path(life.control).unlink(missing_ok=True)
        left = [
            msgspec.structs.replace(life.told[key], requests=0, rows=0, running=-count)
            for key, count in life.running.items()
            if count
        ]
        if left:
            self._errand(self._tell_others(life, left))

    # Whose new connections nobody would accept

    async def _have_adopted(self, place: Place) -> None:
        """By another one, as are those that it had adopted."""
        orphans = [place, *(each for each in self.places if each.adopter == place.number)]
        for each in orphans:
            each.adopter = None
            busy = Counter(other.adopter for other in self.places)
            able = [other for other in self.places if other.life is not None]
            if able and each.life is None:
                adopter = min(able, key=lambda other: busy[other.number])
                each.adopter = adopter.number
                await self._send(adopter, Adopt(each.number))

    async def _give_back(self, place: Place) -> None:
        """It accepts its connections itself again."""
        adopter, place.adopter = place.adopter, None
        if adopter is not None:
            await self._send(self.places[adopter], Adopt(place.number, back=True))

    async def _send(self, place: Place, order: Order) -> None:
        if place.life is not None:
            await place.life.process.send(order)

    # What they say

    def _heard(self, ready: "asyncio.Future[list[str]]", report: Report) -> None:
        if isinstance(report, Ready):
            ready.set_result(report.lines)
        elif isinstance(report, Failed):
            ready.set_exception(ModelError(report.reason))
        elif isinstance(report, Followed):
            answer = self._answers.get(report.number)
            if answer is not None and not answer.done():
                answer.set_result(report.problem)
        elif (life := next((life for life in self._lives if life.ready is ready), None)) is None:
            return
        elif isinstance(report, Counted):
            self.totals.told(life.control, report.page)
        elif isinstance(report, Borrow):
            self._errand(self._lend(life, report))
        elif isinstance(report, GiveBack):
            self._errand(self._workplace.give_back(life.slot, report.loan))
        else:
            for charge in report.charges:
                key = charge.of, charge.name
                life.running[key] += charge.running
                life.told[key] = charge
            self._errand(self._tell_others(life, report.charges))

    async def _lend(self, life: Life, asked: Borrow) -> None:
        try:
            await life.process.send(Loan(asked.number, await self._workplace.borrow(life.slot, asked)))
        except (ConfigError, ModelError, OSError) as error:
            await life.process.send(NoLoan(asked.number, str(error)))

    def _errand(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._errands.add(task)
        task.add_done_callback(self._errand_done)

    def _errand_done(self, task: asyncio.Task[None]) -> None:
        self._errands.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("what a gateway asked for could not be done", exc_info=task.exception())

    async def _tell_others(self, life: Life, charges: list[Charge]) -> None:
        for other in list(self._lives):
            if other is not life and other.ready.done():
                await other.process.send(Charged(charges))

    async def _tell_running(self, life: Life) -> None:
        """To a new one, what the others have under way of whoever may have only so much."""
        charges = [
            msgspec.structs.replace(other.told[key], requests=0, rows=0, running=count)
            for other in self._lives
            if other is not life
            for key, count in other.running.items()
            if count
        ]
        if charges:
            await life.process.send(Charged(charges))


def _pid(life: Life | None) -> str:
    return "" if life is None else str(life.process.pid)
