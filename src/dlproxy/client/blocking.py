"""`dlproxy.Client`: the AsyncClient for programs without an event loop, and for any number of threads.

Called by users and by cli/infer.py. Not aware of: protocols.
"""

import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar, Unpack

from dlproxy.client.ask import ListedModel
from dlproxy.client.awaited import AsyncClient, Options, closed
from dlproxy.client.background import Background, background
from dlproxy.instance.remote.oip_model import Metadata
from dlproxy.tensors import Answer

_Result = TypeVar("_Result")


class Client:
    """`with Client("http://127.0.0.1:8000") as client: client.infer("digits", {"image": x})`

    For any number of threads at a time. After a fork the child makes its own connections; one over gRPC that was used before
    does not work there.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", **settings: Any) -> None:
        """`settings`: those of AsyncClient. Raises ValueError for what cannot be used."""
        self.url = url
        self._make: Callable[[], AsyncClient] = lambda: AsyncClient(url, **settings)
        self._fresh: AsyncClient | None = self._make()
        self._used: tuple[Background, AsyncClient] | None = None
        self._closed = False

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every connection; calls under way fail. A closed client takes no further calls."""
        self._closed = True
        if self._used is not None and self._used[0].runs:
            home, client = self._used
            home.run(home.close(client))

    def infer(self, model: str, inputs: Any, **options: Unpack[Options]) -> Answer:
        """As AsyncClient has it."""
        return self._run(lambda client: client.infer(model, inputs, **options))

    def stream(self, model: str, inputs: Any, **options: Unpack[Options]) -> Iterator[Answer]:
        """`for outputs in client.stream(...)`: as AsyncClient has it. Leaving the loop stops the model."""
        home, client = self._connected()
        parts = client.stream(model, inputs, **options)
        try:
            while (part := home.run(_next(parts))) is not None:
                yield part
        finally:
            home.begin(_left(parts))

    def models(self, *, timeout_s: float | None = None) -> list[ListedModel]:
        """Every model in every version. Raises InferenceError."""
        return self._run(lambda client: client.models(timeout_s=timeout_s))

    def metadata(self, model: str, version: str = "", *, timeout_s: float | None = None) -> Metadata:
        """What the model takes and gives, asked anew. Raises InferenceError."""
        return self._run(lambda client: client.metadata(model, version, timeout_s=timeout_s))

    def ready(self, model: str = "", version: str = "", *, timeout_s: float | None = None) -> bool:
        """Whether the model, or without one the server, can be asked now; False also if nobody answers."""
        return self._run(lambda client: client.ready(model, version, timeout_s=timeout_s))

    def _run(self, work: Callable[[AsyncClient], Coroutine[Any, Any, _Result]]) -> _Result:
        home, client = self._connected()
        return home.run(work(client))

    def _connected(self) -> tuple[Background, AsyncClient]:
        if self._closed:
            raise closed()
        home = background()
        used = self._used
        if used is None or used[0] is not home:
            with home.lock:
                used = self._used = self._used_on(home)
        return used

    def _used_on(self, home: Background) -> tuple[Background, AsyncClient]:
        if self._used is not None:
            if self._used[0] is home:  # another thread was quicker
                return self._used
            if self.url.startswith("grpc"):
                raise RuntimeError("gRPC does not go on in a forked process: use http://, or start the process with spawn")
        client, self._fresh = self._fresh or self._make(), None
        home.open.add(client)
        weakref.finalize(self, _leave, home, client).atexit = False
        return home, client


async def _next(parts: AsyncGenerator[Answer, None]) -> Answer | None:
    return await anext(parts, None)


async def _left(parts: AsyncGenerator[Answer, None]) -> None:
    with suppress(RuntimeError):  # it runs still, and ends because it was cancelled: whoever waited for it was interrupted
        await parts.aclose()


def _leave(home: Background, client: AsyncClient) -> None:
    home.begin(home.close(client))
