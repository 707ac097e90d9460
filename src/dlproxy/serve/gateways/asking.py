"""Asks gateways on their own control ports, as whoever asks on the common one. Called by control.py and feed.py.

Not aware of: what is asked, how answers are joined.
"""

import asyncio
from typing import Any

import msgspec
from msgspec import Struct

from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.remote.http_client import HttpClient, Reply, Server
from dlproxy.message import Principal
from dlproxy.serve.gateways.keeper import Gateways, Life
from dlproxy.wire.control.guard import telling

CONNECT_S = 5.0
ANSWER_S = 5.0  # of a look; a gateway that is so busy has nothing to add
MOST_BYTES = 1 << 28


class Answer(Struct):
    """Of gateway `number`, now this `process`. `json` raises msgspec.DecodeError for what is none."""

    number: int
    process: str
    reply: Reply

    def json(self) -> Any:
        return msgspec.json.decode(self.reply.body)


class Asking:
    """One client for each process, for as long as that lives."""

    def __init__(self, gateways: Gateways) -> None:
        self._gateways = gateways
        self._clients: dict[Life, HttpClient] = {}

    async def all(
        self, method: str, target: str, who: Principal, body: bytes = b"", *, accept: str = "", timeout_s: float = ANSWER_S
    ) -> list[Answer]:
        """Those that answer, in the order of the gateways."""
        serving = [place for place in self._gateways.places if place.life is not None]
        asked = [self.one(place.number, method, target, who, body, accept=accept, timeout_s=timeout_s) for place in serving]
        found = await asyncio.gather(*asked, return_exceptions=True)
        for problem in found:
            if isinstance(problem, BaseException) and not isinstance(problem, UpstreamError):
                raise problem
        return [answer for answer in found if isinstance(answer, Answer)]

    async def one(
        self, number: int, method: str, target: str, who: Principal, body: bytes = b"", *, accept: str = "", timeout_s: float
    ) -> Answer:
        """Raises UpstreamError if it does not answer, or is gone."""
        life = self._gateways.places[number].life
        if life is None:
            raise UpstreamError(f"gateway {number} is not there now")
        header, value = telling(who)
        lines = [f"{method} {target} HTTP/1.1", "host: localhost", f"{header}: {value}", f"content-length: {len(body)}"]
        lines += [f"accept: {accept}"] if accept else []
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        return Answer(number, life.control, await self._client(life).fetch([head, body], timeout_s=timeout_s))

    async def close(self) -> None:
        await asyncio.gather(*(client.close() for client in self._clients.values()))

    def _client(self, life: Life) -> HttpClient:
        found = self._clients.get(life)
        if found is None:
            server = Server("localhost", 0, path=life.control)
            found = HttpClient(server, connections=8, connect_timeout_s=CONNECT_S, max_reply_bytes=MOST_BYTES)
            self._clients[life] = found
            life.process.ended.add_done_callback(lambda _: self._forget(life))
        return found

    def _forget(self, life: Life) -> None:
        client = self._clients.pop(life, None)
        if client is not None:
            asyncio.get_running_loop().create_task(client.close())
