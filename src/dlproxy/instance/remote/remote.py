"""An instance whose batches run on another model server. Knows that server's health and says when it goes and comes.

Made by fleet/upstreams.py. Not aware of: lanes; which protocol it is (codec.py), over which transport (channel.py).
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from time import monotonic, perf_counter
from typing import Any, cast

import msgspec

from dlproxy.instance.batch import BatchResult
from dlproxy.instance.remote.address import Address
from dlproxy.instance.remote.channel import DEADLINE, Answer, Fields, trace_fields
from dlproxy.instance.remote.codec import PartsCodec, UpstreamModel
from dlproxy.instance.remote.failures import UpstreamError, failed
from dlproxy.instance.remote.health import Watch
from dlproxy.instance.remote.parts import RemoteParts
from dlproxy.instance.remote.protocols import channel_for, codec_for
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.runtime import ModelError
from dlproxy.message import FailureKind, Request, Signature
from dlproxy.policy.hops import NO_LOAD, RETRIES, VIA, Load, left_s, load_in, way_on

ROUND_TRIPS = 8  # checks by which the distance to an upstream is told
DEFAULTS = RemoteSettings()


class RemoteInstance:
    """Takes `capacity` batches at a time, and checks the upstream beside them.

    `on_lost` and `on_up` are called on the event loop: the lane must no longer, or may again, dispatch to it. A batch that
    fails because the upstream is gone is reported after `on_lost`. `on_leaves`: as `on_lost`, but what runs there ends well.
    `retries`: whether what fails there is run again from here. `described`: what `start` would find out.
    """

    inline = False

    def __init__(
        self,
        name: str,
        address: Address,
        settings: RemoteSettings = DEFAULTS,
        *,
        described: UpstreamModel | None = None,
        draw: Callable[[], float] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Raises ModelError for settings that cannot be used."""
        self.name = name
        self.address = address
        self.on_lost: Callable[[str], None] | None = None
        self.on_up: Callable[[], None] | None = None
        self.on_leaves: Callable[[str], None] | None = None
        self.retries: Callable[[], bool] = lambda: False
        self.zone = address.zone
        """Of the upstream, as it said last."""
        self._clock = clock
        self._round_trips: deque[float] = deque(maxlen=ROUND_TRIPS)
        self._settings = settings
        self._codec = codec_for(address, settings)
        self._watch = Watch(
            f"{name} ({address.place})",
            self._probe,
            settings,
            on_lost=self._tell_lost,
            on_up=self._tell_up,
            on_leaves=self._tell_leaves,
            draw=draw or random.Random().random,
        )
        self._channel = channel_for(address, settings, self._watch.suspect)
        self._model: UpstreamModel | None = None
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        if described is not None:
            self._take(described)

    # What it is

    @property
    def model(self) -> UpstreamModel:
        """What the upstream said of its model. Known once it was started, or told."""
        assert self._model is not None, f"{self.name} was not started"
        return self._model

    @property
    def capacity(self) -> int:
        """Batches under way at a time."""
        signature = self.model.signature
        return self._settings.slots(batched=signature.batched, streams=signature.streams)

    @property
    def up(self) -> bool:
        """As last seen."""
        return self._watch.up

    @property
    def distance_s(self) -> float:
        """What the way there and back takes, by the quickest of the latest checks; 0 within a zone."""
        same = self.zone and self.zone == self._settings.zone
        return 0.0 if same else min(self._round_trips, default=0.0)

    @property
    def connections(self) -> int:
        """Those open now, for batches and for checks."""
        return self._channel.connections

    # Instance

    async def start(self) -> Signature:
        """Ask the upstream what its model takes, and watch it from now on.

        Raises UpstreamError if it cannot be used now, another ModelError for a model that cannot be served.
        """
        await self._check_ready()
        self._take(await self._describe())
        self._watch.start(up=True)
        return self.model.signature

    def start_lost(self, expected: UpstreamModel) -> None:
        """It cannot be used now: watch for it; `on_up` is called once it serves this model."""
        self._take(expected)
        self._watch.start(up=False)

    def run(self, requests: Sequence[Request], done: Callable[[BatchResult], None]) -> None:
        started_at = perf_counter()
        model = self.model
        self._in_flight += 1
        self._idle.clear()
        try:
            if len(requests) > 1 and not model.signature.batched:
                raise UpstreamError("the upstream takes no batches", FailureKind.INVALID_ARGUMENT)
            ask = self._codec.encode(model, requests)
        except UpstreamError as error:
            asyncio.get_running_loop().call_soon(self._report, done, failed(error, perf_counter() - started_at))
            return
        left, timeout_s = self._left_s(requests), self._settings.response_timeout_s
        fields = self._fields(requests, left)
        if model.signature.streams:
            messages = self._channel.stream(ask, timeout_s=timeout_s, fields=fields)
            decode = partial(cast("PartsCodec", self._codec).decode_part, model)
            RemoteParts(messages, decode, self._parts_ended).ask(done)
            return
        rows = sum([request.inputs[0].shape[0] for request in requests]) if model.signature.batched else 1
        sent_at = perf_counter()
        overdue = asyncio.get_running_loop().call_later(left, self._watch.suspect) if left < inf else None
        answered = partial(self._answered, done, rows, sent_at, sent_at - started_at, overdue)
        self._channel.call(ask, answered, timeout_s=timeout_s, fields=fields)

    async def stop(self) -> None:
        await self._watch.stop()
        await self._idle.wait()  # every batch ends within response_timeout_s
        await self._channel.close()

    def go_single(self) -> None:
        """Send each request alone from now on: its rows depend on one another."""
        self._settings = msgspec.structs.replace(self._settings, batched=False)
        self._codec = codec_for(self.address, self._settings)
        signature = msgspec.structs.replace(self.model.signature, batched=False)
        self._take(msgspec.structs.replace(self.model, signature=signature))

    # Batches

    def _answered(
        self,
        done: Callable[[BatchResult], None],
        rows: int,
        sent_at: float,
        batch_s: float,
        overdue: asyncio.TimerHandle | None,
        outcome: Answer | UpstreamError,
    ) -> None:
        """`overdue`: goes off when nobody waits any more; a peer that has vanished without a word is noticed by that."""
        answered_at = perf_counter()
        if overdue is not None:
            overdue.cancel()
        try:
            if isinstance(outcome, UpstreamError):
                raise outcome
            error = outcome.refusal()
            if error is not None:
                raise error
            outputs = self._codec.decode(self.model, outcome, rows)
        except UpstreamError as error:
            self._went_wrong(error)
            result = failed(error, batch_s)
        else:
            result = BatchResult(outputs, answered_at - sent_at, batch_s + perf_counter() - answered_at)
            result.variant = outcome.variant
            result.load = self._load(outcome.load) if self._settings.hop else None
        self._report(done, result)

    def _left_s(self, requests: Sequence[Request]) -> float:
        """How long any client of them waits for its answer."""
        latest = max([request.ticket.answer_by for request in requests])
        return latest if latest == inf else left_s(latest - self._clock(), min(self._round_trips, default=0.0))

    def _fields(self, requests: Sequence[Request], left: float) -> Fields:
        """What goes with a batch: its requests' traces, where they came through, and how long the upstream has."""
        fields, own = [*trace_fields(requests)], self._settings.hop
        if own:
            fields.append((VIA, way_on(own, [request.headers.get(VIA, "") for request in requests])))
            if self.retries() or any(request.ticket.once for request in requests):
                fields.append((RETRIES, "0"))
        if left < inf:
            fields.append((DEADLINE, f"{max(left * 1e3, 1e-3):.3f}"))
        return fields

    def _load(self, said: str) -> Load:
        load = load_in(said) if said else NO_LOAD
        self.zone = load.zone or self.zone
        if load.leaves:
            self._watch.leaves("it is about to stop")
        return msgspec.structs.replace(load, distance_s=self.distance_s)

    def _went_wrong(self, error: UpstreamError) -> None:
        if error.gone:
            self._watch.lost(str(error))
        elif error.failure.kind is FailureKind.UNAVAILABLE:
            self._watch.suspect()

    def _report(self, done: Callable[[BatchResult], None], result: BatchResult) -> None:
        self._end()
        done(result)

    def _parts_ended(self, error: UpstreamError | None) -> None:
        if error is not None:
            self._went_wrong(error)
        self._end()

    def _end(self) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()

    # Health

    async def _probe(self, was_lost: bool) -> None:
        await self._check_ready()
        if was_lost:
            found, known = await self._describe(), self.model
            smaller = found.max_batch is not None and (known.max_batch or found.max_batch + 1) > found.max_batch
            if not found.same_as(known) or smaller:
                raise ModelError("it has come back with another signature, or takes smaller batches; restart to use it")

    async def _check_ready(self) -> None:
        fresh, asked_at = not self._channel.connections, perf_counter()  # a connection takes ways of its own
        reply = await self._channel.fetch(self._codec.readiness, timeout_s=self._settings.check_timeout_s)
        if not fresh:
            self._round_trips.append(perf_counter() - asked_at)
        if not self._codec.is_ready(reply):
            why = reply.refusal() or "the upstream says that it is not"
            error = UpstreamError(f"the model is not ready: {why}", FailureKind.UNAVAILABLE, gone=True)
            error.leaves = True
            raise error

    async def _describe(self) -> UpstreamModel:
        replies: dict[str, Any] = {}
        for name, question in self._codec.questions.items():
            asked_at = perf_counter()
            replies[name] = await self._channel.fetch(question, timeout_s=self._settings.check_timeout_s)
            self._round_trips.append(perf_counter() - asked_at)
        return self._codec.described(replies)

    def _tell_lost(self, reason: str) -> None:
        if self.on_lost is not None:
            self.on_lost(reason)

    def _tell_leaves(self, reason: str) -> None:
        if self.on_leaves is not None:
            self.on_leaves(reason)
        else:
            self._tell_lost(reason)

    def _tell_up(self) -> None:
        if self.on_up is not None:
            self.on_up()

    # Inside

    def _take(self, model: UpstreamModel) -> None:
        self._model = model
        self._channel.widen(self.capacity)


