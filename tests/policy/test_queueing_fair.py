"""Fair queueing: shares by weight within the bound of the paper, no credit for idling, no charge for what was not served."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.message import Ticket
from dlproxy.policy.queueing import fair
from tests.policy.queues import cost_s, ids, queue_of

weights = st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0, 10.0])
sizes = st.lists(st.integers(1, 8), min_size=5, max_size=30)


@given(ours=sizes, theirs=sizes, weight=weights, other=weights, head_start=st.integers(0, 4), batch=st.integers(1, 4))
def test_backlogged_tenants_get_their_shares(
    ours: list[int], theirs: list[int], weight: float, other: float, head_start: int, batch: int
) -> None:
    """In every interval in which both have tickets waiting: |W1/w1 - W2/w2| <= c1/w1 + c2/w2 (the SFQ paper's theorem)."""
    shares = {"a": weight, "b": other}
    queue = queue_of("fair", *(Ticket(number, 0.0, rows=rows, tenant="a") for number, rows in enumerate(ours)), weights=shares)
    for _ in range(head_start):
        queue.pop(1, 0.0)
    for number, rows in enumerate(theirs, start=100):
        queue.push(Ticket(number, 0.0, rows=rows, tenant="b"), 0.0)
    left = {"a": len(ours) - head_start, "b": len(theirs)}
    ahead, differences = 0.0, [0.0]
    while min(left.values()) > 0:
        for ticket in queue.pop(batch, 0.0):
            if min(left.values()) > 0:
                left[ticket.tenant] -= 1
                ahead += (1 if ticket.tenant == "a" else -1) * cost_s(ticket.rows) / shares[ticket.tenant]
                differences.append(ahead)
    bound = cost_s(max(ours)) / weight + cost_s(max(theirs)) / other
    assert max(differences) - min(differences) <= bound * (1 + 1e-9)


def served_of(tenant: str, weight: float, count: int) -> int:
    tickets = [Ticket(number, 0.0, tenant="abc"[number % 3]) for number in range(300)]
    queue = queue_of("fair", *tickets, weights={tenant: weight})
    return sum(queue.pop(1, 0.0)[0].tenant == tenant for _ in range(count))


@given(st.lists(weights, min_size=2, max_size=2).map(sorted), st.integers(1, 90))
def test_a_larger_weight_never_gets_less(pair: list[float], count: int) -> None:
    assert served_of("b", pair[0], count) <= served_of("b", pair[1], count)


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 30), (2.0, 45), (0.5, 18), (4.0, 60)])
def test_shares_are_as_the_weights(weight: float, expected: int) -> None:
    assert served_of("a", weight, 90) == pytest.approx(expected, abs=2)


def test_a_costly_tenant_gets_fewer_requests() -> None:
    tickets = [Ticket(number, 0.0, rows=5 if number % 2 else 1, tenant="ab"[number % 2]) for number in range(200)]
    queue = queue_of("fair", *tickets)
    served = [queue.pop(1, 0.0)[0].tenant for _ in range(80)]
    assert (served.count("a"), served.count("b")) == pytest.approx((60, 20), abs=2), "1 s against 3 s"


def test_a_tenant_that_was_idle_has_no_credit() -> None:
    queue = queue_of("fair", *(Ticket(number, 0.0, tenant="busy") for number in range(100)))
    queue.pop(50, 0.0)
    for number in range(100, 120):
        queue.push(Ticket(number, 1.0, tenant="idle"), 1.0)
    served = [queue.pop(1, 1.0)[0].tenant for _ in range(20)]
    assert served.count("idle") == pytest.approx(10, abs=1)


def test_what_was_not_served_is_not_charged() -> None:
    """A tenant whose requests time out by the hundred still gets its share of what comes after."""
    queue = queue_of("fair", *(Ticket(number, 0.0, tenant="steady") for number in range(100)))
    for number in range(1000, 1500):
        queue.push(Ticket(number, 0.0, tenant="hasty"), 0.0)
    for number in range(1000, 1500):
        queue.remove(number)
    for number in range(2000, 2010):
        queue.push(Ticket(number, 0.0, tenant="hasty"), 0.0)
    served = [queue.pop(1, 0.0)[0].tenant for _ in range(20)]
    assert served.count("hasty") == pytest.approx(10, abs=1)


def test_tenants_whose_share_has_passed_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the next one has an account of its own, however many there were before."""
    monkeypatch.setattr(fair, "MAX_ACCOUNTS", 4)
    queue = queue_of("fair", *(Ticket(number, 0.0, tenant="steady") for number in range(100)))
    for number in range(1000, 1020):
        queue.push(Ticket(number, 0.0, tenant=str(number)), 0.0)
        assert str(number) in queue._finish
        queue.pop(1, 0.0)
        queue.pop(1, 0.0)
    assert len(queue._finish) <= 4


def test_virtual_time_waits_for_the_shape_that_waits() -> None:
    """A long batch of one shape must not let those of another shape, which were due before, be overtaken."""
    queue = queue_of("fair", *(Ticket(number, 0.0, tenant="a", shape_key=(number // 10,)) for number in range(20)))
    queue.push(Ticket(50, 0.0, tenant="b", shape_key=(9,)), 0.0)
    assert ids(queue.pop(10, 0.0)) == list(range(10))
    queue.push(Ticket(60, 0.0, tenant="c", shape_key=(9,)), 0.0)
    assert ids(queue.pop(10, 0.0)) == [50, 60], "c starts where b does, not after the ten of a"
