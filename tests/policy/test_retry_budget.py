"""The retry budget: what may be spent, when it comes back, and the bound that holds over any window."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dlproxy.policy.retry_budget import BUCKETS, RetryBudget

WINDOW_S = 10.0


@pytest.mark.parametrize(
    ("share", "least_per_s", "earned", "wanted", "allowed"),
    [
        pytest.param(0.2, 0.0, 100, 20, True, id="a fifth"),
        pytest.param(0.2, 0.0, 100, 21, False, id="more than a fifth"),
        pytest.param(0.2, 0.0, 0, 1, False, id="nothing earned"),
        pytest.param(0.2, 3.0, 0, 30, True, id="the least of a window"),
        pytest.param(0.2, 3.0, 0, 31, False, id="more than the least"),
        pytest.param(0.2, 3.0, 100, 50, True, id="both"),
        pytest.param(0.0, 3.0, 1000, 1, False, id="a share of 0 allows nothing"),
        pytest.param(1.0, 0.0, 7, 7, True, id="each once"),
    ],
)
def test_spends_a_share_and_the_least(share: float, least_per_s: float, earned: int, wanted: int, allowed: bool) -> None:
    budget = RetryBudget(share, least_per_s, WINDOW_S)
    budget.earn(earned, 0.0)
    assert budget.spend(wanted, 0.0) is allowed


def test_what_is_refused_is_not_charged() -> None:
    budget = RetryBudget(0.2, 0.0, WINDOW_S)
    budget.earn(100, 0.0)
    assert [budget.spend(wanted, 1.0) for wanted in (15, 6, 5, 1)] == [True, False, True, False]


@pytest.mark.parametrize(
    ("now", "left"),
    [
        pytest.param(0.0, 0, id="at once"),
        pytest.param(WINDOW_S, 0, id="a window later: the bucket it was in is still kept"),
        pytest.param(WINDOW_S * (1 + 1 / BUCKETS), 30, id="a window and a bucket later"),
        pytest.param(1e9, 30, id="after a long silence"),
    ],
)
def test_what_was_spent_comes_back_after_a_window(now: float, left: int) -> None:
    budget = RetryBudget(0.2, 3.0, WINDOW_S)
    assert budget.spend(30, 0.0)
    allowed = 0
    while budget.spend(1, now):
        allowed += 1
    assert allowed == left


def test_what_was_earned_is_forgotten_too() -> None:
    budget = RetryBudget(0.2, 0.0, WINDOW_S)
    budget.earn(1000, 100.0)
    assert budget.spend(1, 100.0 + WINDOW_S)
    assert not budget.spend(1, 101.0 + WINDOW_S)


def test_configure_changes_the_share_of_what_was_earned_before() -> None:
    budget = RetryBudget(0.0, 0.0, WINDOW_S)
    budget.earn(100, 0.0)
    budget.configure(0.5)
    assert [budget.spend(50, 0.0), budget.spend(1, 0.0)] == [True, False]
    budget.configure(0.0)
    assert not budget.spend(0, 0.0)


STEPS = st.lists(
    st.tuples(st.integers(0, 60), st.booleans(), st.integers(0, 40)),  # quarters of a second to wait, whether to earn, how many
    min_size=1,
    max_size=80,
)


@given(
    steps=STEPS,
    share=st.sampled_from([0.125, 0.5, 1.0]),
    least_per_s=st.sampled_from([0.0, 1.0, 3.0]),
    start=st.integers(0, 200),
)
@example(
    steps=[(0, True, 40), (3, False, 5), (40, False, 5), (0, True, 8), (0, False, 1)], share=0.125, least_per_s=0.0, start=0
)
def test_no_window_ever_spends_more_than_the_bound(
    steps: list[tuple[int, bool, int]], share: float, least_per_s: float, start: int
) -> None:
    budget = RetryBudget(share, least_per_s, WINDOW_S)
    now = start / 4  # quarters and powers of two: every sum below is exact
    earned: list[tuple[float, int]] = []
    spent: list[tuple[float, int]] = []
    for quarters, earns, requests in steps:
        now += quarters / 4
        if earns:
            budget.earn(requests, now)
            earned.append((now, requests))
            continue
        within = sum(number for at, number in spent if at > now - WINDOW_S)
        kept = sum(number for at, number in spent if at > now - WINDOW_S * (1 + 1 / BUCKETS))
        sure = share * sum(number for at, number in earned if at > now - WINDOW_S) + least_per_s * WINDOW_S
        bound = share * sum(number for at, number in earned if at > now - WINDOW_S * (1 + 1 / BUCKETS)) + least_per_s * WINDOW_S
        allowed = budget.spend(requests, now)
        if allowed:
            spent.append((now, requests))
            assert within + requests <= bound
        else:
            assert kept + requests > sure, "refused although the window had room"


def test_memory_is_bounded() -> None:
    budget = RetryBudget()
    for step in range(10_000):
        budget.earn(1, step * 0.37)
        budget.spend(1, step * 0.37)
    assert len(budget._earned) == len(budget._spent) == BUCKETS + 1
