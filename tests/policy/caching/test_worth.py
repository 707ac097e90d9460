"""Bytes between models: moved to where they save most, in steps, and never more than there are."""

from functools import cache
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.caching import CachePolicy, Entry, make_cache
from dlproxy.policy.caching.worth import FLOOR, GHOSTS, LOOK_S, BudgetShares, CacheStats, Ghost
from tests.policy.caching.hits import digest, zipf


def test_a_ghost_tells_what_more_bytes_would_have_saved() -> None:
    ghost = Ghost()
    first, second, third = map(digest, range(3))
    assert not ghost.missed(first)
    ghost.left(first, 10, 0.5, budget=100)
    assert ghost.missed(first)
    assert not ghost.missed(first), "it is back"
    assert (ghost.asked, ghost.lost_s, ghost.reach) == (1, 0.5, 25.0)
    for key in (first, second, third):
        ghost.left(key, 10, 0.5, budget=100)
    assert not ghost.missed(first), "a quarter of the budget is its reach"
    assert ghost.missed(second)
    ghost.left(third, 20, 0.5, budget=100)
    assert len(ghost) == 1, "left again: of its new size"
    ghost.clear()
    assert not ghost.missed(third)


def test_a_ghost_of_many_small_answers_is_bounded_and_says_how_far_it_reaches() -> None:
    ghost = Ghost()
    for number in range(5 * GHOSTS):
        ghost.left(number.to_bytes(16, "little"), 2, 0.5, budget=1_000_000)
    assert len(ghost) == GHOSTS
    assert ghost.reach == 2 * GHOSTS


@cache
def _stream(keys: int, alpha: float, seed: int) -> list[int]:
    return zipf(keys, alpha, 50_000, seed=seed)


class Model:
    """A cache of one model under its own stream of keys; what hits save counts only after `warm` requests."""

    def __init__(self, policy: str, alpha: float, cost_s: float, seed: int, keys: int = 2_000) -> None:
        self.kept: CachePolicy[None] = make_cache(policy, 1)
        self.ghost = Ghost()
        self.saved_s = 0.0
        self._cost_s = cost_s
        self._keys = iter(_stream(keys, alpha, seed))

    def ask(self, times: int) -> None:
        for key in map(digest, islice(self._keys, times)):
            if self.kept.get(key) is not None:
                self.saved_s += self._cost_s
                continue
            self.ghost.missed(key)
            self._leave(self.kept.put(key, None, 100, self._cost_s))

    def resize(self, budget: int) -> None:
        self._leave(self.kept.resize(budget))

    def stats(self) -> CacheStats:
        return CacheStats(self.kept.used, self.ghost.asked, self.ghost.lost_s, self.ghost.reach)

    def _leave(self, entries: list[Entry[None]]) -> None:
        for entry in entries:
            self.ghost.left(entry.key, entry.size, entry.cost_s, self.kept.budget)


TOTAL = 100_000  # bytes: 1,000 answers


def models(policy: str) -> dict[str, Model]:
    """One whose answers are dear, one that has many of them, and one that is asked for the same few."""
    return {
        "dear": Model(policy, 0.8, 0.006, 1),
        "wide": Model(policy, 0.8, 0.002, 2),
        "narrow": Model(policy, 1.2, 0.002, 3),
    }


def looks(shares: BudgetShares, of: dict[str, Model], numbers: range) -> None:
    for look in numbers:
        for name, budget in shares.act(look * LOOK_S, {name: model.stats() for name, model in of.items()}, TOTAL).items():
            of[name].resize(budget)
        for model in of.values():
            model.ask(300)


def saved_with(model: Model, budget: int) -> float:
    model.resize(budget)
    model.ask(3_000)
    model.saved_s = 0.0
    model.ask(9_000)
    return model.saved_s


