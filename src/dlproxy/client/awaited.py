"""`dlproxy.AsyncClient`: asks a server on the event loop of the caller; arrays in, arrays out.

Called by users, by the blocking client and by cli/infer.py. Not aware of: which protocol it is (http.py, grpc.py).
"""

import asyncio
import difflib
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from math import isnan
from types import TracebackType
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from dlproxy import tensors
from dlproxy.client.address import parse
from dlproxy.client.ask import Ask, CallError, ListedModel, Parts, Transport, checked_cache_control, checked_tenant
from dlproxy.client.retries import Retries
from dlproxy.client.settings import ClientSettings
from dlproxy.config import ConfigError
from dlproxy.config.secrets import KEY_VARIABLE, checked_key, with_key
from dlproxy.instance.remote.oip_model import Metadata
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.runtime import ModelError
from dlproxy.message import Failure, FailureKind, InferenceError, TensorSpec, invalid
from dlproxy.tensors import Answer

MOST_TIMEOUT_S = 1e7  # event loops and gRPC take no larger number
SOON_S = 1e-4  # timers may end a little early
_STALE = (FailureKind.INVALID_ARGUMENT, FailureKind.NOT_FOUND)  # what a model that was replaced may mean
_SEQUENCE: tuple[Literal["sequence_id", "sequence_start", "sequence_end"], ...]
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
_Result = TypeVar("_Result")


class Options(TypedDict, total=False):
    """Of a call. `outputs`: those that are wanted, all if none is named. `timeout_s`: from now; the server is told, too.

    `cache_control`: of answers that the server remembers, no-cache, no-store or max-age=SECONDS. `sequence_id`: whose state
    the request goes on with, of models that keep some; it is sent once, as to be run twice would change that.
    """

    outputs: Sequence[str]
    version: str
    timeout_s: float | None
    priority: int
    tenant: str
    cache_control: str
    sequence_id: int | str
    sequence_start: bool
    sequence_end: bool


class _Deadline:
    """Of one call."""

    def __init__(self, timeout_s: float) -> None:
        self._clock = asyncio.get_running_loop().time
        self._timeout_s = timeout_s
        self._at = self._clock() + timeout_s

    @property
    def left_s(self) -> float:
        """Raises InferenceError(LATE) once it has passed, or all but."""
        left_s = self._at - self._clock()
        if left_s <= SOON_S:
            raise self.late()
        return left_s

    def late(self) -> InferenceError:
        return InferenceError(Failure(FailureKind.LATE, f"no answer within {max(self._timeout_s, 0.0):g} s"))


