"""The one interface that a request crosses. Implemented by serve/driver.py, wrapped by layers, called by wire/ and Proxy.

It is callback-first: on the hot path a request costs no task and no future (docs/adr/0002). `infer` adapts it to await.
Not aware of: who answers, and over which protocol.
"""

import asyncio
from typing import Protocol

from dlproxy.message import Failure, InferenceError, Request, Response


class ReplyTo(Protocol):
    """Where the answer goes. Exactly one of the two is called, once, on the event loop, perhaps before `submit` returns."""

    def completed(self, response: Response) -> None: ...

    def failed(self, failure: Failure) -> None: ...


class Service(Protocol):
    """Takes checked requests. Neither method blocks or raises; both are called on the event loop only."""

    def submit(self, request: Request, reply: ReplyTo) -> None: ...

    def cancel(self, request: Request) -> None:
        """The caller no longer wants the answer: its reply gets `failed(CANCELLED)` unless it was answered already."""
        ...


class FutureReply:
    """For whoever awaits the answer. A ReplyTo."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    def completed(self, response: Response) -> None:
        if not self._future.done():
            self._future.set_result(response)

    def failed(self, failure: Failure) -> None:
        if not self._future.done():
            self._future.set_exception(InferenceError(failure))

    async def answer(self, service: Service, request: Request) -> Response:
        """Of the request, which was submitted with this. Cancelling the awaiting task cancels it. Raises InferenceError."""
        try:
            return await self._future
        except asyncio.CancelledError:
            service.cancel(request)
            raise


async def infer(service: Service, request: Request) -> Response:
    """Submit and await. Cancelling the awaiting task cancels the request. Raises InferenceError."""
    reply = FutureReply()
    service.submit(request, reply)
    return await reply.answer(service, request)
