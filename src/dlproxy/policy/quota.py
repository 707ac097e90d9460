"""Quotas: how many requests and rows a second each tenant may send. Called by serve/layers.py for every request.

Not aware of: who says which tenant a request is of, what else is refused.
"""

from collections import OrderedDict
from collections.abc import Mapping
from math import inf
from reprlib import repr as brief  # bounds the length: the name is the client's

from msgspec import Struct

from dlproxy.message import Failure, FailureKind, Ticket

EVERYBODY = "*"
MAX_TENANTS = 10_000  # unnamed tenants that are remembered: about 3 MB
LONGEST_NAME = 128  # characters; of longer names the hash is remembered, or memory would be the clients' to fill
ROUNDING_S = 1e-6  # a wait this short is none: `now + retry_after_s` rounds, and who comes back then is to be let in
LEAST_RATE = 1e-6  # one in 11 days: slower rates would tell clients to wait for times that no header can hold


class Quota(Struct, frozen=True):
    """What one tenant may send: sustained rates, and how many seconds of each it may send at once after a pause."""

    requests_per_s: float = inf
    rows_per_s: float = inf
    burst_s: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError for what could never admit, or never refuse."""
        for name, rate in (("requests_per_s", self.requests_per_s), ("rows_per_s", self.rows_per_s)):
            if not rate >= LEAST_RATE:
                raise ValueError(f"{name} is {rate}; it must be at least {LEAST_RATE}")
        if not 0.0 <= self.burst_s < inf:
            raise ValueError(f"burst_s is {self.burst_s}; it must be finite and not negative")


class _Buckets(Struct, gc=False):
    """When each bucket is full again. That one number is all of a token bucket: so many seconds' worth are missing."""

    requests_full_at: float = -inf
    rows_full_at: float = -inf


class Quotas:
    """A bucket of requests and one of rows per tenant, both of `burst_s` seconds' worth. Each call is O(1).

    The quota of "*" holds for each tenant that is not named, with buckets of its own; without it those are not limited.
    A request that is larger than a bucket is admitted when the bucket is full, and leaves a debt that must be paid back
    before the next: the rate holds, and no tenant is refused for ever. So over any time T a tenant gets at most
    max(burst, its largest request) + rate * T of either. Source: the virtual scheduling form of the generic cell rate
    algorithm (ITU-T I.371), which is a token bucket without refills.

    Of unnamed tenants `max_tenants` are remembered, those heard of last; full buckets are dropped on the way. A forgotten
    tenant starts with full buckets. One who may choose names gains nothing by making us forget: every new name has
    a full bucket anyhow. It can give others a burst early; named tenants are never forgotten. If names are not verified,
    limit the sum of all tenants by other means.
    """

    def __init__(self, quotas: Mapping[str, Quota], *, max_tenants: int = MAX_TENANTS) -> None:
        assert max_tenants >= 1
        self._named = {tenant: (quota, _Buckets()) for tenant, quota in quotas.items()}
        self._others = quotas.get(EVERYBODY)
        self._max_tenants = max_tenants
        self._remembered: OrderedDict[str | int, _Buckets] = OrderedDict()  # unnamed tenants, the last heard of at the end

    def __len__(self) -> int:
        """Unnamed tenants that are remembered."""
        return len(self._remembered)

    def admit(self, ticket: Ticket, now: float) -> Failure | None:
        """None after charging both buckets, else the failure to send, and neither is charged."""
        named = self._named.get(ticket.tenant)
        if named is not None:
            quota, buckets = named
            return _charge(quota, buckets, ticket, now)
        if self._others is None:
            return None
        tenant = ticket.tenant
        key = tenant if len(tenant) <= LONGEST_NAME else hash(tenant)
        known = self._remembered.get(key)
        if known is not None:
            self._remembered.move_to_end(key)
            return _charge(self._others, known, ticket, now)
        buckets = self._remembered[key] = _Buckets()
        failure = _charge(self._others, buckets, ticket, now)
        self._forget(now)
        return failure

    def _forget(self, now: float) -> None:
        """Called once per new name; it drops up to two, so that names which are not heard of again go away."""
        if len(self._remembered) > self._max_tenants:
            self._remembered.popitem(last=False)
        oldest = next(iter(self._remembered.values()))
        if oldest.requests_full_at <= now and oldest.rows_full_at <= now:
            self._remembered.popitem(last=False)


def _charge(quota: Quota, buckets: _Buckets, ticket: Ticket, now: float) -> Failure | None:
    burst_s = quota.burst_s
    requests_s, rows_s = 1.0 / quota.requests_per_s, ticket.rows / quota.rows_per_s
    requests_from, rows_from = max(buckets.requests_full_at, now), max(buckets.rows_full_at, now)
    requests_wait_s = requests_from - now - max(burst_s - requests_s, 0.0)
    rows_wait_s = rows_from - now - max(burst_s - rows_s, 0.0)
    if requests_wait_s <= ROUNDING_S and rows_wait_s <= ROUNDING_S:
        buckets.requests_full_at = requests_from + requests_s
        buckets.rows_full_at = rows_from + rows_s
        return None
    if requests_wait_s >= rows_wait_s:
        quantity, wait_s = f"{quota.requests_per_s:g} requests", requests_wait_s
    else:
        quantity, wait_s = f"{quota.rows_per_s:g} rows", rows_wait_s
    message = f"Quota exceeded: tenant {brief(ticket.tenant)} may send {quantity} a second; try again in {wait_s:.3f} s"
    return Failure(FailureKind.QUOTA, message, retry_after_s=wait_s)
