"""One gateway process: a Server that listens on sockets it was given, and does what its keeper says.

Run by cli/gateway.py. Not aware of: other gateways, who asks on the control port (the keeper has asked).
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from time import monotonic
from typing import Any

from dlproxy import cores
from dlproxy.config import Config, ConfigError, ModelConfig
from dlproxy.fleet.lent import Lent
from dlproxy.instance.integrity import Trust
from dlproxy.instance.process.messages import Frames, frame
from dlproxy.instance.runtime import ModelError
from dlproxy.policy.quota import Quotas
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
    Sockets,
)
from dlproxy.serve.gateways.shares import share_of
from dlproxy.serve.listeners import GivenListeners, PortError
from dlproxy.serve.server import Server
from dlproxy.telemetry.event_log import LogError

READ_BYTES = 1 << 16
TELL_S = 0.05  # between two words about what was charged: as often are quotas right over all gateways
COUNT_S = 5.0  # between two words about what was counted: so much of it is lost with a process that is killed

log = logging.getLogger(__name__)


class Gateway:
    """`prepare` is called with its configuration before anything is done; `describe`: what is said of a server that is ready,
    line by line. To its models it is the Lender of worker processes.
    """

    def __init__(
        self, control: socket.socket, prepare: Callable[[Config], None], describe: Callable[[Server], list[str]]
    ) -> None:
        control.setblocking(False)
        self._socket = control
        self._prepare, self._describe = prepare, describe
        self._frames = Frames(Order)
        self._stop = asyncio.Event()
        self._telling = asyncio.Lock()
        self.slot = self.slots = 0
        self._asked: dict[int, asyncio.Future[Lent]] = {}
        self._asks = 0
        self._quotas: Quotas | None = None
        self._adopted: dict[int, dict[str, socket.socket]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the keeper says Drain or is gone, or SIGTERM."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        orders = await self._received()
        if not orders or not isinstance(orders[0], Begin):
            return
        begin = orders[0]
        self._begin = begin
        cores.share_among(len(begin.places))
        following = loop.create_task(self._follow_orders())
        try:
            config = share_of(begin.config, begin.number, len(begin.places))
            self._prepare(config)
            self.slot, self.slots = begin.slot, begin.slots
            server = self._server = Server(config, _listeners(begin), follows=begin.follows, lender=self)
            starting, stopped = loop.create_task(server.start()), loop.create_task(self._stop.wait())
            await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.wait([starting])
                return
            await starting
        except (ConfigError, LogError, ModelError, PortError) as error:
            await self._tell(Failed(str(error)))
            return
        self._quotas = server.models.share_quotas()
        await self._tell(Ready(self._describe(server)))
        telling = [loop.create_task(self._tell_charges()), loop.create_task(self._tell_counts())]
        await stopped
        for task in telling:
            task.cancel()
        await server.stop(self._tell_count)
        following.cancel()
        if server.models.hangs:
            logging.shutdown()
            os._exit(0)  # an orderly exit would wait for the load that never ends

    # Orders

    async def _follow_orders(self) -> None:
        try:
            while orders := await self._received():
                for order in orders:
                    if not isinstance(order, Begin):
                        self._obey(order)
        finally:
            self._stop.set()

    def _obey(self, order: Order) -> None:
        if isinstance(order, Drain):
            self._stop.set()
        elif isinstance(order, Charged):
            if self._quotas is not None:
                self._quotas.charged(order.charges, monotonic())
        elif isinstance(order, Loan | NoLoan):
            self._answer(order)
        elif isinstance(order, Adopt):
            self._start(self._adopt(order))
        elif isinstance(order, Follow):
            self._start(self._report(order.number, self._server.follow_now()))
        elif isinstance(order, Reload):
            self._start(self._report(order.number, self._server.serve_anew(lambda: order.config)))

    # Worker processes

    async def borrow(self, name: str, config: ModelConfig, trust: Trust, graphs: str) -> Lent:
        """As Lender has it."""
        self._asks += 1
        number = self._asks
        answer: asyncio.Future[Lent] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            await self._tell(Borrow(number, name, config, trust, graphs))
            return await answer
        finally:
            del self._asked[number]

    def give_back(self, loan: int) -> None:
        self._start(self._tell(GiveBack(loan)))

    def _answer(self, order: Loan | NoLoan) -> None:
        answer = self._asked.get(order.number)
        if answer is None or answer.done():  # it was not waited for
            if isinstance(order, Loan):
                self.give_back(order.lent.number)
        elif isinstance(order, Loan):
            answer.set_result(order.lent)
        else:
            answer.set_exception(ModelError(order.reason))

    async def _adopt(self, order: Adopt) -> None:
        if order.back:
            self._server.leave(self._adopted.pop(order.place, {}))
        elif order.place not in self._adopted:
            self._adopted[order.place] = _sockets(self._begin.places[order.place])
            await self._server.accept_from(self._adopted[order.place])

    async def _report(self, number: int, work: Awaitable[str]) -> None:
        try:
            problem = await work
        except (ConfigError, OSError) as error:  # of a store
            problem = str(error)
        await self._tell(Followed(number, problem))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("an order of the keeper could not be carried out", exc_info=task.exception())

    # The socket

    async def _received(self) -> list[Order]:
        """The next orders; none once the keeper has gone."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(self._socket, READ_BYTES)
            except OSError:
                return []
            orders = self._frames.feed(data)
            if orders or not data:
                return orders

    async def _tell(self, report: Report) -> None:
        async with self._telling:
            with suppress(OSError):  # a keeper that is gone: `_received` sees to that
                await asyncio.get_running_loop().sock_sendall(self._socket, frame(report))

    async def _tell_charges(self) -> None:
        """What was charged here, to the other gateways, as long as there are quotas."""
        while self._quotas is not None:
            await asyncio.sleep(TELL_S)
            charges = self._quotas.charges()
            if charges:
                await self._tell(Charged(charges))

    async def _tell_counts(self) -> None:
        while True:
            await self._tell_count()
            await asyncio.sleep(COUNT_S)

    async def _tell_count(self) -> None:
        await self._tell(Counted(self._server.metrics_page().decode()))


def _sockets(descriptors: Sockets) -> dict[str, socket.socket]:
    """Of these ports, which their own descriptors keep open."""
    return {knob: socket.socket(fileno=os.dup(fd)) for knob, fd in descriptors.items()}


def _listeners(begin: Begin) -> GivenListeners:
    return GivenListeners({**_sockets(begin.places[begin.number]), "control_port": socket.socket(fileno=begin.control)})
