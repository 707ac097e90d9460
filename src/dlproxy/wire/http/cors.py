"""Which other sites' pages may ask this server, as browsers want it said (Fetch standard, "CORS protocol").

Called by http/server.py and http/exchange.py, and only where origins are configured. Not aware of: routes.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlproxy.wire.http.exchange import Exchange

EXPOSED = (
    b"inference-header-content-length, retry-after, server-timing, x-dlproxy-cache, x-dlproxy-variant, allow, "
    b"x-request-id, traceparent"
)
METHODS = b"GET, HEAD, POST"
MAX_AGE_S = 7200  # the most that Chromium keeps a permission

_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-][!#$%&'*+.^_`|~0-9A-Za-z, \t-]*")


class Cors:
    """`origins`: as browsers send them, such as https://shop.example:8443; "*" among them stands for every one."""

    def __init__(self, origins: Collection[str]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)
        self._vary = b"" if self._any else b"vary: origin\r\n"  # for caches: another origin gets another answer

    def lines(self, headers: Mapping[bytes, bytes]) -> bytes:
        """What the answer to a request with these headers says; for other sites than the configured ones, no permission."""
        origin = b"*" if self._any else headers.get(b"origin", b"")
        if not self._any and origin not in self._origins:
            return self._vary
        return b"access-control-allow-origin: %b\r\naccess-control-expose-headers: %b\r\n%b" % (origin, EXPOSED, self._vary)

    def before(self, app: "Callable[[Exchange], None]") -> "Callable[[Exchange], None]":
        """`app`, which does not see it where a browser asks whether a page may make a request."""

        def answer(exchange: "Exchange") -> None:
            permission = self._preflight(exchange.method, exchange.headers)
            if permission is None:
                app(exchange)
            else:
                exchange.reply(200, b"text/plain", b"", permission)

        return answer

    def _preflight(self, method: bytes, headers: Mapping[bytes, bytes]) -> bytes | None:
        """What is answered to a browser that asks for permission first, besides `lines`; None if this is no such question."""
        if method != b"OPTIONS" or b"access-control-request-method" not in headers:
            return None
        if not self._any and headers.get(b"origin", b"") not in self._origins:
            return None
        asked = headers.get(b"access-control-request-headers", b"")
        known = _NAMES.fullmatch(asked) is not None
        wanted = b"access-control-allow-headers: %b\r\n" % asked if known else b""  # "*" would not stand for authorization
        return b"access-control-allow-methods: %b\r\n%baccess-control-max-age: %d\r\n" % (METHODS, wanted, MAX_AGE_S)