async def start_upstreams(instances: Sequence[RemoteInstance]) -> UpstreamModel:
    """Start the instances of one lane; those that cannot be used now are watched for, if another can.

    Returns what holds for all: the signature, and the fewest rows that any takes. Raises ModelError if none can be used,
    or if they do not serve the same model.
    """
    try:
        return await _started(instances)
    except BaseException:
        await asyncio.gather(*(instance.stop() for instance in instances))
        raise


async def _started(instances: Sequence[RemoteInstance]) -> UpstreamModel:
    outcomes = await asyncio.gather(*(instance.start() for instance in instances), return_exceptions=True)
    missing = []
    for instance, outcome in zip(instances, outcomes, strict=True):
        if isinstance(outcome, UpstreamError):
            missing.append((instance, outcome))
        elif isinstance(outcome, ModelError):
            raise ModelError(f"upstream {instance.address.authority}: {outcome}") from outcome
        elif isinstance(outcome, BaseException):
            raise outcome
    if len(missing) == len(instances):
        reasons = "; ".join(f"{instance.address.authority}: {error}" for instance, error in missing)
        raise ModelError(f"no upstream can be used: {reasons}")
    lost = {instance.name for instance, _ in missing}
    found = [instance for instance in instances if instance.name not in lost]
    first = found[0].model
    for instance in found[1:]:
        if not instance.model.same_as(first):
            places = f"{found[0].address.authority} and {instance.address.authority}"
            raise ModelError(f"upstreams {places} do not serve the same model: their inputs, outputs, batching or form differ")
    known = [instance.model.max_batch for instance in found if instance.model.max_batch is not None]
    model = msgspec.structs.replace(first, max_batch=min(known, default=None))
    for instance, _ in missing:
        instance.start_lost(model)
    return model
