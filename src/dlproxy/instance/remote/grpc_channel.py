"""gRPC to one upstream: one connection, on which calls run side by side. Made by protocols.py; the one file that imports grpc.

Not aware of: models, what the messages hold.
"""

import asyncio
import logging
import os
import re
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, cast
from urllib.parse import unquote

from msgspec import Struct

from dlproxy.instance.remote.address import Address
from dlproxy.instance.remote.channel import CACHE, VARIANT, Fields, checked_headers
from dlproxy.instance.remote.failures import UpstreamError, shortened
from dlproxy.instance.remote.rpc import OK, Rpc, RpcReply
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.remote.tls import authorities_of, shown_of
from dlproxy.instance.runtime import ModelError
from dlproxy.message import FailureKind
from dlproxy.policy.hops import LOAD

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read when it is imported; every problem reaches us as an exception

import grpc
from grpc import ChannelConnectivity, StatusCode, aio

_NAME = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)")  # of metadata that is text
_WHY = re.compile(r"(?:.*last error: )?(?:[A-Z_]+: )?(?:ipv[46]:\S+: )?(?P<why>.*)", re.DOTALL)  # without the addresses tried
CLOSED = "the connection to the upstream is closed"
_SETTLES_S = 0.05
"""A call on a connection that breaks can end before the channel's state says so, by up to a few ms."""

log = logging.getLogger(__name__)


class _Connection(Struct, eq=False):
    """`watch` ends when it breaks. `retired`: takes no further call, and is closed once its last one has ended."""

    channel: Any
    calls: int = 0
    answers: int = 0
    watch: "asyncio.Task[None] | None" = None
    retired: bool = False


