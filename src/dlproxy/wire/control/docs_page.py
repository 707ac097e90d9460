"""The control port's page to try requests, `/docs`, with what it needs: the OpenAPI document and a way to the inference port.

A browser lets no page ask another port unless that permits it, so the page's requests go through this one (`/docs/try/…`).
Called by control/http.py. Not aware of: models, what a request means.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from typing import Any

from msgspec import Struct
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dlproxy.message import Principal
from dlproxy.wire.control.guard import who_asks

MOST_BODY = 64 * 1024 * 1024  # bytes of a request that is tried: the inference port's own bound, unless it is set higher
PIECE = 64 * 1024

OWN = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "expect", "upgrade", "te", "cookie"}
)
"""Headers of the connection between browser and control port, not of the request that is tried."""
NOT_SENT_ON = frozenset({b"connection", b"date", b"transfer-encoding", b"keep-alive"})
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "frame-ancestors 'none'"
)
"""Of the page: it loads nothing, and asks nobody but this port."""


class InferencePort(Struct, frozen=True):
    """Where inference is: a port of `host`, or else a Unix socket's path."""

    host: str = ""
    port: int = 0
    path: str = ""
    tls: bool = False

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Raises OSError."""
        tls = _our_own() if self.tls else None
        if self.path:
            name = "localhost" if self.tls else None
            return await asyncio.open_unix_connection(self.path, limit=PIECE, ssl=tls, server_hostname=name)
        return await asyncio.open_connection(self.host, self.port, limit=PIECE, ssl=tls)

    def url(self, host: str) -> str:
        """For a client that has reached the control port under this name."""
        scheme = "https" if self.tls else "http"
        return f"{scheme}://localhost" if self.path else f"{scheme}://{host}:{self.port}"


def _our_own() -> ssl.SSLContext:
    """For a connection to ourselves: the certificate names the server as its clients know it, not as it knows itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def docs_routes(document: Callable[[Principal, str], dict[str, Any]], port: InferencePort) -> list[Route]:
    page = files("dlproxy.wire.control").joinpath("docs.html").read_text("utf-8")

    async def docs(_: Request) -> Response:
        return Response(page, media_type="text/html", headers={"content-security-policy": POLICY})

    async def openapi(request: Request) -> Response:
        found = document(who_asks(request), port.url(_host(request)))
        if port.path:
            found["x-unix-socket"] = port.path
        return JSONResponse(found)

    async def attempt(request: Request) -> Response:
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return JSONResponse({"error": "requests are tried by the page at /docs of this port only"}, status_code=403)
        try:
            return await _passed_on(request, port)
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody reads
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            return JSONResponse({"error": f"no answer from the inference port: {error}"}, status_code=502)

    return [
        Route("/docs", docs),
        Route("/openapi.json", openapi),
        Route("/docs/try/{path:path}", attempt, methods=["GET", "POST"]),
        Route("/docs/try", attempt, methods=["GET", "POST"]),
    ]


def _host(request: Request) -> str:
    """As the client wrote it, with the brackets of an IPv6 address."""
    host = request.url.hostname or "localhost"
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


async def _passed_on(request: Request, port: InferencePort) -> Response:
    """In HTTP/1.0, in which the answer needs no framing: it ends with the connection, also one in parts."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BODY:
            return JSONResponse({"error": f"the body is longer than {MOST_BODY} bytes"}, status_code=413)
    target = "/" + request.path_params.get("path", "") + (f"?{request.url.query}" if request.url.query else "")
    lines = [f"{request.method} {target} HTTP/1.0", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in request.headers.items() if name not in OWN and name != "accept-encoding"]
    lines += [f"Content-Length: {len(body)}"] if request.method == "POST" else []
    reader, writer = await port.connect()
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        status_line, *fields = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
    except BaseException:
        writer.close()
        raise
    answer = StreamingResponse(_rest(reader, writer), int(status_line.split(b" ")[1]))
    pairs = [(name.lower(), value.strip()) for name, _, value in (field.partition(b":") for field in fields)]
    answer.raw_headers = [pair for pair in pairs if pair[0] not in NOT_SENT_ON]
    return answer


async def _rest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncIterator[bytes]:
    try:
        while piece := await reader.read(PIECE):
            yield piece
    finally:
        writer.close()
