"""dlproxy as a library: the same lanes, batching and checks without sockets.

Not aware of: HTTP.
"""

import asyncio
import difflib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from math import inf
from pathlib import Path
from threading import Lock
from time import monotonic
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

from msgspec import Struct

from dlproxy import tensors
from dlproxy.config import CacheConfig, ConfigError, ModelConfig, ServerConfig, model_of
from dlproxy.config.reading import override
from dlproxy.config.security import IntegrityConfig
from dlproxy.message import Failure, FailureKind, InferenceError, Request, Response, Tensor, invalid
from dlproxy.policy.stages import loading_order
from dlproxy.serve.assemble import LoadedModel
from dlproxy.serve.models import Models
from dlproxy.service import next_part
from dlproxy.tensors import Answer
from dlproxy.wire.catalog import NotServedError, ServedModel
from dlproxy.wire.endpoint import Endpoint, FrontDesk, in_parts
from dlproxy.wire.terms import Terms, of_arguments

NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})


class Model:
    """A model to serve. `name` defaults to the file's stem; further settings are those of [models.NAME] in dlproxy.toml."""

    def __init__(self, path: str | Path, *, name: str = "", slo: str = "", **settings: Any) -> None:
        """Raises ConfigError for an unknown setting or a value out of its range."""
        self.name = name or Path(path).stem.partition(":")[0]
        for setting in settings:
            if setting not in ModelConfig.__struct_fields__:
                raise ConfigError(f"model '{self.name}': there is no setting '{setting}'; {_nearest(setting, ModelConfig)}")
        try:
            self.config = model_of({"path": str(path), "slo": slo, **settings})
        except ConfigError as error:
            raise ConfigError(f"model '{self.name}': {error}") from None


SectionT = TypeVar("SectionT", CacheConfig, IntegrityConfig)