class GrpcChannel:
    """After a failure the next call connects anew: grpc itself would pause, and answer in the upstream's place meanwhile."""

    def __init__(self, address: Address, settings: RemoteSettings, on_dropped: Callable[[], None]) -> None:
        """Raises ModelError for headers that cannot be sent, and for authorities that cannot be used."""
        self._target = f"dns:///{address.place}"
        headers = _checked(settings)
        agent, host = headers.pop("user-agent", "dlproxy"), headers.pop("host", "")
        self._metadata = list(headers.items())
        self._credentials = _credentials(settings) if address.tls else None
        self._max_reply_bytes = settings.max_reply_bytes
        self._options = [
            ("grpc.max_receive_message_length", settings.max_reply_bytes),
            ("grpc.min_reconnect_backoff_ms", round(settings.connect_timeout_s * 1000)),  # connecting may take so long
            ("grpc.use_local_subchannel_pool", 1),  # shares neither connections nor pauses with another instance
            ("grpc.enable_http_proxy", 0),  # as over HTTP: the address says where to go
            ("grpc.primary_user_agent", agent),
            *([("grpc.default_authority", host or address.authority)] if host or address.at else []),  # HTTP/2's Host header
            *([("grpc.ssl_target_name_override", address.host)] if address.at else []),
        ]
        self._on_dropped = on_dropped
        self._current: _Connection | None = None
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def connections(self) -> int:
        return len(self._open)

    def widen(self, batches: int) -> None:
        """One connection carries them all."""

    def call(
        self, ask: Rpc, done: Callable[[RpcReply | UpstreamError], None], *, timeout_s: float, fields: Fields = ()
    ) -> None:
        self.begin(self._call(ask, done, timeout_s, self._metadata_with(fields)))

    def _metadata_with(self, fields: Fields) -> list[tuple[str, str]]:
        if not fields:
            return self._metadata
        fixed = dict(self._metadata)
        return [*self._metadata, *[field for field in fields if field[0] not in fixed]]

    def stream(self, ask: Rpc, *, timeout_s: float, fields: Fields = ()) -> "GrpcMessages":
        return GrpcMessages(self, ask, timeout_s, self._metadata_with(fields))

    async def fetch(self, ask: Rpc, *, timeout_s: float) -> RpcReply:
        outcome = await self._outcome(ask, timeout_s, self._metadata)
        if isinstance(outcome, UpstreamError):
            raise outcome
        return outcome

    async def close(self) -> None:
        self._closed = True
        self._current = None
        while self._open:
            await self._end(self._open.pop())
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # Calls

    async def _call(
        self, ask: Rpc, done: Callable[[RpcReply | UpstreamError], None], timeout_s: float, metadata: Fields
    ) -> None:
        try:
            outcome = await self._outcome(ask, timeout_s, metadata)
        except Exception as error:  # a mistake in here, or in grpc, must not lose the batch
            log.exception("upstream %s could not be called", self._target)
            outcome = _unavailable(f"{type(error).__name__}: {error}")
        done(outcome)

    async def _outcome(self, ask: Rpc, timeout_s: float, metadata: Fields) -> RpcReply | UpstreamError:
        if self._closed:
            return _unavailable(CLOSED)
        connection = self.taken()
        try:
            return await self._answer(connection, ask, timeout_s, metadata)
        finally:
            self.free(connection)

    def taken(self) -> _Connection:
        """For one call more."""
        connection = self._connected()
        connection.calls += 1
        return connection

    def free(self, connection: _Connection) -> None:
        """The call has ended."""
        connection.calls -= 1
        if connection.retired and not connection.calls and connection in self._open:
            self._open.discard(connection)
            self.begin(self._end(connection))

    async def _answer(self, connection: _Connection, ask: Rpc, timeout_s: float, metadata: Fields) -> RpcReply | UpstreamError:
        metadata = [*metadata, *ask.metadata]
        call = connection.channel.unary_unary(ask.method)(b"".join(ask.parts), metadata=metadata, timeout=ask.deadline_s)
        outcome = cast("RpcReply | UpstreamError", await self.awaited(connection, call, timeout_s))
        if isinstance(outcome, RpcReply) and outcome.status == OK:
            told = dict(await call.trailing_metadata())
            outcome.cache, outcome.variant = told.get(CACHE, ""), unquote(told.get(VARIANT, ""))
            outcome.load = told.get(LOAD, "")
        return outcome

    async def awaited(
        self, connection: _Connection, message: Awaitable[Any], timeout_s: float
    ) -> RpcReply | UpstreamError | None:
        """What comes of a call; None if it is the end of a stream.

        Errors are given back: raised, their traceback would keep the call, and that the connection.
        """
        answers = connection.answers
        try:
            async with asyncio.timeout(timeout_s):
                found = await message
        except TimeoutError:
            self._silent(connection, answers)
            return _unavailable(f"no answer from the upstream within {timeout_s:g} s")
        except aio.AioRpcError as error:
            if error.code() is StatusCode.DEADLINE_EXCEEDED:
                self._silent(connection, answers)
            return await self._refused(connection, error.code(), error.details() or "")
        except asyncio.CancelledError:
            if cast("asyncio.Task[Any]", asyncio.current_task()).cancelling():
                raise
            return _unavailable("the connection to the upstream was closed here")
        connection.answers += 1
        if connection.watch is None and not connection.retired:
            connection.watch = self.begin(self._watch(connection))
        return None if found is aio.EOF else RpcReply(OK, found)

    async def _refused(self, connection: _Connection, status: Any, words: str) -> RpcReply | UpstreamError:
        """An answer proper, unless grpc itself said no."""
        state = connection.channel.get_state()
        if status is StatusCode.UNAVAILABLE and state is ChannelConnectivity.READY:
            with suppress(TimeoutError):
                async with asyncio.timeout(_SETTLES_S):
                    await connection.channel.wait_for_state_change(ChannelConnectivity.READY)
            state = connection.channel.get_state()
        if status is StatusCode.UNAVAILABLE and state is ChannelConnectivity.TRANSIENT_FAILURE:
            self._retire(connection)
            match = _WHY.fullmatch(words)
            return _unavailable(f"no connection to the upstream: {shortened(match['why'] if match else words)}", gone=True)
        if status is StatusCode.UNAVAILABLE and state is not ChannelConnectivity.READY:
            return _unavailable(f"the connection to the upstream broke: {shortened(words)}")
        if status is StatusCode.RESOURCE_EXHAUSTED and f"vs. {self._max_reply_bytes})" in words:
            return _unavailable(f"the upstream's answer cannot be used: it has more than {self._max_reply_bytes} bytes")
        return RpcReply(status.name, words=words)

    # Connections

    def _connected(self) -> _Connection:
        if self._current is None:
            if self._credentials is None:
                channel = aio.insecure_channel(self._target, options=self._options)
            else:
                channel = aio.secure_channel(self._target, self._credentials, options=self._options)
            self._current = _Connection(channel)
            self._open.add(self._current)
        return self._current

    def _silent(self, connection: _Connection, answers: int) -> None:
        """A call got no answer in time. If none did, the way may be cut: it can take TCP a quarter of an hour to say so."""
        if connection.answers == answers:
            self._retire(connection)

    def _retire(self, connection: _Connection) -> None:
        connection.retired = True
        if self._current is connection:
            self._current = None

    async def _watch(self, connection: _Connection) -> None:
        await connection.channel.wait_for_state_change(ChannelConnectivity.READY)
        connection.watch = None
        if not connection.retired:
            self._on_dropped()

    async def _end(self, connection: _Connection) -> None:
        if connection.watch is not None:
            connection.watch.cancel()
        await connection.channel.close()

    def begin(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def closed(self) -> bool:
        return self._closed


class GrpcMessages:
    """The messages of one call that has many. A Messages."""

    def __init__(self, channel: GrpcChannel, ask: Rpc, timeout_s: float, metadata: Fields) -> None:
        self._channel = channel
        self._metadata = metadata
        self._ask = ask
        self._timeout_s = timeout_s
        self._connection: _Connection | None = None
        self._call: Any = None
        self._stopped = False

    def ask(self, done: Callable[[RpcReply | UpstreamError | None], None]) -> None:
        self._channel.begin(self._next(done))

    def stop(self) -> None:
        self._stopped = True
        if self._call is not None:
            self._call.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            self._channel.free(connection)

    async def _next(self, done: Callable[[RpcReply | UpstreamError | None], None]) -> None:
        try:
            outcome = None if self._stopped else await self._read()
        except Exception as error:  # as in GrpcChannel._call
            log.exception("an answer of an upstream could not be read")
            outcome = _unavailable(f"{type(error).__name__}: {error}")
        if self._stopped:
            outcome = None
        elif not isinstance(outcome, RpcReply):
            self.stop()
        done(outcome)

    async def _read(self) -> RpcReply | UpstreamError | None:
        channel = self._channel
        if channel.closed:
            return _unavailable(CLOSED)
        if self._connection is None:
            self._connection = channel.taken()
            asked = iter((b"".join(self._ask.parts),))
            metadata = [*self._metadata, *self._ask.metadata]
            self._call = self._connection.channel.stream_stream(self._ask.method)(asked, metadata=metadata)
        return await channel.awaited(self._connection, self._call.read(), self._timeout_s)


def _unavailable(message: str, *, gone: bool = False) -> UpstreamError:
    return UpstreamError(message, FailureKind.UNAVAILABLE, gone=gone)


def _checked(settings: RemoteSettings) -> dict[str, str]:
    headers = checked_headers(settings.headers)
    for name in headers:
        if not _NAME.fullmatch(name):
            raise ModelError(
                f"header {name!r} cannot be sent by gRPC: names are letters, digits, '_', '-' and '.', "
                "do not begin with grpc- and do not end in -bin"
            )
    return headers


def _credentials(settings: RemoteSettings) -> Any:
    if not settings.verify_tls:
        raise ModelError("gRPC over TLS always verifies the server's certificate: name its authority in ca_file")
    return grpc.ssl_channel_credentials(authorities_of(settings), *shown_of(settings))
