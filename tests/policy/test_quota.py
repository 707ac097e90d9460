"""Quotas: what a tenant gets over any window, what it is told, and that neither other tenants nor made-up names matter."""

import tracemalloc
from math import inf, isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.message import Failure, FailureKind, Principal, Quota, Ticket
from dlproxy.policy.quota import BUSY_S, Quotas

TEN = Quota(requests_per_s=10.0)  # ten at once, then one every 100 ms


def admit(quotas: Quotas, now: float, tenant: str = "a", rows: int = 1) -> Failure | None:
    return quotas.admit(Ticket(1, now, rows=rows, tenant=tenant), now)


def admitted(quotas: Quotas, now: float, tenant: str = "a", *, of: int = 100, rows: int = 1) -> int:
    return sum(admit(quotas, now, tenant, rows) is None for _ in range(of))


def refusal(quotas: Quotas, now: float, tenant: str = "a", rows: int = 1) -> Failure:
    failure = admit(quotas, now, tenant, rows)
    assert failure is not None
    return failure


@pytest.mark.parametrize(
    ("quota", "rows", "at_once", "a_second_later", "after_an_hour"),
    [
        pytest.param(Quota(), 1000, 100, 100, 100, id="no quota"),
        pytest.param(Quota(requests_per_s=10.0), 1000, 10, 10, 10, id="requests"),
        pytest.param(Quota(requests_per_s=10.0, burst_s=3.0), 1, 30, 10, 30, id="three seconds' worth at once"),
        pytest.param(Quota(requests_per_s=10.0, burst_s=0.0), 1, 1, 1, 1, id="no burst: one at a time"),
        pytest.param(Quota(rows_per_s=20.0), 4, 5, 5, 5, id="rows"),
        pytest.param(Quota(requests_per_s=3.0, rows_per_s=20.0), 4, 3, 3, 3, id="both, requests are scarcer"),
        pytest.param(Quota(requests_per_s=10.0, rows_per_s=20.0), 4, 5, 5, 5, id="both, rows are scarcer"),
        pytest.param(Quota(requests_per_s=0.25), 1, 1, 0, 1, id="one in four seconds"),
        pytest.param(Quota(rows_per_s=20.0), 50, 1, 0, 1, id="larger than the bucket: one, on credit"),
    ],
)
def test_how_many_come_through(quota: Quota, rows: int, at_once: int, a_second_later: int, after_an_hour: int) -> None:
    quotas = Quotas({"a": quota})
    assert admitted(quotas, 100.0, rows=rows) == at_once
    assert admitted(quotas, 101.0, rows=rows) == a_second_later
    assert admitted(quotas, 3701.0, rows=rows) == after_an_hour


def test_how_one_uses_its_quota_is_told() -> None:
    both = Quota(requests_per_s=10.0, rows_per_s=100.0, burst_s=2.0, concurrent=5)
    quotas = Quotas({"a": both, "*": TEN})
    for number in range(6):
        quotas.admit(Ticket(number, 0.0, rows=30, tenant="a"), 0.0, Principal("key", quota=Quota(rows_per_s=300.0)))
    admit(quotas, 0.0, "b")
    admit(quotas, 0.0, "x" * 1000)
    told = {(use.of, use.name): (use.admitted, use.refused, use.running) for use in quotas.uses(0.0)}
    assert told == {("tenant", "a"): (5, 1, 5), ("tenant", "b"): (1, 0, 0), ("key", "key"): (5, 0, 0)}
    named, other, key = quotas.uses(0.5)
    assert (named.requests_left, named.rows_left) == (pytest.approx(1.0), pytest.approx(0.5))
    assert (other.requests_left, other.rows_left) == (pytest.approx(1.0), None)
    assert (key.requests_left, key.rows_left) == (None, pytest.approx(1.0))


def test_of_many_those_heard_of_last_are_told() -> None:
    quotas = Quotas({"*": TEN})
    for number in range(50):
        admit(quotas, 0.0, f"t{number}")
    assert [use.name for use in quotas.uses(0.0, most=2)] == ["t49", "t48"]


def test_a_debt_is_paid_before_the_next_request() -> None:
    quotas = Quotas({"a": Quota(rows_per_s=20.0)})
    assert admit(quotas, 0.0, rows=100) is None
    assert refusal(quotas, 0.0, rows=1).retry_after_s == pytest.approx(4.05), "80 rows of debt and one to send"
    assert refusal(quotas, 4.0, rows=1).retry_after_s == pytest.approx(0.05)
    assert admit(quotas, 4.05, rows=1) is None