class AsyncClient:
    """`async with AsyncClient("http://127.0.0.1:8000") as client: await client.infer("digits", {"image": x})`

    Connections are made when they are needed, and kept. Everything is awaited on the event loop that used it first.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        timeout_s: float = 60.0,
        connect_timeout_s: float = 2.0,
        connections: int = 100,
        retry_budget: float = 0.2,
        max_reply_bytes: int = 256 * 1024 * 1024,
        headers: Mapping[str, str] | None = None,
        api_key: str | None = None,
        ca_file: str = "",
        cert_file: str = "",
        key_file: str = "",
        verify_tls: bool = True,
    ) -> None:
        """`url`: also https://, grpc://HOST:8001, grpcs:// and unix:/PATH. `api_key`: or a token; None: that of the
        environment, DLPROXY_API_KEY; "": none. `cert_file`, `key_file`: of a certificate to show (PEM).

        Raises ValueError for what cannot be used.
        """
        if not (0.0 < timeout_s <= MOST_TIMEOUT_S and 0.0 < connect_timeout_s <= MOST_TIMEOUT_S):
            raise ValueError(f"timeout_s and connect_timeout_s are seconds, greater than 0 and at most {MOST_TIMEOUT_S:g}")
        if connections < 1 or retry_budget < 0.0:
            raise ValueError("connections must be at least 1, and retry_budget a share, 0 for no second tries")
        self.url = url
        remote = RemoteSettings(
            connect_timeout_s=connect_timeout_s,
            max_reply_bytes=max_reply_bytes,
            headers=_with_key(headers or {}, api_key),
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            verify_tls=verify_tls,
        )
        self._place = parse(url)
        self._settings = ClientSettings(remote=remote, connections=connections, timeout_s=timeout_s, retry_budget=retry_budget)
        self._make_transport = self._transport_class()
        try:
            self._transport = self._make_transport(self._place, self._settings)
        except ModelError as error:
            raise ValueError(str(error)) from None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def __aenter__(self) -> "AsyncClient":
        self._on_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End every connection; calls under way fail. A closed client takes no further calls."""
        self._closed = True
        if self._loop is asyncio.get_running_loop():
            for asking in list(self._asking.values()):
                asking.cancel()
            await self._transport.close()
        self._loop = None

    # Inference

    async def infer(self, model: str, inputs: Any, **options: Unpack[Options]) -> Answer:
        """One request. `inputs`: arrays, or what numpy makes arrays of, by name; the one itself where the model has one input.
        Numbers are converted within their kind. BYTES take bytes and str and come out as bytes; BF16 comes out as float32.

        Raises InferenceError. Cancelling cancels the request. Arrays in the answer are read-only.
        """
        self._on_loop()

        async def send(metadata: Metadata, deadline: _Deadline) -> Answer:
            ask = _ask(model, metadata, inputs, options)
            return await self._try(lambda left_s: self._transport.infer(ask, left_s), deadline, once=bool(ask.sequence))

        answer = await self._with_metadata(model, options, send)
        missing = [name for name in options.get("outputs", ()) if name not in answer]
        if missing:
            raise CallError(Failure(FailureKind.UNAVAILABLE, f"the server gave no output '{missing[0]}'"))
        return answer

    async def stream(self, model: str, inputs: Any, **options: Unpack[Options]) -> AsyncGenerator[Answer, None]:
        """`async for outputs in client.stream(...)`: the parts of the answer as the model gives them; a single one from a model
        that answers at once. Arguments and errors are those of `infer`; `timeout_s` is for the first part.

        Leave it early inside `async with contextlib.aclosing(...)`: then the model stops at once.
        """
        self._on_loop()

        async def send(metadata: Metadata, deadline: _Deadline) -> tuple[Parts, Answer | None]:
            ask = _ask(model, metadata, inputs, options)
            return await self._try(lambda left_s: self._begin(ask, left_s), deadline, once=bool(ask.sequence))

        parts, part = await self._with_metadata(model, options, send)
        try:
            while part is not None:
                yield part
                part = await parts.next(self._settings.timeout_s)
        finally:
            await parts.close()

    # What the server has

    async def models(self, *, timeout_s: float | None = None) -> list[ListedModel]:
        """Every model in every version. Raises InferenceError."""
        self._on_loop()
        return await self._try(self._transport.models, self._deadline(timeout_s))

    async def metadata(self, model: str, version: str = "", *, timeout_s: float | None = None) -> Metadata:
        """What the model takes and gives, asked anew. Raises InferenceError."""
        self._on_loop()
        return await self._learn((model, version), self._deadline(timeout_s))

    async def ready(self, model: str = "", version: str = "", *, timeout_s: float | None = None) -> bool:
        """Whether the model, or without one the server, can be asked now; False also if nobody answers."""
        self._on_loop()
        try:
            return await self._transport.ready(model, version, self._deadline(timeout_s).left_s)
        except InferenceError as error:
            if error.failure.kind in (FailureKind.UNAVAILABLE, FailureKind.NOT_FOUND, FailureKind.LATE):
                return False
            raise

    # Inside

    async def _with_metadata(
        self, model: str, options: Options, send: Callable[[Metadata, _Deadline], Awaitable[_Result]]
    ) -> _Result:
        """`send` with what is known of the model, and once more if that has changed since."""
        deadline = self._deadline(options.get("timeout_s"))
        key = (model, options.get("version", ""))
        known = self._metadata.get(key)
        if known is None:
            return await send(await self._learn(key, deadline), deadline)
        try:
            return await send(known, deadline)
        except InferenceError as error:
            if error.failure.kind not in _STALE:
                raise
            self._metadata.pop(key, None)
            found = await self._learn(key, deadline)
            if (found.inputs, found.outputs) == (known.inputs, known.outputs):
                raise
        return await send(found, deadline)

    async def _learn(self, key: tuple[str, str], deadline: _Deadline) -> Metadata:
        """Asks for the metadata, once for all who want it meanwhile."""
        asking = self._asking.get(key)
        if asking is None:
            work = self._try(lambda left_s: self._transport.metadata(*key, left_s), self._deadline(None))
            self._asking[key] = asking = asyncio.get_running_loop().create_task(work)
            asking.add_done_callback(lambda done: self._learned(key, done))
        await asyncio.wait({asking}, timeout=deadline.left_s)
        if not asking.done():
            raise deadline.late()
        if asking.cancelled():
            raise closed()
        return asking.result()

    def _learned(self, key: tuple[str, str], asking: "asyncio.Task[Metadata]") -> None:
        self._asking.pop(key, None)
        if not asking.cancelled() and asking.exception() is None:
            self._metadata[key] = asking.result()

    async def _begin(self, ask: Ask, left_s: float) -> tuple[Parts, Answer | None]:
        """The first part, and where the others come from."""
        deadline = _Deadline(left_s)
        parts = await self._transport.stream(ask, left_s)
        try:
            return parts, await parts.next(deadline.left_s)
        except BaseException:
            await parts.close()
            raise

    async def _try(self, send: Callable[[float], Awaitable[_Result]], deadline: _Deadline, *, once: bool = False) -> _Result:
        """As often as is safe, and as the budget and the deadline allow. Raises InferenceError."""
        clock = asyncio.get_running_loop().time
        self._retries.first(clock())
        tries = 0
        while True:
            tries += 1
            try:
                return await send(deadline.left_s)
            except CallError as error:
                again_after_s = None if once else error.again_after_s
                pause_s = self._retries.pause_s(tries, again_after_s, deadline.left_s, clock())
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)

    def _on_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise closed()
        if self._loop is loop:
            return
        if self._loop is not None:
            if not self._loop.is_closed():
                raise RuntimeError("this AsyncClient is used on another event loop; make one for each loop")
            self._transport = self._make_transport(self._place, self._settings)
        self._loop = loop
        self._retries = Retries(self._settings.retry_budget, random.Random().random)
        self._metadata: dict[tuple[str, str], Metadata] = {}
        self._asking: dict[tuple[str, str], asyncio.Task[Metadata]] = {}

    def _deadline(self, timeout_s: float | None) -> _Deadline:
        """Raises InferenceError for what is none."""
        if timeout_s is None:
            return _Deadline(self._settings.timeout_s)
        if isnan(timeout_s):
            raise invalid("timeout_s is nan; it must be seconds from now, or None")
        return _Deadline(min(timeout_s, MOST_TIMEOUT_S))

    def _transport_class(self) -> Callable[..., Transport]:
        if self._place.address.transport == "http":
            from dlproxy.client.http import HttpTransport

            return HttpTransport
        try:
            from dlproxy.client.grpc import GrpcTransport
        except ImportError as error:
            if (error.name or "").partition(".")[0] != "grpc":
                raise
            raise ValueError(f"{self.url} needs a package that is not installed: pip install 'dlproxy[grpc]'") from None
        return GrpcTransport


