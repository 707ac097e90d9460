"""The control port over several gateways: what they tell as one, and what is ordered as an order to all.

Joined by front.py behind the guard of every control port. What changes models changes what is wanted, which all gateways
follow: one of them is told, and the answer waits for the others. Not aware of: processes, how numbers are added (sums.py).
"""

from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.runtime import ModelError
from dlproxy.message import encodable
from dlproxy.serve.gateways.asking import Answer, Asking
from dlproxy.serve.gateways.keeper import Gateways
from dlproxy.serve.gateways.sums import apart, summed, summed_history, with_gateways
from dlproxy.wire.control.guard import who_asks

CHANGE_S = 3600.0  # a load may take long, and has a limit of its own
MOST_BODY = 64 * 1024
MOST_WHY = 2000

Answered = Callable[[Request], Awaitable[Response]]


class SummedControl:
    """`routes` are those of a single server's control port, and /gateways: how each gateway is; POST /gateways/restart replaces
    them one by one without a request lost.
    """

    def __init__(self, gateways: Gateways, asking: Asking) -> None:
        self._gateways = gateways
        self._asking = asking

    def routes(self) -> list[Route]:
        looks: dict[str, Answered] = {
            "/metrics": self._metrics,
            "/healthz": self._health,
            "/models": self._models,
            "/autopilot": self._pilots,
            "/autopilot/{name}": self._pilots,
            "/cache": self._looked,
            "/cache/{name}": self._looked,
            "/log": self._first,
            "/openapi.json": self._first,
            "/why": self._why,
            "/why/{id}": self._why_one,
            "/dashboard/history": self._history,
            "/gateways": self._all_gateways,
        }
        orders = {
            "/autopilot/pause": "POST",
            "/autopilot/resume": "POST",
            "/autopilot/challenge": "POST",
            "/cache/clear": "POST",
            "/log": "PATCH",
        }
        return [
            *(Route(path, self._tell_all, methods=[method]) for path, method in orders.items()),
            *(Route(path, answer, methods=["GET"]) for path, answer in looks.items()),
            Route("/gateways/restart", self._restart, methods=["POST"]),
            Route("/models/{name}", self._model, methods=["GET"]),
            Route("/models/{name}", self._change, methods=["PATCH"]),
            Route("/models/{name}/{action}", self._change, methods=["POST"]),
        ]

    # What is told

    async def _metrics(self, request: Request) -> Response:
        found = await self._ask(request)
        if (refused := _refused(found)) is not None:
            return refused
        pages = {answer.process: bytes(answer.reply.body).decode() for answer in found}
        kind = found[0].reply.headers.get(b"content-type", CONTENT_TYPE_LATEST.encode()).decode()
        return Response(self._gateways.totals.page(pages), headers={"content-type": kind})

    async def _health(self, request: Request) -> Response:
        found = await self._ask(request)
        told = summed([answer.json() for answer in found]) if found else {"models": {}}
        models = {name: all(answer.json()["models"].get(name, False) for answer in found) for name in told["models"]}
        ready = bool(found) and all(answer.reply.status == 200 for answer in found)
        return JSONResponse({"ready": ready, "models": models}, status_code=200 if ready else 503)

    async def _models(self, request: Request) -> Response:
        return _joined(await self._ask(request), lambda told: summed([_with_number(*one) for one in told]))

    async def _model(self, request: Request) -> Response:
        return _joined(await self._ask(request), lambda told: summed([with_gateways(*one) for one in told]))

    async def _looked(self, request: Request) -> Response:
        return _joined(await self._ask(request), lambda told: summed([json for _, json in told]))

    async def _pilots(self, request: Request) -> Response:
        return _joined(await self._ask(request), apart)

    async def _why(self, request: Request) -> Response:
        def newest(told: list[tuple[int, Any]]) -> Any:
            if not isinstance(told[0][1], list):  # of one that was asked for by its id
                return told[0][1]
            limit = request.query_params.get("limit", "50")
            found = sorted(apart(told), key=lambda one: -one["at"] - one["seconds"])
            return found[: min(int(limit), MOST_WHY)]

        return _joined(await self._ask(request), newest)

    async def _why_one(self, request: Request) -> Response:
        return _joined(await self._ask(request), lambda told: max((one for _, one in told), key=lambda one: one["at"]))

    async def _history(self, request: Request) -> Response:
        def joined(told: list[tuple[int, Any]]) -> Any:
            jsons = [json for _, json in told]
            if isinstance(jsons[0], dict):
                return summed_history(jsons)
            return sorted(summed(jsons), key=lambda one: -one["answered"])

        return _joined(await self._ask(request), joined)

    async def _first(self, request: Request) -> Response:
        return _joined(await self._ask(request), lambda told: told[0][1])

    async def _all_gateways(self, request: Request) -> Response:
        now, places = monotonic(), []
        for place in self._gateways.places:
            life = place.life
            places.append(
                {
                    "number": place.number,
                    "pid": life and life.process.pid,
                    "state": "down" if life is None else "up",
                    "for_s": life and round(now - life.since, 1),
                    "restarts": place.restarts,
                    "adopter": place.adopter,
                }
            )
        return JSONResponse(places)

    # What is ordered

    async def _tell_all(self, request: Request) -> Response:
        """What each gateway has for itself, such as its pilots and its cache."""
        joined = apart if request.url.path.startswith("/autopilot") else lambda told: summed([json for _, json in told])
        return _joined(await self._ask(request, timeout_s=CHANGE_S), joined)

    async def _change(self, request: Request) -> Response:
        """What is wanted: one gateway is told, the others follow."""
        who, target, body = who_asks(request), _target(request), await _body(request)
        if body is None:
            return _wrong(f"the body is longer than {MOST_BODY} bytes", 400)
        place = next((place for place in self._gateways.places if place.life is not None), None)
        if place is None:
            return _wrong("no gateway is there now", 503)
        try:
            told = await self._asking.one(place.number, request.method, target, who, body, timeout_s=CHANGE_S)
        except UpstreamError as error:
            return _wrong(str(error), 503)
        if told.reply.status != 200:
            return _as_told(told)
        problem = await self._gateways.follow()
        if problem:
            return _wrong(f"one gateway has done it, but not all: {problem}", 503)
        name = request.path_params["name"]
        if request.method == "PATCH":
            return _joined(
                await self._asking.all("GET", target, who), lambda found: summed([with_gateways(*one) for one in found])
            )
        everything = await self._asking.all("GET", "/models", who)
        return _joined(
            everything,
            lambda found: [one for one in summed([_with_number(*each) for each in found]) if one["name"] == name],
        )

    async def _restart(self, request: Request) -> Response:
        try:
            await self._gateways.restart()
        except (ModelError, OSError) as error:
            return _wrong(f"a new gateway did not start, so the old one stays: {error}", 503)
        return await self._all_gateways(request)

    async def _ask(self, request: Request, *, timeout_s: float = 5.0) -> list[Answer]:
        body = await _body(request) if request.method not in ("GET", "HEAD") else b""
        if body is None:
            body = b" " * (MOST_BODY + 1)  # which each gateway refuses in its own words
        accept = request.headers.get("accept", "")
        method = "GET" if request.method == "HEAD" else request.method
        return await self._asking.all(method, _target(request), who_asks(request), body, accept=accept, timeout_s=timeout_s)


