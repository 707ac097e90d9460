"""The dashboard's routes on the control port: the page and its files, which need no key, and the data, which needs `read`.

Called by serve/server.py, behind control/guard.py. Not aware of: what is told, how the page looks.
"""

from collections.abc import AsyncIterator
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dlproxy.message import InferenceError
from dlproxy.wire.control.guard import may_change, who_asks
from dlproxy.wire.dashboard.feed import Feed
from dlproxy.wire.dashboard.history import HOUR
from dlproxy.wire.dashboard.telling import Audience, Telling
from dlproxy.wire.http.exchange import STATUS
from dlproxy.wire.rights import demand

STATIC = "/dashboard/static/"
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "ico": "image/x-icon",
    "txt": "text/plain; charset=utf-8",
    "woff2": "font/woff2",
}
PROTECTED = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # asked for again each time, and mostly answered by the ETag alone
}
STREAM = {"cache-control": "no-store", "x-accel-buffering": "no", "x-content-type-options": "nosniff"}


def page_routes() -> list[Route]:
    """The page and its files."""
    found = dict(_files(files("dlproxy.wire.dashboard").joinpath("page")))

    async def page(request: Request) -> Response:
        return _file(request, "index.html")

    async def static(request: Request) -> Response:
        return _file(request, request.path_params["name"])

    def _file(request: Request, name: str) -> Response:
        if name not in found:
            return JSONResponse({"error": f"there is no file {name[:100]!r}"}, status_code=404)
        content, tag = found[name]
        headers = {**PROTECTED, "etag": tag, "content-type": TYPES.get(name.rpartition(".")[2], "application/octet-stream")}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    return [Route("/", page), Route(STATIC + "{name:path}", static)]


def feed_route(feed: Telling) -> Route:
    """`GET /dashboard/feed`: a stream of events, or all at once as JSON."""

    async def stream(request: Request) -> Response:
        if feed.closed:
            return JSONResponse({"error": "the server stops, or its dashboard has failed: see its log"}, status_code=503)
        if "application/json" in request.headers.get("accept", ""):
            return Response(await feed.now(_audience(request)), media_type="application/json", headers=STREAM)
        if request.method == "HEAD":
            return Response(media_type="text/event-stream", headers=STREAM)
        told: AsyncIterator[bytes] = feed.read(_audience(request))
        return StreamingResponse(told, media_type="text/event-stream", headers=STREAM)

    return Route("/dashboard/feed", stream)


def dashboard_routes(feed: Feed) -> list[Route]:
    async def history(request: Request) -> Response:
        asked = request.query_params
        name, version, seconds = asked.get("model", ""), asked.get("version", ""), asked.get("seconds", str(HOUR))
        if not (seconds.isascii() and seconds.isdecimal()):
            return JSONResponse({"error": "seconds is not a number from 1 to 3600"}, status_code=400)
        if not name:
            sees = _audience(request).sees
            return JSONResponse([one for one in feed.sampler.asked() if sees(one["name"])])
        try:
            demand(who_asks(request), "read", name)
            known = feed.sampler.version_of(name, version)
        except InferenceError as error:
            return JSONResponse({"error": error.failure.message}, status_code=STATUS[error.failure.kind])
        told = feed.sampler.history(name, known, min(int(seconds[:5]), HOUR))
        return Response(msgspec.json.encode(told), media_type="application/json", headers={"cache-control": "no-store"})

    return [*page_routes(), feed_route(feed), Route("/dashboard/history", history)]


def _audience(request: Request) -> Audience:
    grant = who_asks(request).grant
    everything = grant is None or "*" in grant.models
    return Audience(None if grant is None or everything else grant.models, may_change(request))


def _files(folder: Traversable, before: str = "") -> "list[tuple[str, tuple[bytes, str]]]":
    """Each by its path below the folder, with its ETag."""
    found: list[tuple[str, tuple[bytes, str]]] = []
    for each in folder.iterdir():
        name = before + each.name
        if each.is_dir():
            found += _files(each, f"{name}/")
        else:
            content = each.read_bytes()
            found.append((name, (content, f'"{sha256(content).hexdigest()[:32]}"')))
    return found