@pytest.mark.parametrize("policy", ["s3-fifo", "lru"])
def test_saves_nearly_as_much_as_the_best_division(policy: str) -> None:
    of, shares = models(policy), BudgetShares()
    looks(shares, of, range(50))
    for model in of.values():
        model.saved_s = 0.0
    looks(shares, of, range(50, 80))
    saved = sum(model.saved_s for model in of.values())
    curves = {name: [saved_with(models(policy)[name], tenths * TOTAL // 10) for tenths in range(1, 9)] for name in of}
    splits = [(dear, wide, 10 - dear - wide) for dear in range(1, 9) for wide in range(1, 10 - dear)]
    by_split = {split: sum(curves[name][tenths - 1] for name, tenths in zip(of, split, strict=True)) for split in splits}
    assert max(by_split.values()) > 1.05 * by_split[3, 3, 4], "there is something to find"
    assert saved > 0.97 * max(by_split.values())


@given(
    totals=st.lists(st.integers(0, 1_000_000), min_size=1, max_size=20),
    names=st.lists(st.sets(st.sampled_from("abcd"), min_size=1), min_size=1, max_size=20),
    lost=st.lists(st.integers(0, 100), min_size=1, max_size=20),
)
def test_all_is_divided_and_everybody_has_some(totals: list[int], names: list[set[str]], lost: list[int]) -> None:
    shares = BudgetShares()
    asked = dict.fromkeys("abcd", 0)
    for look in range(40):
        total, present = totals[look % len(totals)], sorted(names[look % len(names)])
        for at, name in enumerate(present):
            asked[name] += lost[(look + at) % len(lost)]
        stats = {name: CacheStats(total, asked[name], asked[name] * 0.01, total / 4) for name in present}
        given_ = shares.act(look * LOOK_S, stats, total)
        assert given_.keys() == set(present)
        assert total - len(present) <= sum(given_.values()) <= total
        assert min(given_.values()) >= int(FLOOR * total / len(present)) - 1


def act(shares: BudgetShares, look: int, total: int = 100_000, **lost: tuple[int, float]) -> dict[str, int]:
    """`lost`: of each model, how often what had left was asked for since the beginning, and the seconds of each."""
    stats = {name: CacheStats(total, asked, asked * cost_s, total / 4) for name, (asked, cost_s) in lost.items()}
    return dict(shares.act(look * LOOK_S, stats, total))


def test_a_total_that_shrinks_takes_from_all_in_proportion_and_leaves_no_trace() -> None:
    shares = BudgetShares()
    for look in range(40):
        before = act(shares, look, a=(look * 100, 0.01), b=(0, 0.01))
    assert before["a"] > 9 * before["b"]
    small = act(shares, 39, total=50_000, a=(3_900, 0.01), b=(0, 0.01))
    assert small == {name: pytest.approx(size / 2, abs=1) for name, size in before.items()}
    assert act(shares, 39, a=(3_900, 0.01), b=(0, 0.01)) == {name: pytest.approx(size, abs=1) for name, size in before.items()}


def test_nothing_moves_for_what_differs_little_or_was_seen_seldom() -> None:
    shares = BudgetShares()
    for look in range(40):
        assert act(shares, look, a=(look * 100, 0.012), b=(look * 100, 0.010)) == {"a": 50_000, "b": 50_000}
    shares = BudgetShares()
    for look in range(40):
        assert act(shares, look, a=(look * 2, 1.0), b=(0, 0.010)) == {"a": 50_000, "b": 50_000}


def test_what_is_not_used_goes_first_and_one_step_at_a_time() -> None:
    shares = BudgetShares()
    budgets = []
    for look in range(4):
        stats = {
            "full": CacheStats(40_000, look * 100, look * 1.0, 10_000),
            "dear": CacheStats(40_000, look * 100, look * 5.0, 10_000),
            "idle": CacheStats(0, 0, 0.0, 0),
        }
        budgets.append(dict(shares.act(look * LOOK_S, stats, 120_000)))
    assert [budget["idle"] for budget in budgets] == [40_000, 32_500, 25_000, 17_500], "a sixteenth of all at a time"
    assert [budget["full"] for budget in budgets] == [40_000] * 4


def test_a_new_model_starts_with_an_equal_share_of_what_others_give_in_proportion() -> None:
    shares = BudgetShares()
    for look in range(40):
        before = act(shares, look, a=(look * 100, 0.01), b=(0, 0.01))
    after = act(shares, 39, a=(3_900, 0.01), b=(0, 0.01), c=(0, 0.01))
    assert after["c"] == pytest.approx(100_000 / 3, rel=0.05)
    assert after["a"] / after["b"] == pytest.approx(before["a"] / before["b"], rel=0.15)
    assert act(shares, 39, a=(3_900, 0.01), c=(0, 0.01)).keys() == {"a", "c"}