class Proxy:
    """`async with Proxy([Model("digits.onnx", slo="p99=20ms")]) as proxy: await proxy.infer("digits", {"image": x})`

    Everything is awaited on the event loop that entered it; `infer_sync` is for other threads.
    """

    def __init__(
        self,
        models: Sequence[Model] = (),
        *,
        drain_s: float = 30.0,
        cache: Mapping[str, Any] = NO_SETTINGS,
        integrity: Mapping[str, Any] = NO_SETTINGS,
    ) -> None:
        """`cache`: settings of [cache] in dlproxy.toml, for all models whose `cache` is on, such as {"memory_mb": 1024};
        `integrity`: those of [integrity].

        Raises ConfigError for settings that make no sense, and if two models have the same name and version.
        """
        keys = [(model.name, model.config.version) for model in models]
        for name, version in keys:
            if keys.count((name, version)) > 1:
                raise ConfigError(
                    f"two models are named '{name}' in version {version}; give them names or versions of their own"
                )
        self._wanted = models
        # The process is not ours: no findings are kept, and no core polls while it idles
        self._settings = ServerConfig(drain_s=drain_s, calibration_folder="", idle_poll_s=0.0)
        self._cache = _section("cache", CacheConfig(), cache)
        self._integrity = _section("integrity", IntegrityConfig(), integrity)
        self._loop: asyncio.AbstractEventLoop | None = None  # that it is open on
        self._open()
        self._calls: set[Future[Any]] = set()  # of other threads
        self._lock = Lock()  # around that set and the loop

    async def __aenter__(self) -> "Proxy":
        """Loads and warms up every model, pipelines after what they ask. Raises ModelError if one cannot be loaded."""
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("this Proxy is open already: use the one that was entered, and leave it once")
        self._loop = asyncio.get_running_loop()
        self._open()
        try:
            for place in loading_order([(model.name, model.config) for model in self._wanted]):
                model = self._wanted[place]
                await self._models.load(model.name, model.config)
        except BaseException:  # cancellation too: what is up already has threads
            await self._close()
            raise
        return self

    def _open(self) -> None:
        self._models = Models(self._settings, cache=self._cache, integrity=self._integrity)
        self._desk: FrontDesk[Endpoint] = FrontDesk(self._models.catalog, lambda endpoint: endpoint, clock=monotonic)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._check_loop("leave it")
        await self._close()

    async def _close(self) -> None:
        with self._lock:
            calls, self._loop = list(self._calls), None
        await self._models.drain()
        await asyncio.gather(*map(asyncio.wrap_future, calls), return_exceptions=True)  # their threads wait for this loop

    # Inference

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
        priority: int = 0,
        tenant: str = "",
        affinity: str = "",
        cache_control: str = "",
        sequence_id: int | str = 0,
        sequence_start: bool = False,
        sequence_end: bool = False,
    ) -> Answer:
        """One request; axis 0 of every input is the batch. Numbers of the declared kind are converted to the declared type,
        those of another kind (float for an integer) are refused. BF16 goes in and comes out as float32. BYTES take bytes and
        str, which goes as UTF-8; they come out as bytes, or as str where the model declares text.

        `affinity`: what it sticks to where the model's setting is sticky = "header:NAME". `cache_control`: of remembered
        answers, no-cache, no-store or max-age=SECONDS, as the header has it. `sequence_id`: whose state it goes on with.
        Returns the named outputs (all if none is named). Raises InferenceError. Cancelling cancels the request.
        """
        endpoint, request, terms = await self._prepared(
            model,
            inputs,
            version,
            outputs,
            timeout_s,
            whole=True,
            priority=priority,
            tenant=tenant,
            affinity=affinity,
            cache_control=cache_control,
            sequence_id=sequence_id,
            sequence_start=sequence_start,
            sequence_end=sequence_end,
        )
        response = await endpoint.infer(request, terms)
        return _arrays(endpoint, request, response.outputs, response)

    async def stream(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
        priority: int = 0,
        tenant: str = "",
        affinity: str = "",
        cache_control: str = "",
        sequence_id: int | str = 0,
        sequence_start: bool = False,
        sequence_end: bool = False,
    ) -> AsyncIterator[Answer]:
        """`async for outputs in proxy.stream(...)`: the parts of the answer, each computed when it is asked for; a single one
        from a model that answers at once. Arguments and errors are those of `infer`; `timeout_s` is for the first part.

        Leave it early inside `async with contextlib.aclosing(...)`: then the model stops at once.
        """
        endpoint, request, terms = await self._prepared(
            model,
            inputs,
            version,
            outputs,
            timeout_s,
            whole=False,
            priority=priority,
            tenant=tenant,
            affinity=affinity,
            cache_control=cache_control,
            sequence_id=sequence_id,
            sequence_start=sequence_start,
            sequence_end=sequence_end,
        )
        try:
            response = await endpoint.infer(request, terms)
            part: list[Tensor] | None = response.outputs
            while part is not None:
                yield _arrays(endpoint, request, part, response)
                part = None if response.rest is None else await next_part(response.rest)
        finally:
            endpoint.cancel(request)

    async def _prepared(
        self,
        model: str,
        inputs: Mapping[str, Any],
        version: str,
        outputs: Sequence[str],
        timeout_s: float | None,
        *,
        whole: bool,
        **asked: Any,
    ) -> tuple[Endpoint, Request, Terms]:
        """The checked request, and what is asked for besides an answer, as of_arguments has it. `whole`: not in parts."""
        if asyncio.get_running_loop() is not self._loop:
            self._check_loop("await it")
        try:
            endpoint = self._desk.find(model, version)
        except NotServedError as missing:
            endpoint, timeout_s = await self._find_once_up(missing, timeout_s)
        try:
            if whole and endpoint.model.signature.streams:
                raise in_parts(model)
            terms = of_arguments(timeout_s=timeout_s, **asked)
            return endpoint, _request(endpoint, inputs, outputs), terms
        except InferenceError as error:
            raise endpoint.refused(error) from None

    async def _find_once_up(self, missing: NotServedError, timeout_s: float | None) -> tuple[Endpoint, float]:
        """For a model that is loaded on demand; with what is left of the timeout."""
        waiting = self._models.catalog.waiting
        if waiting is None:
            raise InferenceError(missing.failure) from None
        left_s = await waiting.until_up(missing, inf if timeout_s is None else timeout_s)
        return self._desk.find(missing.name, missing.version), left_s

    def infer_sync(self, model: str, inputs: Mapping[str, Any], **options: Any) -> Answer:
        """`infer` for any other thread, which waits meanwhile; the loop goes on. `options`: those of `infer`."""
        with self._lock:
            loop = self._loop
            if loop is None:
                raise _closed()
            if not loop.is_running():
                raise RuntimeError("the event loop that this Proxy is open on does not run: nothing would answer")
            if _running_loop() is loop:
                raise RuntimeError("infer_sync would make the event loop wait for itself: await proxy.infer(...) here")
            call = asyncio.run_coroutine_threadsafe(self.infer(model, inputs, **options), loop)
            self._calls.add(call)
        try:
            return call.result()
        finally:
            call.cancel()  # if this thread was interrupted
            self._calls.discard(call)

    # Models

    @property
    def models(self) -> list[LoadedModel]:
        """What is up, with what the warm-ups found."""
        return list(self._models)

    async def load(self, model: Model) -> LoadedModel:
        """Serve another model, or another version of one, which then is the default. Calls go on meanwhile.

        Raises ConfigError, ModelError, and then nothing has changed.
        """
        self._check_loop("await it")
        return await self._models.load(model.name, model.config)

    async def replace(self, model: Model, *, version: str = "") -> LoadedModel:
        """Serve it in place of this version of the model of its name (empty: the default one); no call fails for that.

        Raises ConfigError, InferenceError, ModelError, and then nothing has changed. Returns when the old one has gone.
        """
        self._check_loop("await it")
        return await self._models.replace(model.name, version, model.config)

    async def unload(self, model: str, version: str = "") -> None:
        """Finish what is under way, and let go of the model's weights. Without a version, of all of them.

        Raises ConfigError, InferenceError, and then nothing has changed.
        """
        self._check_loop("await it")
        await self._models.unload(model, version)

    def _check_loop(self, what: str) -> None:
        if self._loop is None:
            raise _closed()
        if _running_loop() is not self._loop:
            raise RuntimeError(
                f"this Proxy is open on another event loop: {what} there, or call proxy.infer_sync(...) from this thread"
            )


