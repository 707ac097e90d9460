"""Which version of a model answers a request that names none, where shares, keys or tenants say so (Traffic in wanted.py).

Called by serve/traffic.py for every such request. Not aware of: what versions are, how they do.
"""

from bisect import bisect_right
from collections.abc import Container, Mapping
from hashlib import blake2b
from itertools import accumulate

from dlproxy.message import Ticket
from dlproxy.policy.wanted import Traffic, number_of

GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo 1 fill the unit interval as evenly as any: whatever stretch of requests is
# looked at, each share is met but for a few (discrepancy O(log n / n): Kuipers and Niederreiter, "Uniform Distribution of
# Sequences", 1974, section 2.3); unlike turns, they keep step with no client that sends its kinds of requests in turns


class Splitter:
    """Chooses among `served` versions. What those would get that are not served, the default version gets.

    Every version owns a stretch of the unit interval, the oldest at its start, the others at its end, the default the rest. A
    request, or its key's hash, is a point. So with up to two versions beside the default, keys move only into a share that
    grows and out of one that shrinks. Models hash keys differently: not everywhere are the same clients first.
    """

    def __init__(self, model: str, default: str, traffic: Traffic, served: Container[str]) -> None:
        self.at = 0.5
        """The point of the last request without a key; a splitter that takes another's place goes on from there."""
        self._salt = blake2b(model.encode(errors="surrogatepass"), digest_size=16).digest()
        self._by_tenant, self._by_header = traffic.by == "tenant", traffic.by.startswith("header:")
        self._tenants: Mapping[str, str] = {
            tenant: version if version in served else default for tenant, version in traffic.tenants.items()
        }
        shares = [(version, share) for version, share in traffic.shares.items() if version != default and share > 0.0]
        shares.sort(key=lambda owned: number_of(owned[0]))
        first, others = shares[:1], shares[1:]
        rest = max(1.0 - sum(share for _, share in shares), 0.0)
        stretches = [*first, (default, rest), *others]
        self._ends = list(accumulate(share for _, share in stretches))[:-1]
        self._owners = [version if version in served else default for version, _ in stretches]

    def choose(self, ticket: Ticket) -> str:
        """The version for it. Requests that say no key are split one by one."""
        if self._tenants:
            own = self._tenants.get(ticket.tenant)
            if own is not None:
                return own
        key = ticket.tenant if self._by_tenant else ticket.affinity if self._by_header else ""
        if key:
            point = self._place(key)
        else:
            point = self.at = (self.at + GOLDEN) % 1.0
        return self._owners[bisect_right(self._ends, point)]

    def _place(self, key: str) -> float:
        digest = blake2b(key.encode(errors="surrogatepass"), digest_size=7, salt=self._salt)
        return int.from_bytes(digest.digest(), "little") / 2**56
