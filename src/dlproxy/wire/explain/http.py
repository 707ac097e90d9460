"""KServe's `POST /v1/models/{model}[/versions/{version}]:explain`. Its rows stand beside those of oip/http.py.

Called by serve/server.py. Not aware of: sockets, how an explanation is found (explain/explanations.py).
"""

import asyncio
from collections.abc import Callable

import msgspec

from dlproxy.message import Failure, FailureKind, InferenceError
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.endpoint import TENANT_HEADER, FrontDesk
from dlproxy.wire.explain.explanations import Explanation
from dlproxy.wire.http.exchange import Exchange
from dlproxy.wire.http.routes import VERSION, Row
from dlproxy.wire.oip.http import variant_line

EXPLAIN = r"(?i)/v1/models/(?P<name>(?:(?!%3A)[^/])+)" + VERSION + "%3Aexplain"


class Explain:
    """Answers for every model. `max_json_bytes` bounds JSON, which blocks the loop while it is read."""

    def __init__(
        self, catalog: Catalog, *, max_json_bytes: int, clock: Callable[[], float], tenant_header: str = TENANT_HEADER
    ) -> None:
        self._desk = FrontDesk(catalog, lambda endpoint: endpoint, clock=clock, tenant_header=tenant_header)
        self._max_json_bytes = max_json_bytes
        self._tasks: set[asyncio.Task[None]] = set()

    def rows(self) -> list[Row]:
        return [(EXPLAIN, b"POST", self._explain)]

    def _explain(self, exchange: Exchange, name: str, version: str) -> None:
        endpoint = self._desk.find(name, version, exchange.principal)
        try:
            terms = endpoint.read_headers(exchange.headers, exchange.principal)
            if len(exchange.body) > self._max_json_bytes:
                message = f"the JSON is {len(exchange.body)} bytes; at most {self._max_json_bytes} are accepted"
                raise InferenceError(Failure(FailureKind.TOO_LARGE, message))
            explanation = Explanation(endpoint, terms, exchange.body)
        except InferenceError as error:
            raise endpoint.refused(error, exchange.headers) from None
        task = asyncio.get_running_loop().create_task(_answer(exchange, explanation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        exchange.on_abandoned = task.cancel


async def _answer(exchange: Exchange, explanation: Explanation) -> None:
    try:
        told = await explanation.told()
        extra = variant_line(explanation.variant) if explanation.variant else b""
        exchange.reply(200, b"application/json", msgspec.json.encode({"explanations": told}), extra)
    except InferenceError as error:
        exchange.refuse(error.failure)
    except asyncio.CancelledError:
        exchange.refuse(Failure(FailureKind.CANCELLED, "cancelled"))
        raise
    except Exception:
        exchange.give_up()
