"""How many connections there are from each address, over all ports. Made by serve/server.py, asked by listening.py.

Not aware of: protocols, requests.
"""

import ipaddress
import logging
from collections.abc import Callable
from time import monotonic

from dlproxy.config import ConfigError, HttpLimits
from dlproxy.hosts import client_of
from dlproxy.wire.handshakes import Handshakes

WARN_S = 10.0  # between warnings: who is refused may come back a thousand times a second

log = logging.getLogger(__name__)


class Place:
    """That of one connection among those of its address, until `leave`."""

    __slots__ = ("_counts", "key")

    def __init__(self, counts: dict[str, int] | None, key: str) -> None:
        self._counts = counts
        self.key = key

    def leave(self) -> None:
        """Called again, it does nothing."""
        counts, self._counts = self._counts, None
        if counts is not None:
            counts[self.key] -= 1
            if not counts[self.key]:
                del counts[self.key]


class Bounds:
    """Connections of Unix sockets, and of `unlimited_addresses`, are not counted. `on_refused` gets the address."""

    def __init__(
        self,
        limits: HttpLimits,
        on_refused: Callable[[str], None] = lambda address: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Raises ConfigError for an address that is none."""
        self.handshakes = Handshakes(limits.max_handshakes, limits.handshake_timeout_s)
        self._most = limits.max_connections_per_address
        self._unlimited = [_network(text) for text in limits.unlimited_addresses]
        self._on_refused = on_refused
        self._clock = clock
        self._counts: dict[str, int] = {}
        self._refused = 0
        self._warned_at = -WARN_S

    def __len__(self) -> int:
        """Addresses that have connections which are counted."""
        return len(self._counts)

    def place(self, address: str) -> Place | None:
        """For one more connection; None if it is one too many."""
        key = client_of(address)
        if not self._most or not key or self._is_unlimited(key):
            return Place(None, key)
        count = self._counts.get(key, 0)
        if count >= self._most:
            self._refuse(key)
            return None
        self._counts[key] = count + 1
        return Place(self._counts, key)

    def _is_unlimited(self, key: str) -> bool:
        if not self._unlimited:
            return False
        try:
            address = ipaddress.ip_address(key.removesuffix("/64"))
        except ValueError:
            return False
        return any(address in network for network in self._unlimited)

    def _refuse(self, key: str) -> None:
        self._refused += 1
        self._on_refused(key)
        now = self._clock()
        if now - self._warned_at >= WARN_S:
            self._warned_at = now
            log.warning(
                "%d connections were closed at once, the last from %s: an address may have %d (max_connections_per_address)",
                self._refused,
                key,
                self._most,
            )
            self._refused = 0


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(f"'{text}' is no address or network, such as 10.0.0.7 or 10.0.0.0/8", "unlimited_addresses") from None
    if network.version == 6 and network.prefixlen > 64:  # all of a /64 counts as one
        network = network.supernet(new_prefix=64)
    return network