def test_a_large_request_waits_for_a_full_bucket_and_no_longer() -> None:
    quotas = Quotas({"a": Quota(rows_per_s=20.0)})
    assert admit(quotas, 0.0, rows=1) is None
    assert refusal(quotas, 0.0, rows=100).retry_after_s == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("quota", "message"),
    [
        (Quota(requests_per_s=0.5), "Quota exceeded: tenant 'a' may send 0.5 requests a second; try again in 2.000 s"),
        (Quota(rows_per_s=2.0, burst_s=0.5), "Quota exceeded: tenant 'a' may send 2 rows a second; try again in 1.000 s"),
        (
            Quota(requests_per_s=100.0, rows_per_s=2.0, burst_s=0.5),
            "Quota exceeded: tenant 'a' may send 2 rows a second; try again in 1.000 s",
        ),
    ],
)
def test_a_refusal_names_tenant_quota_and_time(quota: Quota, message: str) -> None:
    quotas = Quotas({"a": quota})
    assert admit(quotas, 0.0, rows=2) is None
    failure = refusal(quotas, 0.0, rows=2)
    assert failure.kind is FailureKind.QUOTA
    assert failure.message == message


def test_a_refusal_charges_neither_bucket() -> None:
    quotas = Quotas({"a": Quota(requests_per_s=10.0, rows_per_s=20.0)})
    assert admit(quotas, 0.0, rows=15) is None
    assert admitted(quotas, 0.0, rows=6) == 0
    assert admitted(quotas, 0.0, rows=0) == 9, "the requests that are left"
    quotas = Quotas({"a": Quota(requests_per_s=2.0, rows_per_s=20.0)})
    assert admitted(quotas, 0.0, rows=5) == 2
    assert refusal(quotas, 0.0, rows=5).retry_after_s == pytest.approx(0.5)
    assert admit(quotas, 0.5, rows=20) is None, "the 10 rows that are left, and 10 that have come since"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Quota(requests_per_s=0.0),
        lambda: Quota(requests_per_s=-1.0),
        lambda: Quota(rows_per_s=float("nan")),
        lambda: Quota(rows_per_s=1e-300),
        lambda: Quota(burst_s=-1.0),
        lambda: Quota(burst_s=inf),
        lambda: Quota(concurrent=0),
        lambda: Quota(concurrent=-1),
        lambda: Quota(burst_s=float("nan")),
    ],
)
def test_refuses_quotas_that_make_no_sense(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="must be"):
        make()


# Tenants


def test_unnamed_tenants_are_not_limited_without_a_star() -> None:
    quotas = Quotas({"a": TEN})
    assert admitted(quotas, 0.0, "b") == 100
    assert len(quotas) == 0


def test_a_star_limits_each_unnamed_tenant_on_its_own() -> None:
    quotas = Quotas({"a": Quota(requests_per_s=20.0), "*": TEN})
    assert [admitted(quotas, 0.0, tenant) for tenant in ("a", "b", "c", "", "b", "*")] == [20, 10, 10, 10, 0, 10]


def test_long_names_are_told_apart_but_not_kept() -> None:
    quotas = Quotas({"*": TEN})
    tracemalloc.start()
    try:
        for number in range(20):
            assert admitted(quotas, 0.0, "x" * 100_000 + str(number), of=20) == 10
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()
    assert len(refusal(quotas, 0.0, "x" * 100_000 + "1").message) < 200


def test_remembers_a_bounded_number_of_tenants_those_heard_of_last() -> None:
    quotas = Quotas({"a": TEN, "*": TEN}, max_tenants=50)
    assert admitted(quotas, 0.0, "a") == 10
    assert admitted(quotas, 0.0, "regular", of=9) == 9
    for number in range(1000):
        assert admit(quotas, 0.0, f"made up {number}") is None
        assert len(quotas) <= 50
        if number == 40:
            assert admit(quotas, 0.0, "regular") is None
        if number == 80:
            assert admit(quotas, 0.0, "regular") is not None
    assert admitted(quotas, 0.0, "a") == 0, "named tenants are never forgotten"
    assert admitted(quotas, 0.0, "regular") == 10, "a forgotten one starts full"


def test_one_who_keeps_knocking_is_not_forgotten() -> None:
    quotas = Quotas({"*": TEN}, max_tenants=50)
    assert admitted(quotas, 0.0, "impatient") == 10
    for number in range(1000):
        assert admit(quotas, 0.0, f"made up {number}") is None
        assert admit(quotas, 0.0, "impatient") is not None


