"""Cache policies: the budget holds whatever happens, what was put is there until it leaves, and each takes who it should."""

import gc
import tracemalloc
import weakref
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.caching import POLICIES, CachePolicy, make_cache
from dlproxy.policy.caching.cache import ENTRY_BYTES
from dlproxy.policy.caching.tiny_lfu import Sketch
from tests.policy.caching.hits import digest
from tests.policy.caching.reference import NAIVE

every_policy = pytest.mark.parametrize("name", POLICIES)

KEYS = st.integers(0, 30).map(digest)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), KEYS, st.integers(1, 12), st.sampled_from([0.001, 0.002, 0.01])),
        st.tuples(st.just("put"), KEYS, st.integers(1, 12), st.sampled_from([0.001, 0.002, 0.01])),
        st.tuples(st.just("drop"), KEYS),
        st.tuples(st.just("resize"), st.integers(0, 130)),
        st.tuples(st.just("clear")),
    ),
    max_size=150,
)


@every_policy
@given(steps=STEPS)
def test_what_was_put_is_there_until_it_leaves(name: str, steps: list[tuple[Any, ...]]) -> None:
    kept: CachePolicy[int] = make_cache(name, 100)
    there: dict[bytes, tuple[int, int]] = {}
    numbers = count()
    for what, *given_ in steps:
        left = []
        if what in ("ask", "put"):
            key, size, cost_s = given_
            if what == "ask" and (entry := kept.get(key)) is not None:
                assert there[key] == (entry.value, entry.size)
                continue
            assert what == "put" or key not in there
            there[key] = (next(numbers), size)
            left = kept.put(key, there[key][0], size, cost_s)
        elif what == "drop":
            entry, was = kept.drop(given_[0]), there.pop(given_[0], None)
            assert (entry and (entry.value, entry.size)) == was
        elif what == "resize":
            left = kept.resize(given_[0])
            assert kept.budget == given_[0]
        else:
            kept.clear()
            there.clear()
        for entry in left:
            assert there.pop(entry.key) == (entry.value, entry.size), "what leaves was there, and leaves once"
        assert kept.used <= kept.budget
        assert kept.used == sum(size for _, size in there.values())
        assert len(kept) == len(there)
        assert {entry.key: (entry.value, entry.size) for entry in kept} == there
        assert all(kept.peek(key) is not None for key in there)


@pytest.mark.parametrize("name", NAIVE)
@given(steps=STEPS)
def test_takes_whom_its_text_says(name: str, steps: list[tuple[Any, ...]]) -> None:
    kept: CachePolicy[None] = make_cache(name, 100)
    naive = NAIVE[name](100)
    for what, *given_ in steps:
        if what == "ask":
            key, size, cost_s = given_
            hit = kept.get(key) is not None
            assert hit == naive.get(key)
            what = what if hit else "put"
        if what == "put":
            key, size, cost_s = given_
            assert [entry.key for entry in kept.put(key, None, size, cost_s)] == naive.put(key, size, cost_s)
        elif what == "drop":
            kept.drop(given_[0])
            naive.drop(given_[0])
        elif what == "resize":
            assert [entry.key for entry in kept.resize(given_[0])] == naive.resize(given_[0])
        elif what == "clear":
            kept.clear()
            naive = NAIVE[name](naive.budget)
        assert {entry.key for entry in kept} == naive.keys()


def fill(kept: CachePolicy[None], *keys: int, size: int = 10, cost_s: float = 0.001) -> list[int]:
    """Which of the keys from 0 to 99 had to leave."""
    left = [entry.key for key in keys for entry in kept.put(digest(key), None, size, cost_s)]
    return [key for key in range(100) if digest(key) in left]


def hit(kept: CachePolicy[None], *keys: int) -> None:
    for key in keys:
        assert kept.get(digest(key)) is not None


@every_policy
def test_one_entry_takes_at_most_a_tenth(name: str) -> None:
    kept: CachePolicy[None] = make_cache(name, 1000)
    assert fill(kept, 0, size=101) == [0]
    assert fill(kept, 0, size=100) == []
    assert fill(kept, 0, size=101) == [0], "the older answer of that key does not stay"
    assert len(kept) == 0


