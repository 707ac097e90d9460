"""SRV records, which Python's own resolver does not ask for: one question and its answer over UDP (RFC 1035, RFC 2782).

Called by members.py. Not aware of: what the services are.
"""

import asyncio
import ipaddress
import re
from pathlib import Path
from secrets import token_bytes

from dlproxy.instance.runtime import ModelError

SRV, IN = 33, 1
PATIENCE_S = 2.0  # with one name server, before the next is asked
MOST_JUMPS = 32  # compressed names that point to each other would never end
_SERVER = re.compile(r"^\s*nameserver\s+(\S+)", re.MULTILINE)
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


class AnswerError(OSError):
    """No such name, or no answer that can be read."""


async def find_services(name: str, servers: list[tuple[str, int]] | None = None) -> list[tuple[str, int]]:
    """Host and port of each with the best priority. Raises OSError. `servers`: those of this system unless they are given."""
    reasons = []
    for server in servers_of_system() if servers is None else servers:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return services_in(await _asked(name, server), name)
        except AnswerError:
            raise
        except OSError as error:  # TimeoutError is one
            reasons.append(f"{server[0]}: {str(error) or 'no answer'}")
    raise OSError(f"no name server tells of {name}: {'; '.join(reasons) or 'there is none'}")


def servers_of_system(path: Path = Path("/etc/resolv.conf")) -> list[tuple[str, int]]:
    """Raises OSError."""
    return [(server, 53) for server in _SERVER.findall(path.read_text("utf-8", "replace")) if _is_ip(server.partition("%")[0])]


def question(name: str, number: bytes) -> bytes:
    """Raises ModelError for what is no name."""
    labels = name.rstrip(".").split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ModelError(f"{name!r} is no name of a service; write it like _dlproxy._tcp.gpus.internal")
    head = number + b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"  # recursion is desired
    return head + b"".join(bytes((len(label),)) + label.encode() for label in labels) + b"\0\0\x21\0\x01"


def services_in(answer: bytes, name: str) -> list[tuple[str, int]]:
    """Raises AnswerError."""
    try:
        flags, questions, count = (int.from_bytes(answer[at : at + 2], "big") for at in (2, 4, 6))
        if flags & 15:
            raise AnswerError(
                f"the name server says {('no such name' if flags & 15 == 3 else f'error {flags & 15}')} of {name}"
            )
        if flags & 0x200:
            raise AnswerError(f"{name} has more records than an answer over UDP holds")
        at = 12
        for _ in range(questions):
            at = _name(answer, at)[1] + 4
        found: list[tuple[int, str, int]] = []
        for _ in range(count):
            at = _name(answer, at)[1]
            kind, size = (int.from_bytes(answer[at + place : at + place + 2], "big") for place in (0, 8))
            at += 10
            if kind == SRV and size >= 7 and at + size <= len(answer):
                host = _name(answer, at + 6)[0]
                found.append((int.from_bytes(answer[at : at + 2], "big"), host, int.from_bytes(answer[at + 4 : at + 6], "big")))
            at += size
    except (IndexError, UnicodeDecodeError) as error:
        raise AnswerError(f"the name server's answer about {name} cannot be read: {error}") from None
    best = min((priority for priority, _, _ in found), default=0)
    return sorted({(host, port) for priority, host, port in found if priority == best and host})


def _name(answer: bytes, at: int) -> tuple[str, int]:
    """And where it ends. Raises IndexError, UnicodeDecodeError, AnswerError."""
    labels, end = [], -1
    for _ in range(MOST_JUMPS + 128):
        size = answer[at]
        if size >= 0xC0:
            end = at + 2 if end < 0 else end
            at = (size & 0x3F) << 8 | answer[at + 1]
        elif size:
            labels.append(answer[at + 1 : at + 1 + size].decode("ascii"))
            at += 1 + size
        else:
            return ".".join(labels), at + 1 if end < 0 else end
    raise AnswerError("the name server's answer has a name without an end")


async def _asked(name: str, server: tuple[str, int]) -> bytes:
    number = token_bytes(2)
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Asked(answer, number), remote_addr=server)
    try:
        transport.sendto(question(name, number))
        return await answer
    finally:
        transport.close()


class _Asked(asyncio.DatagramProtocol):
    def __init__(self, answer: asyncio.Future[bytes], number: bytes) -> None:
        self._answer = answer
        self._number = number

    def datagram_received(self, data: bytes, addr: object) -> None:
        if data[:2] == self._number and len(data) >= 12 and not self._answer.done():
            self._answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(exc)


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