def _request(endpoint: Endpoint, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Request:
    """Raises InferenceError."""
    checker = endpoint.checker
    wanted = [checker.output_index(name) for name in _names(outputs)] or checker.all_outputs
    given = [tensors.from_values(name, checker.spec_of(name).dtype, value) for name, value in _items(inputs, endpoint.model)]
    return endpoint.request(given, wanted)


def _arrays(endpoint: Endpoint, request: Request, outputs: Sequence[Tensor], response: Response) -> Answer:
    specs = endpoint.model.signature.outputs
    arrays = {
        tensor.name: tensors.to_values(tensor, text=specs[index].text)
        for index, tensor in zip(request.outputs, outputs, strict=True)
    }
    return Answer(arrays, response.cache, response.variant)


def _closed() -> InferenceError:
    return InferenceError(Failure(FailureKind.UNAVAILABLE, "this Proxy is not open: use it inside 'async with Proxy(...)'"))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    """Of this thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _section(name: str, section: SectionT, settings: Mapping[str, Any]) -> SectionT:
    """Raises ConfigError."""
    for setting in settings:
        if setting not in section.__struct_fields__:
            raise ConfigError(f"{name}: there is no setting '{setting}'; {_nearest(setting, type(section))}")
    return override(section, settings, lambda setting: f"{name}: {setting}")


def _nearest(setting: str, section: type[Struct]) -> str:
    near = difflib.get_close_matches(setting, section.__struct_fields__, n=1)
    return f"did you mean '{near[0]}'?" if near else f"these are: {', '.join(section.__struct_fields__)}"


def _names(outputs: Sequence[str]) -> Sequence[str]:
    if isinstance(outputs, str):
        raise invalid(f"outputs is a text; name them in a list: outputs=[{outputs!r}]")
    return outputs


def _items(inputs: Mapping[str, Any], served: ServedModel) -> Iterable[tuple[str, Any]]:
    if not isinstance(inputs, Mapping):
        names = ", ".join(f"'{spec.name}': ..." for spec in served.signature.inputs)
        raise invalid(f"inputs is of type {type(inputs).__name__}; give each input by its name: {{{names}}}")
    return inputs.items()