def _joined(found: list[Answer], join: Callable[[list[tuple[int, Any]]], Any]) -> Response:
    """Of those that have it; what stands against it, if none has."""
    well = [answer for answer in found if answer.reply.status == 200]
    if not well:
        return _as_told(found[0]) if found else _wrong("no gateway answers now", 503)
    try:
        return JSONResponse(join([(answer.number, answer.json()) for answer in well]))
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        return _wrong(f"gateways answer differently, as while they are replaced by others: {error!r}", 503)


def _refused(found: list[Answer]) -> Response | None:
    if not found:
        return _wrong("no gateway answers now", 503)
    return next((_as_told(answer) for answer in found if answer.reply.status != 200), None)


def _as_told(answer: Answer) -> Response:
    kind = answer.reply.headers.get(b"content-type", b"application/json").decode("latin-1")
    return Response(bytes(answer.reply.body), answer.reply.status, media_type=kind)


def _with_number(number: int, models: list[Any]) -> list[Any]:
    return [with_gateways(number, model) for model in models]


def _target(request: Request) -> str:
    path = request.scope["raw_path"].decode("latin-1")
    return f"{path}?{request.url.query}" if request.url.query else path


async def _body(request: Request) -> bytes | None:
    """None if it is longer than any change."""
    body = b""
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BODY:
                return None
    except ClientDisconnect:
        return b""
    return body


def _wrong(message: str, status: int) -> Response:
    return JSONResponse({"error": encodable(message)}, status_code=status)