def _with_key(headers: Mapping[str, str], api_key: str | None) -> dict[str, str]:
    """Raises ValueError for a key that no header can carry."""
    key = os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key
    try:
        return with_key(headers, checked_key(key, "api_key") if key else "")
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _ask(model: str, metadata: Metadata, inputs: Any, options: Options) -> Ask:
    """Raises InferenceError for what the model does not take."""
    types = {each.name: each.datatype for each in metadata.inputs}
    if not isinstance(inputs, Mapping):
        if len(types) != 1:
            names = ", ".join(f"'{name}': ..." for name in types)
            raise invalid(f"model '{model}' has {len(types)} inputs; give each by its name: {{{names}}}")
        inputs = {next(iter(types)): inputs}
    given = []
    for name, value in inputs.items():
        if name not in types:
            raise _no_such("input", name, types, model)
        given.append(tensors.from_values(name, types[name], value))
    outputs = options.get("outputs", ())
    if isinstance(outputs, str):
        raise invalid(f"outputs is a text; name them in a list: outputs=[{outputs!r}]")
    known = [each.name for each in metadata.outputs]
    for name in outputs:
        if name not in known:
            raise _no_such("output", name, known, model)
    return Ask(
        model,
        options.get("version", ""),
        given,
        list(outputs),
        [TensorSpec(each.name, each.datatype, each.shape) for each in metadata.outputs],
        deadline=options.get("timeout_s") is not None,
        priority=options.get("priority", 0),
        tenant=checked_tenant(options.get("tenant", "")),
        cache_control=checked_cache_control(options.get("cache_control", "")),
        sequence={name: options[name] for name in _SEQUENCE if options.get(name)},
    )


def _no_such(what: str, name: Any, known: Any, model: str) -> InferenceError:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"these are: {', '.join(known) or 'none'}"
    return invalid(f"model '{model}' has no {what} '{name}'; {hint}")


def closed() -> InferenceError:
    """For whoever calls it nevertheless."""
    return InferenceError(Failure(FailureKind.UNAVAILABLE, "this client is closed"))
