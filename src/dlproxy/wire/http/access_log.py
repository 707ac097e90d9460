"""A line in the log for each request, where the operator asks for it (`access_log`); bytes are those before compression.

Wraps the app, as http/cors.py does, so that it costs nothing where nobody does. Called by serve/server.py.
Not aware of: routes. Not in it: what the HTTP server refuses itself, such as malformed requests.
"""

import logging
import re
from collections.abc import Callable, Sequence

from dlproxy.wire.http.exchange import Exchange, ReplyStream
from dlproxy.wire.trace import request_id_of

log = logging.getLogger("dlproxy.access")

_MODEL = re.compile(r"/(?:v2/models|predict)/([^/?]+)")
_VARIANT = re.compile(rb"^x-dlproxy-variant: (.*)\r$", re.MULTILINE)


def with_access_log(app: Callable[[Exchange], None], clock: Callable[[], float]) -> Callable[[Exchange], None]:
    """`app`, with a line logged whenever a reply has left: seconds count from when the request was complete."""
    began_at: dict[Exchange, float] = {}
    in_parts: dict[ReplyStream, tuple[Exchange, int, bytes, int]] = {}  # with status, header lines, bytes of the body so far

    class LoggedStream(ReplyStream):
        __slots__ = ()

        def write(self, data: bytes | memoryview) -> None:
            super().write(data)
            if self in in_parts:
                exchange, status, extra, size = in_parts[self]
                in_parts[self] = exchange, status, extra, size + len(data)

        def end(self) -> None:
            super().end()
            self._log()

        def break_off(self) -> None:
            super().break_off()
            self._log()

        def _log(self) -> None:
            exchange, status, extra, size = in_parts.pop(self, (None, 0, b"", 0))
            if exchange is not None:
                _write(exchange, status, extra, size, clock() - began_at.pop(exchange, clock()))

    class LoggedExchange(Exchange):
        __slots__ = ()

        def reply(
            self,
            status: int,
            content_type: bytes,
            body: bytes,
            extra: bytes = b"",
            rest: Sequence[bytes | memoryview] = (),
            *,
            encoded: bool = False,
        ) -> None:
            seconds = clock() - began_at.pop(self, clock())
            super().reply(status, content_type, body, extra, rest, encoded=encoded)
            size = 0 if self.method == b"HEAD" else len(body) + sum(map(len, rest))
            _write(self, status, extra, size, seconds)

        def begin(self, status: int, content_type: bytes, extra: bytes = b"") -> ReplyStream:
            stream = super().begin(status, content_type, extra)
            in_parts[stream] = self, status, extra, 0
            stream.__class__ = LoggedStream
            return stream

    def begin(exchange: Exchange) -> None:
        began_at[exchange] = clock()
        exchange.__class__ = LoggedExchange
        app(exchange)

    return begin


def _write(exchange: Exchange, status: int, extra: bytes, size: int, seconds: float) -> None:
    shown = exchange.target.decode("ascii", "backslashreplace")
    model = _MODEL.match(shown)
    request = {
        "method": exchange.method.decode("ascii", "backslashreplace"),
        "target": shown,
        "status": status,
        "bytes": size,
        "seconds": round(seconds, 6),
        "model": model[1] if model else "",
    }
    variant = _VARIANT.search(extra)
    if variant:
        request["variant"] = variant[1].decode("ascii")
    request_id = request_id_of(exchange.headers)
    if request_id:
        request["id"] = request_id
    log.info(
        "%(method)s %(target)s status=%(status)d bytes=%(bytes)d seconds=%(seconds).6f model=%(model)s"
        + (" variant=%(variant)s" if variant else "")
        + (" id=%(id)s" if request_id else ""),
        request,
        extra={"request": request},
    )
