"""Who may change something through the control port where no keys are asked for: this machine, and no page in its browser."""

import logging
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message

from dlproxy.wire.control.guard import ControlGuard

HERE, ELSEWHERE = ("127.0.0.1", 5), ("10.0.0.7", 5)


async def _ok(_: Request) -> JSONResponse:
    return JSONResponse({"ok": True})


APP = Starlette(routes=[Route("/models", _ok, methods=["GET", "POST"])])


async def _status(method: str, client: tuple[str, int] | None = HERE, **headers: str) -> int:
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": "/models",
        "raw_path": b"/models",
        "query_string": b"",
        "client": client,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    await ControlGuard(APP, None)(scope, receive, send)
    status: int = sent[0]["status"]
    return status


@pytest.mark.parametrize(
    ("client", "get", "post"),
    [
        (HERE, 200, 200),
        (("::1", 5), 200, 200),
        (None, 200, 200),
        (ELSEWHERE, 200, 403),
        (("2001:db8::1", 5), 200, 403),
        (("?", 0), 200, 403),
    ],
)
async def test_only_this_machine_changes_things(client: tuple[str, int] | None, get: int, post: int) -> None:
    assert (await _status("GET", client), await _status("POST", client)) == (get, post)


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://127.0.0.1:8002", "127.0.0.1:8002", 200),
        ("http://localhost:8002", "localhost:8002", 200),
        ("http://[::1]:8002", "[::1]:8002", 200),
        ("http://evil.example", "127.0.0.1:8002", 403),
        ("null", "127.0.0.1:8002", 403),
        ("http://evil.example:8002", "evil.example:8002", 403),
        ("http://127.0.0.1:9000", "127.0.0.1:8002", 403),
    ],
)
async def test_pages_of_other_sites_change_nothing_whatever_name_they_give_this_address(
    origin: str, host: str, status: int
) -> None:
    assert await _status("POST", origin=origin, host=host) == status
    assert await _status("GET", origin=origin, host=host) == 200


async def test_changes_and_refusals_are_written_down_and_looking_is_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dlproxy.audit")
    await _status("GET")
    await _status("POST")
    await _status("POST", ELSEWHERE)
    assert [record.getMessage() for record in caplog.records] == [
        "anonymous from 127.0.0.1: POST /models: answered 200",
        "anonymous from 10.0.0.7: POST /models: refused: changes are taken from this machine only, "
        "as no API keys are asked for ([auth] keys)",
    ]
