"""Auto: on for what is asked for again, off for what is not, never for answers that differ, and idle meanwhile."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice, pairwise
from operator import eq

import pytest

from dlproxy.policy.caching import make_cache
from dlproxy.policy.caching.auto import LONGEST_REST, PATIENCE, STRETCH, Auto
from tests.policy.caching.hits import digest, zipf

RUN_S, LOOKUP_S = 200e-6, 4e-6


class Layer:
    """What a server does with an Auto: a cache in front of a model. `times` it was turned on or off, by number of request."""

    def __init__(
        self, answer: Callable[[bytes], object], *, policy: str = "s3-fifo", entries: int = 100, run_s: float = RUN_S
    ) -> None:
        self.auto: Auto[object] = Auto(eq)
        self.turns: list[int] = []
        self.requests = self.watched = self.hits = self.rechecked = 0
        self._kept = make_cache(policy, 10 * entries)
        self._answer = answer
        self._run_s = run_s

    def ask(self, keys: Iterable[int]) -> None:
        for key in map(digest, keys):
            was = self.auto.on
            self.requests += 1
            self._ask(key)
            if self.auto.on != was:
                self.turns.append(self.requests)
                self._kept.clear()

    def _ask(self, key: bytes) -> None:
        auto = self.auto
        if auto.on:
            auto.cost(LOOKUP_S)
            entry = self._kept.get(key)
            auto.looked_up(hit=entry is not None)
            if entry is None:
                self._kept.put(key, self._run(key), 10, self._run_s)
            else:
                self.hits += 1
                if auto.rechecks():
                    self.rechecked += 1
                    auto.compared(same=self._run(key) == entry.value)
        elif auto.watches():
            self.watched += 1
            auto.cost(LOOKUP_S)
            auto.sampled(key)
            auto.answered(key, self._run(key))
        else:
            self._run(key)

    def _run(self, key: bytes) -> object:
        self.auto.ran(self._run_s)
        return self._answer(key)


def same(key: bytes) -> object:
    return key


def unique() -> Iterator[int]:
    return count(1_000_000)


REPEATED = [
    pytest.param(zipf(1_000, 1.0, 30_000), id="zipf 1.0"),
    pytest.param(zipf(100_000, 1.2, 30_000), id="zipf 1.2, of many"),
    pytest.param(zipf(50, 0.0, 30_000), id="fifty, each as often"),
    pytest.param([key for pair in zip(range(15_000), range(15_000), strict=True) for key in pair], id="each twice in a row"),
    pytest.param([7] * 30_000, id="always the same"),
]
IN_TURN = [pytest.param([number % around for number in range(30_000)], id=f"{around} in turn") for around in (80, 200, 500)]


@pytest.mark.parametrize("keys", [*REPEATED, *IN_TURN])
def test_turns_on_for_repeated_keys_within_10_000_requests_and_stays_on(keys: list[int]) -> None:
    layer = Layer(same, entries=1_000, run_s=1e-3)
    layer.ask(keys)
    assert layer.auto.on
    assert len(layer.turns) == 1
    assert layer.turns[0] <= 10_000
    assert layer.rechecked == layer.hits // 1_000


@pytest.mark.parametrize("keys", REPEATED)
def test_turns_on_within_10_000_requests_whenever_keys_begin_to_repeat(keys: list[int]) -> None:
    for before in (5_000, 30_000, 100_000):
        layer = Layer(same, entries=1_000, run_s=1e-3)
        layer.ask(islice(unique(), before))
        assert not layer.turns
        layer.ask(keys[:10_000])
        assert layer.auto.on


def test_is_idle_for_unique_keys() -> None:
    layer = Layer(same)
    layer.ask(islice(unique(), 100_000))
    assert not layer.turns
    assert layer.watched <= STRETCH * (PATIENCE + 2 + 100_000 // LONGEST_REST)
    assert layer.watched <= 100_000 / 48


def test_turns_off_within_10_000_requests_once_keys_no_longer_repeat() -> None:
    layer = Layer(same)
    layer.ask(zipf(1_000, 1.0, 30_000))
    assert layer.auto.on
    layer.ask(islice(unique(), 10_000))
    assert not layer.auto.on


def test_what_a_run_takes_must_be_more_than_looking_up() -> None:
    layer = Layer(same, run_s=LOOKUP_S)
    layer.ask(zipf(1_000, 1.0, 50_000))
    assert not layer.turns
    layer = Layer(same, run_s=20 * LOOKUP_S)
    layer.ask(zipf(1_000, 1.0, 10_000))
    assert layer.auto.on


def test_nothing_is_turned_on_before_a_run_was_measured() -> None:
    auto: Auto[int] = Auto(eq)
    for _ in range(20_000):
        if auto.watches():
            auto.sampled(digest(1))
            auto.answered(digest(1), 1)
    assert auto.compared_equal > 100
    assert not auto.on


def test_answers_that_always_differ_are_never_kept() -> None:
    numbers = count()
    layer = Layer(lambda key: next(numbers))
    layer.ask(zipf(100, 1.0, 50_000))
    assert not layer.turns
    assert not layer.auto.stable
    assert layer.watched <= STRETCH, "nobody looks any longer"


def test_answers_that_differ_now_and_then_are_found_sooner_or_later() -> None:
    numbers = count()
    layer = Layer(lambda key: next(numbers) % 5 == 0)
    layer.ask(zipf(100, 1.0, 50_000))
    assert not layer.auto.stable
    assert not layer.auto.on
    later = Layer(lambda key: layer.requests > 40_000)
    layer = later
    later.ask(zipf(100, 1.0, 60_000))
    assert len(later.turns) == 2, "one of a thousand hits is run"
    assert 40_000 < later.turns[1] < 45_000
    assert not later.auto.stable


def test_a_cache_too_small_for_what_repeats_is_tried_ever_more_rarely() -> None:
    """Every key comes again after 2,000 others: that is seen, but an LRU of 100 never has it."""
    layer = Layer(same, policy="lru")
    layer.ask(islice(chain.from_iterable(range(2_000) for _ in count()), 400_000))
    on = layer.turns[::2]
    assert 1 <= len(on) <= 6
    gaps = [later - sooner for sooner, later in pairwise(on)]
    assert gaps == sorted(gaps)


@pytest.mark.parametrize("share", [0.015, 0.03, 0.05])
def test_does_not_go_back_and_forth_near_the_threshold(share: float) -> None:
    layer = Layer(same, run_s=1e-3)
    fresh = unique()
    asked_again = zipf(1_000_000, 0.0, 300_000, seed=4)
    layer.ask(7 if draw < share * 1_000_000 else next(fresh) for draw in asked_again)
    assert len(layer.turns) <= 3
