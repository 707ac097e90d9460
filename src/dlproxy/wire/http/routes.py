"""Which handler answers a path and a method, with the 404 and 405 of those that none does. Used by oip/http.py.

Not aware of: what a handler does.
"""

import re
from collections.abc import Callable, Iterable

from msgspec import Struct

from dlproxy.message import Scope
from dlproxy.wire.http.audited import audited
from dlproxy.wire.http.exchange import Exchange
from dlproxy.wire.http.target import name_in, path_of

VERSION = r"(?:/versions/(?P<version>(?:\w|%[89A-F][0-9A-F])+))?"  # a number, or a label in any language

Handler = Callable[..., None]
"""Called with the exchange, and by name with what the pattern's groups matched, decoded. May raise InferenceError."""

Row = tuple[str, bytes, Handler] | tuple[str, bytes, Handler, Scope | None]
"""A pattern of a path, as path_of gives it; a method; who answers it; what one has to be allowed for it.

GET answers HEAD, too. None: nothing. Not said: to read, for GET; else nothing here, as whoever submits asks.
"""


class Found(Struct):
    """Where a request goes."""

    handler: Handler
    groups: dict[str, str]
    right: Scope | None


class Routes:
    """A table of rows; the first pattern that fits holds."""

    def __init__(self, rows: Iterable[Row], *, hint: str) -> None:
        """`hint`: what a 404 says there is instead."""
        table: dict[str, dict[bytes, tuple[Handler, Scope | None]]] = {}
        for row in rows:
            pattern, method, handler = row[:3]
            right: Scope | None = row[3] if len(row) == 4 else "read" if method == b"GET" else None
            if right == "admin":
                handler = audited(handler)
            handlers = table.setdefault(pattern, {})
            handlers[method] = handler, right
            if method == b"GET":
                handlers.setdefault(b"HEAD", (handler, right))
        self._table = [(re.compile(pattern), handlers) for pattern, handlers in table.items()]
        self._hint = hint

    def has(self, path: str, method: bytes) -> bool:
        """Whether it is answered; `path` as path_of gives it."""
        handlers = next((handlers for pattern, handlers in self._table if pattern.fullmatch(path)), {})
        return method in handlers

    def find(self, exchange: Exchange) -> Found | None:
        """None if there is no such route, which is answered already."""
        path, shown = path_of(exchange.target), exchange.target.partition(b"?")[0].decode("latin-1")
        for pattern, handlers in self._table:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            found = handlers.get(exchange.method)
            if found is not None:
                handler, right = found
                return Found(handler, {name: name_in(part) for name, part in match.groupdict(default="").items()}, right)
            allowed = ", ".join(method.decode() for method in handlers)
            message = f"Method Not Allowed: {shown} accepts {allowed}, not {exchange.method.decode()}"
            exchange.fail(405, message, f"allow: {allowed}\r\n".encode())
            return None
        exchange.fail(404, f"Not Found: no such path: {shown}; {self._hint}")
        return None
