"""SRV records over a real socket: what a name server says, whatever it says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.fleet.srv import AnswerError, find_services, question, servers_of_system, services_in
from dlproxy.instance.runtime import ModelError

NAME = "_dlproxy._tcp.gpus.internal"


def name_of(host: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode() for label in host.split(".")) + b"\0"


def record(host: bytes, port: int, priority: int = 0, kind: int = 33) -> bytes:
    """Its own name is a pointer to the question's."""
    data = priority.to_bytes(2, "big") + b"\0\1" + port.to_bytes(2, "big") + host
    return b"\xc0\x0c" + kind.to_bytes(2, "big") + b"\0\1" + b"\0\0\0\x1e" + len(data).to_bytes(2, "big") + data


def answered(asked: bytes, *records: bytes, flags: int = 0x8180) -> bytes:
    head = asked[:2] + flags.to_bytes(2, "big") + b"\0\1" + len(records).to_bytes(2, "big") + b"\0\0\0\0"
    return head + asked[12:] + b"".join(records)


def gpus(asked: bytes) -> bytes:
    """The second host is `gpu2` before the name that the question has at its 16th byte after the header."""
    shared = b"\x04gpu2\xc0" + bytes((12 + NAME.index("gpus"),))
    ours = [record(name_of("gpu1.internal"), 8000), record(shared, 8001), record(name_of("spare.internal"), 9, priority=5)]
    return answered(asked, *ours, record(b"", 0, kind=16))


class Names(asyncio.DatagramProtocol):
    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(b"\0\0 another's answer", addr)
        self._transport.sendto(self._answer(data), addr)


@asynccontextmanager
async def name_server(answer: Callable[[bytes], bytes]) -> AsyncIterator[tuple[str, int]]:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: Names(answer), ("127.0.0.1", 0))
    yield transport.get_extra_info("sockname")
    transport.close()
    await asyncio.sleep(0)


async def test_the_services_of_the_best_priority() -> None:
    async with name_server(gpus) as server:
        assert await find_services(NAME, [server]) == [("gpu1.internal", 8000), ("gpu2.gpus.internal", 8001)]


async def test_the_next_name_server_is_asked_if_one_is_down() -> None:
    async with name_server(gpus) as server:
        found = await find_services(NAME, [("127.0.0.1", 1), server])
        assert len(found) == 2
    with pytest.raises(OSError, match="no name server tells of"):
        await find_services(NAME, [("127.0.0.1", 1)])


@pytest.mark.parametrize(
    ("flags", "why"), [(0x8183, "no such name"), (0x8182, "error 2"), (0x8380, "more records than an answer over UDP holds")]
)
async def test_what_a_name_server_refuses(flags: int, why: str) -> None:
    async with name_server(lambda asked: answered(asked, flags=flags)) as server:
        with pytest.raises(AnswerError, match=why):
            await find_services(NAME, [server])


async def test_no_record_is_no_service() -> None:
    async with name_server(answered) as server:
        assert await find_services(NAME, [server]) == []


def test_a_name_that_goes_in_a_circle_ends() -> None:
    asked = question(NAME, b"no")
    circle = record(b"\xc0" + bytes((len(asked) + 18,)), 1)
    with pytest.raises(AnswerError):
        services_in(answered(asked, circle), NAME)


@given(st.binary(max_size=80), st.integers(0, 200))
def test_garbage_is_services_or_an_error(garbage: bytes, cut: int) -> None:
    asked = question(NAME, b"no")
    for answer in (asked[:4] + garbage, gpus(asked)[:cut], gpus(asked)[:cut] + garbage):
        try:
            services_in(answer, NAME)
        except AnswerError:
            continue


@pytest.mark.parametrize("name", ["", ".", "a..b", "a" * 64, "zürich.example", "a b", ".".join(["a" * 60] * 5)])
def test_what_is_no_name_is_not_asked_for(name: str) -> None:
    with pytest.raises(ModelError, match="no name of a service"):
        question(name, b"no")


def test_the_systems_name_servers(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("# nameserver 1.1.1.1\nnameserver 10.0.0.2\n  nameserver  fe80::1%eth0\nnameserver x\nsearch internal\n")
    assert servers_of_system(file) == [("10.0.0.2", 53), ("fe80::1%eth0", 53)]
