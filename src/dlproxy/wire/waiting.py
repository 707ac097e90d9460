"""Requests for models that are loaded when they are asked for: they wait here until those are up.

Asked by the doors for what the catalog does not have, so that requests for what it has pay nothing. Bounded in number, bytes
and time. Not aware of: protocols, how a model is loaded.
"""

import asyncio
from collections.abc import Callable
from math import inf
from typing import Protocol

from msgspec import Struct

from dlproxy.message import Failure, FailureKind, InferenceError, text_of
from dlproxy.policy.why import Phase
from dlproxy.wire.catalog import NotServedError

MOST_WAITING = 1024
MOST_WAITING_BYTES = 256 * 2**20  # of bodies
LONGEST_S = 30.0  # for requests that name no deadline
AGAIN_S = 1.0  # when to try again what found no room

Key = tuple[str, str]  # name and version, as clients write them


class OnDemand(Protocol):
    """Who loads: fleet/control.py. Called on the event loop."""

    def may_come(self, name: str, version: str = "") -> bool:
        """Whether it is loaded when somebody asks for it. `version`: a number or a label; empty: any one."""
        ...

    async def demand(self, name: str, version: str = "") -> None:
        """Returns when it is up, or not wanted any more. Raises what loading it raised."""
        ...


class Place(Protocol):
    """Where the answer of one request goes: an Exchange, a Call."""

    on_abandoned: Callable[[], object] | None
    waited: dict[Phase, float] | None

    def refuse(self, failure: Failure) -> None: ...

    def give_up(self) -> None:
        """From within an exception's handler."""
        ...


class _Load(Struct, eq=False):
    """A demand that so many requests share."""

    demand: "asyncio.Task[None]"
    requests: int = 0


class Waiting:
    """All requests of one process that wait for models. `longest_s`: how long one waits that names no shorter deadline."""

    def __init__(
        self,
        on_demand: OnDemand,
        *,
        longest_s: float = LONGEST_S,
        most: int = MOST_WAITING,
        most_bytes: int = MOST_WAITING_BYTES,
    ) -> None:
        self.requests = 0
        self._bytes = 0
        self._on_demand = on_demand
        self._longest_s = longest_s
        self._most = most
        self._most_bytes = most_bytes
        self._loads: dict[Key, _Load] = {}
        self._closed = False

    def may_come(self, name: str, version: str) -> bool:
        return self._on_demand.may_come(name, version)

    async def until_up(self, missing: NotServedError, timeout_s: float = inf, size_bytes: int = 0) -> float:
        """Returns what is left of the client's timeout when the model is up. Cancelling it forgets the request.

        `size_bytes`: what the request holds meanwhile. Raises InferenceError: what the catalog said where there is nothing to
        wait for, else why loading failed, QUEUE_FULL, LATE, or UNAVAILABLE after `longest_s`.
        """
        name, version = missing.name, missing.version
        if not self.may_come(name, version):
            raise InferenceError(missing.failure)
        self._check_room(size_bytes)
        loop = asyncio.get_running_loop()
        key, began_at = (name, version), loop.time()
        load = self._loads.get(key)
        if load is None:
            demand = loop.create_task(self._on_demand.demand(name, version), name=f"dlproxy-demand-{name}")
            load = self._loads[key] = _Load(demand)
        self._hold(load, 1, size_bytes)
        try:
            await asyncio.wait([load.demand], timeout=min(self._longest_s, timeout_s))
        finally:
            self._hold(load, -1, -size_bytes)
            done = load.demand.done()
            if not load.requests:
                load.demand.cancel()
                if self._loads.get(key) is load:
                    del self._loads[key]
        if not done:
            raise InferenceError(self._too_long(name, timeout_s))
        if load.demand.cancelled():
            raise _stopping()
        error = load.demand.exception()
        if error is not None:
            raise InferenceError(_why(name, error)) from error
        return timeout_s - (loop.time() - began_at)

    def close(self) -> None:
        """The server stops: whoever waits hears of it now, and nobody else may."""
        self._closed = True
        for load in self._loads.values():
            load.demand.cancel()

    def _check_room(self, size_bytes: int) -> None:
        if self._closed:
            raise _stopping()
        if self.requests >= self._most or self._bytes + size_bytes > self._most_bytes:
            message = (
                f"{self.requests} requests with {self._bytes} bytes wait for models that are being loaded: no room for more"
            )
            raise InferenceError(Failure(FailureKind.QUEUE_FULL, message, AGAIN_S))

    def _hold(self, load: _Load, requests: int, size_bytes: int) -> None:
        load.requests += requests
        self.requests += requests
        self._bytes += size_bytes

    def _too_long(self, name: str, timeout_s: float) -> Failure:
        if timeout_s <= self._longest_s:
            return Failure(FailureKind.LATE, f"the deadline passed while model '{name}' was being loaded")
        return Failure(FailureKind.UNAVAILABLE, f"model '{name}' is still not up after {self._longest_s:g} s", AGAIN_S)


def answer_once_up(
    waiting: Waiting | None,
    missing: NotServedError,
    place: Place,
    again: Callable[[float], None],
    *,
    timeout_s: Callable[[], float],
    size_bytes: int,
    tries: int = 3,
) -> None:
    """A model that is loaded on demand answers when it is up: `again` gets what is left of the timeout, and may raise
    InferenceError. `tries`: it may be gone again by then.
    """
    if waiting is None or not tries or not waiting.may_come(missing.name, missing.version):
        place.refuse(missing.failure)
        return

    async def answer(waiting: Waiting) -> None:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        try:
            left_s = await waiting.until_up(missing, timeout_s(), size_bytes)
            place.waited = {**(place.waited or {}), "load": loop.time() - began_at}
            again(left_s)
        except NotServedError as gone:
            answer_once_up(waiting, gone, place, again, timeout_s=timeout_s, size_bytes=size_bytes, tries=tries - 1)
        except InferenceError as error:
            place.refuse(error.failure)
        except Exception:
            place.give_up()

    task = asyncio.get_running_loop().create_task(answer(waiting))
    place.on_abandoned = task.cancel


def _why(name: str, error: BaseException) -> Failure:
    if isinstance(error, InferenceError):
        return error.failure
    return Failure(FailureKind.UNAVAILABLE, f"model '{name}' could not be loaded: {text_of(error)}")


def _stopping() -> InferenceError:
    return InferenceError(Failure(FailureKind.UNAVAILABLE, "the server is shutting down"))