def test_tenants_that_do_not_come_back_cost_nothing() -> None:
    quotas = Quotas({"*": TEN})
    for number in range(1000):
        assert admit(quotas, number * 0.01, f"tenant {number}") is None
    assert len(quotas) <= 11, "each bucket is full again after 0.1 s"
    unlimited = Quotas({"*": Quota()})
    assert admitted(unlimited, 0.0) == 100
    assert len(unlimited) <= 1


# Requests at a time


def test_as_many_requests_at_a_time_as_are_allowed() -> None:
    quotas = Quotas({"a": Quota(concurrent=2)})
    tickets = [Ticket(number, 0.0, tenant="a") for number in range(3)]
    assert [quotas.admit(ticket, 0.0) is None for ticket in tickets] == [True, True, False]
    for _ in range(5):
        quotas.ended(tickets[0])
    quotas.ended(tickets[2])
    assert admit(quotas, 0.0) is None, "one place is free again, however often its end is told"
    failure = refusal(quotas, 0.0)
    assert (failure.kind, failure.retry_after_s) == (FailureKind.QUOTA, BUSY_S)
    assert "may have 2 requests under way at a time" in failure.message


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.sampled_from(["a", "b", ""])), max_size=80))
def test_places_are_given_back_exactly_once(steps: list[tuple[int, bool, str]]) -> None:
    """Against a model: who is under way, by tenant and by client."""
    quotas = Quotas({"*": Quota(concurrent=3)})
    ann = Principal("ann", quota=Quota(concurrent=4))
    under_way: dict[int, str] = {}
    for number, begins, tenant in steps:
        if not begins:
            quotas.ended(Ticket(number, 0.0))
            under_way.pop(number, None)
        elif number not in under_way:
            room = list(under_way.values()).count(tenant) < 3 and len(under_way) < 4
            assert (quotas.admit(Ticket(number, 0.0, tenant=tenant), 0.0, ann) is None) == room
            if room:
                under_way[number] = tenant
        assert all(quotas.counts(Ticket(one, 0.0)) == (one in under_way) for one in range(10))


# Keys


def test_a_clients_quota_holds_over_all_tenants_that_it_names() -> None:
    quotas, ann = Quotas({}), Principal("ann", quota=TEN)
    passed = sum(quotas.admit(Ticket(number, 0.0, tenant=str(number)), 0.0, ann) is None for number in range(30))
    assert passed == 10
    assert quotas.admit(Ticket(31, 0.0), 0.0, Principal("bob", quota=TEN)) is None, "of another client"
    assert quotas.admit(Ticket(32, 0.0), 0.0, Principal("eve")) is None, "who has none"


def test_what_one_quota_refuses_is_not_charged_to_the_other() -> None:
    ann = Principal("ann", quota=Quota(requests_per_s=1.0))
    quotas = Quotas({"a": Quota(requests_per_s=2.0)})
    kinds = [quotas.admit(Ticket(number, 0.0, tenant="a"), 0.0, ann) is None for number in range(5)]
    assert kinds == [True, False, False, False, False]
    assert [admit(quotas, 0.0) is None for _ in range(2)] == [True, False], "the tenant has one left"


def test_a_changed_quota_holds_at_once_and_what_is_under_way_still_counts() -> None:
    quotas, running = Quotas({}), Ticket(1, 0.0, rows=1000)
    assert quotas.admit(running, 0.0, Principal("ann", quota=Quota(rows_per_s=1.0, concurrent=2))) is None
    assert quotas.admit(Ticket(2, 0.0), 0.0, Principal("ann", quota=Quota(rows_per_s=1.0, concurrent=2))) is not None
    ann = Principal("ann", quota=Quota(rows_per_s=2.0, concurrent=2))
    assert quotas.admit(Ticket(3, 0.0), 0.0, ann) is None, "the debt under the old one is gone"
    failure = quotas.admit(Ticket(4, 0.0), 0.0, ann)
    assert failure is not None
    assert "under way" in failure.message
    quotas.ended(running)
    assert quotas.admit(Ticket(5, 0.0), 0.0, ann) is None


# Properties; eighths and powers of two are exact, so that nothing hangs on rounding

rates = st.sampled_from([0.5, 1.0, 4.0, 16.0, inf])
quota_values = st.builds(Quota, requests_per_s=rates, rows_per_s=rates, burst_s=st.sampled_from([0.0, 0.125, 1.0, 2.0]))
arrivals = st.lists(st.tuples(st.integers(0, 16).map(lambda eighths: eighths / 8), st.integers(1, 40)), max_size=60)