@every_policy
def test_an_unknown_name_is_refused(name: str) -> None:
    assert len(make_cache(name, 10)) == 0
    with pytest.raises(ValueError, match=f"no cache policy '{name}x'; there are s3-fifo, "):
        make_cache(name + "x", 10)


def test_s3_fifo_keeps_who_was_hit_twice_in_the_small_queue_or_came_back() -> None:
    kept: CachePolicy[None] = make_cache("s3-fifo", 100)
    fill(kept, *range(10))
    hit(kept, 0, 0)  # the first is in the small queue, the others went past it into the main one, which was empty
    assert fill(kept, 10) == [1], "the small queue had nobody to give but the one who was hit twice"
    assert fill(kept, 11) == [10]
    assert fill(kept, 10) == [11], "who comes back goes into the main queue"
    hit(kept, 10)
    assert fill(kept, *range(20, 30)) == [2, *range(20, 29)]
    assert kept.peek(digest(10)) is not None


def test_w_tinylfu_lets_nobody_in_who_is_used_less_than_who_would_leave() -> None:
    kept: CachePolicy[None] = make_cache("w-tinylfu", 1000)
    fill(kept, *range(100))
    for _ in range(3):
        hit(kept, *range(99))
    assert fill(kept, *range(200, 300)) == [99]
    assert all(kept.peek(digest(key)) is not None for key in range(99))


def test_gdsf_keeps_what_saves_most_per_byte() -> None:
    kept: CachePolicy[None] = make_cache("gdsf", 100)
    fill(kept, 0, cost_s=0.010)
    fill(kept, *range(1, 10), cost_s=0.001)
    assert fill(kept, *range(10, 19), cost_s=0.001) == list(range(1, 10))
    assert kept.peek(digest(0)) is not None


def test_the_sketch_counts_what_was_added_and_forgets_half() -> None:
    sketch = Sketch()
    for _ in range(20):
        sketch.add(digest(1))
    assert sketch.of(digest(1)) == 15
    assert sketch.of(digest(2)) == 0
    sketch.fit(2_000)
    assert sketch.of(digest(1)) == 15, "growing loses nothing"
    for key in range(10, 40_010):
        sketch.add(digest(key))
    assert 5 <= sketch.of(digest(1)) <= 11


@every_policy
def test_memory_of_an_entry_is_as_stated(name: str) -> None:
    """Beside the value: the entry, its key, the policy's lists, and what a ghost or a sketch takes for it."""
    tracemalloc.start()
    kept: CachePolicy[None] = make_cache(name, 4_000 * 10)
    before = tracemalloc.get_traced_memory()[0]
    for number in range(3 * 4_000):
        kept.put(number.to_bytes(16, "little"), None, 10, 0.001)
    per_entry = (tracemalloc.get_traced_memory()[0] - before) / len(kept)
    tracemalloc.stop()
    assert 0.3 * ENTRY_BYTES < per_entry <= ENTRY_BYTES


@every_policy
@pytest.mark.parametrize("end", [lambda kept: kept.clear(), lambda kept: kept.resize(0)], ids=["clear", "resize"])
def test_nothing_holds_what_has_left(name: str, end: Callable[[CachePolicy[Any]], object]) -> None:
    class Answer:
        pass

    answer = Answer()
    gone = weakref.ref(answer)
    kept: CachePolicy[Any] = make_cache(name, 1000)
    for key in range(20):
        kept.put(digest(key), answer, 10, 0.001)
        kept.get(digest(key // 2))
    del answer
    gc.disable()
    try:
        end(kept)
        assert gone() is None, "by reference counts alone"
    finally:
        gc.enable()


@every_policy
def test_memory_stays_bounded_where_keys_are_dropped_before_they_leave(name: str) -> None:
    kept: CachePolicy[None] = make_cache(name, 1000)
    tracemalloc.start()
    peaks = []
    for start in (0, 5_000):
        for number in range(start, start + 5_000):
            kept.put(number.to_bytes(16, "little"), None, 10, 0.001)
            kept.drop(number.to_bytes(16, "little"))
        peaks.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert peaks[1] < peaks[0] + 5_000, "at most a byte for each"
