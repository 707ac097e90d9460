"""Quotas: how many requests and rows a second, and how many requests at a time, each tenant and each key may send.

Called by serve/layers.py for every request. Not aware of: who says which tenant a request is of, what else is refused.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from math import inf
from reprlib import repr as brief  # bounds the length: the name is the client's
from typing import Literal

from msgspec import Struct

from dlproxy.message import ANONYMOUS, Failure, FailureKind, Principal, Quota, Ticket

EVERYBODY = "*"
MAX_TENANTS = 10_000  # unnamed tenants, and clients, that are remembered: about 3 MB of each
LONGEST_NAME = 128  # characters; of longer names the hash is remembered, or memory would be the clients' to fill
ROUNDING_S = 1e-6  # a wait this short is none: `now + retry_after_s` rounds, and who comes back then is to be let in
BUSY_S = 0.1  # when to try again while too many requests are under way


def quota_of(requests_per_s: float, rows_per_s: float, burst_s: float, concurrent: int) -> Quota | None:
    """As configurations say it, where 0 is no limit; None if nothing is limited. Raises ValueError."""
    if not (requests_per_s or rows_per_s or concurrent):
        return None
    return Quota(requests_per_s or inf, rows_per_s or inf, burst_s, concurrent or inf)


class Charge(Struct, frozen=True, array_like=True):
    """What one was charged by one of several processes that limit together, since it told that last. `running`: how many more
    of its requests are under way than then.
    """

    of: Literal["tenant", "key"]
    name: str
    quota: Quota
    requests: int
    rows: int
    running: int


class _Account(Struct, eq=False):
    """What one has used of its quota. When a bucket is full again is all of a token bucket: so many seconds' worth are missing.

    `running`: its requests under way, if they are limited; `elsewhere`: the same in other processes. `admitted`, `refused`:
    requests so far. `told`: requests, rows and running of what others have heard.
    """

    quota: Quota
    name: str
    of: Literal["tenant", "key"] = "tenant"
    requests_full_at: float = -inf
    rows_full_at: float = -inf
    running: int = 0
    elsewhere: int = 0
    admitted: int = 0
    rows: int = 0
    refused: int = 0
    told: tuple[int, int, int] = (0, 0, 0)


class Use(Struct, frozen=True):
    """How one uses its quota now. `requests_left`, `rows_left`: how full its buckets are, 0 to 1; None if there is none."""

    name: str
    of: Literal["tenant", "key"]
    quota: Quota
    running: int
    requests_left: float | None
    rows_left: float | None
    admitted: int
    refused: int


class _Accounts:
    """Those last heard of, `most` of them; full buckets are dropped on the way. A forgotten one starts with full buckets."""

    def __init__(self, most: int, of: Literal["tenant", "key"]) -> None:
        self._most = most
        self._of = of
        self._accounts: OrderedDict[str | int, _Account] = OrderedDict()  # the last heard of at the end

    def __len__(self) -> int:
        return len(self._accounts)

    def find(self, name: str, quota: Quota, now: float) -> _Account:
        """Its account, under the quota that holds now: one that was changed starts with full buckets."""
        key = name if len(name) <= LONGEST_NAME else hash(name)
        known = self._accounts.get(key)
        if known is None:
            self._forget(now)
            known = self._accounts[key] = _Account(quota, name if key is name else "", self._of)
            return known
        self._accounts.move_to_end(key)
        if known.quota is not quota and known.quota != quota:
            known.requests_full_at = known.rows_full_at = -inf
        known.quota = quota
        return known

    def newest(self, most: int) -> Iterator[tuple[str, _Account]]:
        """Those heard of last, but for names that are too long to be remembered."""
        for name in islice(reversed(self._accounts), most):
            if isinstance(name, str):
                yield name, self._accounts[name]

    def _forget(self, now: float) -> None:
        """Called once per new name; it drops up to two, so that names which are not heard of again go away."""
        accounts = self._accounts
        if len(accounts) >= self._most:
            accounts.popitem(last=False)
        oldest = next(iter(accounts.values()), None)
        if (
            oldest is not None
            and oldest.requests_full_at <= now
            and oldest.rows_full_at <= now
            and not (oldest.running or oldest.elsewhere)
        ):
            accounts.popitem(last=False)


class Quotas:
    """A bucket of requests and one of rows per tenant, both of `burst_s` seconds' worth. Each call is O(1).

    The quota of "*" holds for each tenant that is not named, with buckets of its own; without it those are not limited. A
    principal's own quota holds beside its tenant's, over all tenants that its requests name.
    A request that is larger than a bucket is admitted when the bucket is full, and leaves a debt that must be paid back
    before the next: the rate holds, and no tenant is refused for ever. So over any time T a tenant gets at most
    max(burst, its largest request) + rate * T of either. Source: the virtual scheduling form of the generic cell rate
    algorithm (ITU-T I.371), which is a token bucket without refills.

    Of unnamed tenants `max_tenants` are remembered, and of principals as many. One who may choose names gains nothing by
    making us forget: every new name has a full bucket anyhow. It can give others a burst early; named tenants are never
    forgotten. If names are not verified, limit the sum of all tenants by other means.
    """

    def __init__(self, quotas: Mapping[str, Quota], *, max_tenants: int = MAX_TENANTS) -> None:
        assert max_tenants >= 1
        self.by_tenant = bool(quotas)
        self._named = {tenant: _Account(quota, tenant) for tenant, quota in quotas.items()}
        self._others = quotas.get(EVERYBODY)
        self._unnamed = _Accounts(max_tenants, "tenant")
        self._principals = _Accounts(max_tenants, "key")
        self._untold: set[_Account] | None = None  # that were charged, where other processes are to hear of it
        self._counted: dict[int, list[_Account]] = {}  # where a request under way counts, by its ticket's id

    def __len__(self) -> int:
        """Unnamed tenants that are remembered."""
        return len(self._unnamed)

    def admit(self, ticket: Ticket, now: float, principal: Principal = ANONYMOUS) -> Failure | None:
        """None after charging all that it draws on, else the failure to send, and nothing is charged."""
        tenant = self._named.get(ticket.tenant)
        if tenant is None and self._others is not None:
            tenant = self._unnamed.find(ticket.tenant, self._others, now)
        if tenant is not None and (failure := _refusal(tenant, ticket, now)) is not None:
            tenant.refused += 1
            return _told(failure, f"tenant {brief(ticket.tenant)}")
        if principal.quota is not None:
            own = self._principals.find(principal.name, principal.quota, now)
            if (failure := _refusal(own, ticket, now)) is not None:
                own.refused += 1
                return _told(failure, brief(principal.name))
            self._charge(own, ticket, now)
        if tenant is not None:
            self._charge(tenant, ticket, now)
        return None

    def counts(self, ticket: Ticket) -> bool:
        """Whether it takes a place until `ended`."""
        return ticket.id in self._counted

    def ended(self, ticket: Ticket) -> None:
        """However it ended. Called again, it does nothing."""
        for account in self._counted.pop(ticket.id, ()):
            account.running -= 1
            if self._untold is not None:
                self._untold.add(account)

    # Several processes that limit together: what is admitted here is charged there, and the other way round

    def share(self) -> None:
        """From now on `charges` tells what other processes are to hear of."""
        self._untold = set()

    def charges(self) -> list[Charge]:
        """Since they were asked for last. Whoever tells them so often lets each process admit its own burst in between, and the
        rates hold over all.
        """
        found = []
        for account in self._untold or ():
            if not account.name:  # of one whose name is too long to be kept, which each process limits for itself
                continue
            now = (account.admitted, account.rows, account.running)
            requests, rows, running = (new - old for new, old in zip(now, account.told, strict=True))
            account.told = now
            found.append(Charge(account.of, account.name, account.quota, requests, rows, running))
        if found:
            self._untold = set()
        return found

    def charged(self, charges: Iterable[Charge], now: float) -> None:
        """By other processes."""
        for charge in charges:
            if charge.of == "key":
                account: _Account | None = self._principals.find(charge.name, charge.quota, now)
            else:
                account = self._named.get(charge.name)
                if account is None and self._others is not None:
                    account = self._unnamed.find(charge.name, self._others, now)
            if account is not None:
                _draw(account, charge.requests, charge.rows, now)
                account.elsewhere += charge.running

    def uses(self, now: float, most: int = 100) -> list[Use]:
        """Of named tenants, then of those heard of last, so many of each kind."""
        found = [_use(name, "tenant", account, now) for name, account in self._named.items() if name != EVERYBODY]
        found += [_use(name, "tenant", account, now) for name, account in self._unnamed.newest(most)]
        return found + [_use(name, "key", account, now) for name, account in self._principals.newest(most)]

    def _charge(self, account: _Account, ticket: Ticket, now: float) -> None:
        quota = account.quota
        account.admitted += 1
        account.rows += ticket.rows
        _draw(account, 1, ticket.rows, now)
        if self._untold is not None:
            self._untold.add(account)
        if quota.concurrent < inf:
            account.running += 1
            self._counted.setdefault(ticket.id, []).append(account)


def _draw(account: _Account, requests: int, rows: int, now: float) -> None:
    quota = account.quota
    account.requests_full_at = max(account.requests_full_at, now) + requests / quota.requests_per_s
    account.rows_full_at = max(account.rows_full_at, now) + rows / quota.rows_per_s


def _refusal(account: _Account, ticket: Ticket, now: float) -> tuple[str, float] | None:
    """What is exceeded, and how long to wait for it."""
    quota = account.quota
    if account.running + account.elsewhere >= quota.concurrent:
        return f"may have {quota.concurrent:g} requests under way at a time", BUSY_S
    burst_s = quota.burst_s
    requests_wait_s = account.requests_full_at - now - max(burst_s - 1.0 / quota.requests_per_s, 0.0)
    rows_wait_s = account.rows_full_at - now - max(burst_s - ticket.rows / quota.rows_per_s, 0.0)
    if requests_wait_s <= ROUNDING_S and rows_wait_s <= ROUNDING_S:
        return None
    if requests_wait_s >= rows_wait_s:
        return f"may send {quota.requests_per_s:g} requests a second", requests_wait_s
    return f"may send {quota.rows_per_s:g} rows a second", rows_wait_s


def _use(name: str, of: Literal["tenant", "key"], account: _Account, now: float) -> Use:
    quota = account.quota

    def left(rate: float, full_at: float) -> float | None:
        missing = 0.0 if full_at <= now else (full_at - now) / max(quota.burst_s, 1.0 / rate)
        return None if rate == inf else max(1.0 - missing, 0.0)

    requests, rows = left(quota.requests_per_s, account.requests_full_at), left(quota.rows_per_s, account.rows_full_at)
    return Use(name, of, quota, account.running, requests, rows, account.admitted, account.refused)


def _told(refusal: tuple[str, float], whom: str) -> Failure:
    exceeded, wait_s = refusal
    message = f"Quota exceeded: {whom} {exceeded}; try again in {wait_s:.3f} s"
    return Failure(FailureKind.QUOTA, message, retry_after_s=wait_s)
