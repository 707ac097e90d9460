"""`/why`: single requests that were slow or failed, and what their time went into. Routes of the control port.

Joined by serve/server.py. Not aware of: which requests are kept, how their causes are found (telemetry/exemplars.py).
"""

from collections.abc import Iterable
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dlproxy.message import encodable
from dlproxy.wire.control.guard import who_asks
from dlproxy.wire.http.target import name_in
from dlproxy.wire.rights import seen

KINDS = ("slow", "failed", "noted", "sample")
LIMIT, MOST = 50, 2000


class Exemplar(Protocol):
    """A request that was kept."""

    @property
    def name(self) -> str:
        """Of its model."""
        ...

    id: int
    request_id: str
    kept_as: Any
    arrived_at: float
    seconds: float

    def told(self) -> dict[str, Any]:
        """JSON."""
        ...


def why_routes(exemplars: Iterable[Exemplar]) -> list[Route]:
    """`GET /why` tells of those that were slow, failed or were noted, newest first; of `?kind=slow`, failed, noted, sample or
    all; of `?model=NAME`; at most `?limit=`. `GET /why/ID` tells of one, by its client's name for it or our number.
    """

    def visible(request: Request) -> list[Exemplar]:
        model = request.query_params.get("model", "")
        found = [one for one in seen(exemplars, who_asks(request)) if model in ("", one.name)]
        return sorted(found, key=lambda one: -one.arrived_at - one.seconds)

    async def several(request: Request) -> Response:
        params = request.query_params
        if "id" in params:
            return one_of(visible(request), params["id"])
        kind, limit = params.get("kind", ""), params.get("limit", str(LIMIT))
        if kind not in ("", "all", *KINDS):
            return _wrong(f"kind is {kind[:50]!r}; it can be {', '.join(KINDS)} or all")
        if not limit.isdecimal() or not 0 < int(limit[:9]) <= MOST:
            return _wrong(f"limit is {limit[:50]!r}; it can be 1 to {MOST}")
        kinds = KINDS if kind == "all" else (kind,) if kind else KINDS[:-1]
        found = [exemplar for exemplar in visible(request) if exemplar.kept_as in kinds]
        return JSONResponse([exemplar.told() for exemplar in found[: int(limit)]])

    async def one(request: Request) -> Response:
        return one_of(visible(request), name_in(request.path_params["id"]))

    return [Route("/why", several), Route("/why/{id}", one)]


def one_of(found: list[Exemplar], name: str) -> Response:
    """The newest of this name, and of what went on then under it the one that came first: a pipeline, not its stages."""
    named = [exemplar for exemplar in found if name and name in (exemplar.request_id, str(exemplar.id))]
    if named:
        newest = max(named, key=lambda one: one.arrived_at)
        around = [one for one in named if one.arrived_at + one.seconds >= newest.arrived_at]
        return JSONResponse(min(around, key=lambda one: one.arrived_at).told())
    message = (
        f"request {name[:128]!r} is not known. Of every model the slowest 8 of each 10 seconds are kept for 10 minutes, "
        f"the newest that failed, and one in a second as a sample: {len(found) or 'none'} now (dlproxy why, GET /why)"
    )
    return JSONResponse({"error": encodable(message), "kept": len(found)}, status_code=404)


def _wrong(message: str) -> Response:
    return JSONResponse({"error": encodable(message)}, status_code=400)
