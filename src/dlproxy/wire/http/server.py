"""An HTTP/1.1 server for small, frequent requests: what its connections share.

Called by serve/server.py. Not aware of: parsing (http/connection.py), models, routes.
"""

from collections.abc import Callable

from dlproxy.config import HttpLimits
from dlproxy.telemetry.journal import Journal
from dlproxy.wire.audit import Audit
from dlproxy.wire.bounds import Bounds
from dlproxy.wire.http.codings import Compression
from dlproxy.wire.http.connection import HttpConnection, Seen
from dlproxy.wire.http.cors import Cors
from dlproxy.wire.http.exchange import Exchange
from dlproxy.wire.listening import Listening
from dlproxy.wire.terms import Identify

MAX_SEEN, MAX_SEEN_BYTES = 1024, 4096  # heads that are remembered for all connections, and the largest of them


class HttpServer(Listening):
    """Listens on one socket and hands every complete request to `app`, which replies through the exchange.

    `identify` says who asks, before the body is read, and may refuse the request; without it, everybody is anonymous.
    """

    def __init__(
        self,
        app: Callable[[Exchange], None],
        limits: HttpLimits,
        identify: Identify | None = None,
        bounds: Bounds | None = None,
        audit: Audit | None = None,
        journal: Journal | None = None,
    ) -> None:
        """`journal`: what is rare of single requests is noted there."""
        super().__init__(lambda: HttpConnection(self), Bounds(limits) if bounds is None else bounds, audit)
        self.identify = identify
        self.cors = Cors(limits.cors_origins) if limits.cors_origins else None
        self.compression = Compression(limits.compress_above_bytes) if limits.compress_above_bytes else None
        self.app = app if self.cors is None else self.cors.before(app)
        self.limits = limits
        self.journal = journal or Journal()
        self._seen: dict[bytes, Seen] = {}

    def remember(self, seen: Seen | None) -> Seen | None:
        """The same, or what another connection has seen with the same head: hundreds of clients then share what is read of it,
        which stays in the core's cache.
        """
        if seen is None or len(seen.head) > MAX_SEEN_BYTES:
            return seen
        if len(self._seen) >= MAX_SEEN:
            self._seen.clear()
        return self._seen.setdefault(seen.head, seen)