class Bucket:
    """The textbook's token bucket, with debt."""

    def __init__(self, rate: float, burst_s: float) -> None:
        self.rate, self.most = rate, rate * burst_s if rate < inf else inf
        self.tokens, self.at = self.most, 0.0

    def holds(self, tokens: float, now: float) -> bool:
        if self.rate == inf:
            return True
        self.tokens = min(self.most, self.tokens + (now - self.at) * self.rate)
        self.at = now
        return self.tokens >= min(tokens, self.most)


@given(quota_values, arrivals)
def test_decides_as_two_token_buckets_would(quota: Quota, steps: list[tuple[float, int]]) -> None:
    quotas, now = Quotas({"a": quota}), 0.0
    requests, rows_bucket = Bucket(quota.requests_per_s, quota.burst_s), Bucket(quota.rows_per_s, quota.burst_s)
    for gap_s, rows in steps:
        now += gap_s
        expected = requests.holds(1, now) & rows_bucket.holds(rows, now)
        if expected:
            requests.tokens -= 1
            rows_bucket.tokens -= rows
        assert (admit(quotas, now, rows=rows) is None) == expected


@given(quota_values, st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(1, 40)), max_size=40), st.floats(0.0, 1e6))
def test_over_any_window_no_more_than_burst_and_rate(quota: Quota, steps: list[tuple[float, int]], started_at: float) -> None:
    quotas, now, passed = Quotas({"*": quota}), started_at, list[tuple[float, int]]()
    for gap_s, rows in steps:
        now += gap_s
        if admit(quotas, now, rows=rows) is None:
            passed.append((now, rows))
    for first, (start, _) in enumerate(passed):
        requests = total_rows = largest = 0
        for at, rows in passed[first:]:
            requests, total_rows, largest = requests + 1, total_rows + rows, max(largest, rows)
            for sent, rate, one in ((requests, quota.requests_per_s, 1), (total_rows, quota.rows_per_s, largest)):
                assert sent <= max(rate * quota.burst_s, one) + rate * (at - start) + 1e-3 if rate < inf else True


@given(quota_values, arrivals, st.floats(0.0, 1e6), st.integers(1, 40))
def test_who_comes_back_when_told_is_admitted_and_just_before_is_not(
    quota: Quota, steps: list[tuple[float, int]], started_at: float, rows: int
) -> None:
    quotas, now = Quotas({"*": quota}), started_at
    for gap_s, step_rows in steps:
        now += gap_s / 8
        admit(quotas, now, rows=step_rows)
    failure = admit(quotas, now, rows=rows)
    if failure is not None:
        retry_after_s = failure.retry_after_s
        assert retry_after_s is not None
        assert isfinite(retry_after_s)
        assert retry_after_s > 0.0
        assert admit(quotas, now + max(retry_after_s - 1e-4, 0.0), rows=rows) is not None
        assert admit(quotas, now + retry_after_s, rows=rows) is None


@given(quota_values, arrivals, st.integers(0, 20))
def test_a_flood_of_others_changes_nothing(quota: Quota, steps: list[tuple[float, int]], flood: int) -> None:
    alone, beside, now = Quotas({"*": quota, "big": quota}), Quotas({"*": quota, "big": quota}), 0.0
    for gap_s, rows in steps:
        now += gap_s
        for number in range(flood):
            admit(beside, now, ("big", f"other {number}")[number % 2], rows=40)
        assert admit(alone, now, rows=rows) == admit(beside, now, rows=rows)


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0.0, 0.2)), min_size=1, max_size=200))
def test_processes_that_tell_each_other_hold_the_rate_together(asks: list[tuple[int, float]]) -> None:
    """Told after every step, they admit what one would, but for what each admitted before it heard of the other."""
    alone = Quotas({"*": TEN})
    several = [Quotas({"*": TEN}) for _ in range(2)]
    for quotas in several:
        quotas.share()
    now, one, both = 0.0, 0, 0
    for number, step_s in asks:
        now += step_s
        one += alone.admit(Ticket(0, now, tenant="x"), now) is None
        both += several[number].admit(Ticket(0, now, tenant="x"), now) is None
        several[1 - number].charged(several[number].charges(), now)
    assert one == both


def test_what_runs_elsewhere_counts_and_is_given_back() -> None:
    here, there = (Quotas({"t": Quota(inf, inf, 1.0, 1)}) for _ in range(2))
    here.share()
    there.share()
    ticket = Ticket(1, 0.0, tenant="t")
    assert here.admit(ticket, 0.0) is None
    there.charged(here.charges(), 0.0)
    assert there.admit(Ticket(2, 0.0, tenant="t"), 0.0) is not None
    here.ended(ticket)
    there.charged(here.charges(), 0.0)
    assert here.charges() == []
    assert there.admit(Ticket(3, 0.0, tenant="t"), 0.0) is None
