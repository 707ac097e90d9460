"""A protocol that dlproxy does not have, in one file: Open Inference Protocol JSON in frames over a socket.

It knows the catalog and the front desk, and so has deadlines, priorities, tenants, refusals and models that come and go.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from dlproxy.message import Failure, FailureKind, InferenceError, Response, Ticket
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.endpoint import Endpoint, FrontDesk
from dlproxy.wire.oip import codec as oip_codec

from .fixtures import PLAIN, EchoService, served

NOW = 100.0
INPUT = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}


# The protocol: a frame is its length in four bytes, and that much JSON


class Asked(Struct):
    model: str
    infer: msgspec.Raw
    version: str = ""
    headers: dict[str, str] = {}


class Framed:
    """What it keeps of a model."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.decoder = oip_codec.InferDecoder(endpoint.checker)

    def answer(self, asked: Asked, connection: "Connection") -> None:
        endpoint = self.endpoint
        try:
            terms = endpoint.read_headers({name.encode(): value.encode() for name, value in asked.headers.items()})
            wire = self.decoder.decode(bytes(asked.infer), None, ticket_id=next(endpoint.ticket_ids), now=endpoint.clock())
        except InferenceError as error:
            raise endpoint.refused(error) from None
        connection.leave = lambda: endpoint.cancel(wire.request)
        endpoint.submit(wire.request, Reply(connection, wire), terms.over(wire.terms))


class Reply(Struct):
    """A ReplyTo."""

    connection: Any
    wire: oip_codec.WireRequest

    def completed(self, response: Response) -> None:
        self.connection.send(oip_codec.encode(response, self.wire)[0])

    def failed(self, failure: Failure) -> None:
        self.connection.send(msgspec.json.encode({"kind": failure.kind, "error": failure.message}))


class Connection(asyncio.Protocol):
    def __init__(self, desk: FrontDesk[Framed]) -> None:
        self.desk = desk
        self.received = b""
        self.leave = lambda: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.leave()

    def send(self, body: bytes) -> None:
        self.transport.write(len(body).to_bytes(4) + body)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.received += data
        while len(self.received) >= 4 + (size := int.from_bytes(self.received[:4])):
            frame, self.received = self.received[4 : 4 + size], self.received[4 + size :]
            try:
                asked = msgspec.json.decode(frame, type=Asked)
                self.desk.find(asked.model, asked.version).answer(asked, self)
            except InferenceError as error:
                self.send(msgspec.json.encode({"kind": error.failure.kind, "error": error.failure.message}))


# Its tests


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, **asked: Any) -> None:
        frame = msgspec.json.encode({"model": "m", "infer": {"inputs": [INPUT]}, **asked})
        self.writer.write(len(frame).to_bytes(4) + frame)

    async def ask(self, **asked: Any) -> Any:
        self.send(**asked)
        async with asyncio.timeout(10):
            size = int.from_bytes(await self.reader.readexactly(4))
            return msgspec.json.decode(await self.reader.readexactly(size))


class Site:
    def __init__(self) -> None:
        self.catalog = Catalog()
        self.service = EchoService(PLAIN, at_once=True)
        self.model = served(self.service, slo_s=0.1)
        self.model.sticky = "tenant"
        self.catalog.add(self.model)
        self.desk = FrontDesk(self.catalog, Framed, clock=lambda: NOW)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        server = await asyncio.get_running_loop().create_server(lambda: Connection(self.desk), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            try:
                yield Client(reader, writer)
            finally:
                writer.close()
                await writer.wait_closed()

    @property
    def ticket(self) -> Ticket:
        return self.service.requests[-1].ticket


@pytest.mark.parametrize(
    ("headers", "parameters", "answer_by", "deadline_at", "priority", "tenant"),
    [
        ({}, {}, inf, 100.1, 0, ""),
        ({"x-request-deadline-ms": "50", "x-tenant-id": "shop"}, {}, 100.05, 100.05, 0, "shop"),
        ({"x-request-deadline-ms": "50"}, {"timeout": 20_000, "priority": 3}, 100.02, 100.02, 3, ""),
        ({"x-request-priority": "1"}, {"timeout": 500_000, "priority": 3}, 100.5, 100.1, 1, ""),
    ],
)
async def test_terms_hold_as_over_http(
    headers: Any, parameters: Any, answer_by: float, deadline_at: float, priority: int, tenant: str
) -> None:
    site = Site()
    async with site.client() as client:
        reply = await client.ask(headers=headers, infer={"id": "7", "inputs": [INPUT], "parameters": parameters})
    assert (reply["id"], reply["outputs"][0]["data"]) == ("7", [1.0, 2.0])
    assert (site.ticket.answer_by, site.ticket.deadline_at) == (pytest.approx(answer_by), pytest.approx(deadline_at))
    assert (site.ticket.priority, site.ticket.tenant, site.ticket.affinity) == (priority, tenant, tenant)


async def test_refusals_are_told_and_counted() -> None:
    site = Site()
    async with site.client() as client:
        for asked, says in (
            ({"infer": {"inputs": []}}, "expected 1 inputs but got 0"),
            ({"infer": {"inputs": [{**INPUT, "shape": [1, 3], "data": [1, 2, 3]}]}}, "Expected [-1,2], got [1,3]"),
            ({"infer": 5}, "not an inference request"),
            ({"headers": {"x-request-deadline-ms": "soon"}}, "milliseconds"),
            ({"infer": {"inputs": [INPUT], "parameters": {"timeout": -1}}}, "microseconds"),
        ):
            reply = await client.ask(**asked)
            assert reply["kind"] == "invalid_argument"
            assert says in reply["error"]
        assert site.model.stats.failures[FailureKind.INVALID_ARGUMENT] == 5
        assert (await client.ask(model="nobody"))["kind"] == "not_found"
        site.service.at_once = False
        client.send()
        client.send(headers={"x-tenant-id": "bank"})
        while len(site.service.waiting) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for kind in (FailureKind.LATE, FailureKind.QUOTA):
            site.service.waiting.popleft()[1].failed(Failure(kind, "why"))
        site.service.at_once = True
        assert [(await client.ask())["kind"], (await client.ask())["kind"]] == ["late", "quota"]


async def test_it_follows_the_catalog() -> None:
    site = Site()
    async with site.client() as client:
        assert (await client.ask())["model_version"] == "1"
        site.catalog.add(served(EchoService(PLAIN, version="2", at_once=True)))
        assert (await client.ask())["model_version"] == "2"
        site.catalog.remove("m", "2")
        assert (await client.ask())["model_version"] == "1"
        assert (await client.ask(version="2"))["kind"] == "not_found"


async def test_a_client_that_leaves_cancels() -> None:
    site = Site()
    site.service.at_once = False
    async with site.client() as client:
        client.send()
        async with asyncio.timeout(10):
            while not site.service.waiting:  # noqa: ASYNC110
                await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while not site.service.cancelled:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert not site.service.waiting
