"""W-TinyLFU as libcachesim has it, but for the queues, which are ours: with its filter instead of our sketch.

Called by test_hit_ratios.py, to show that nothing else differs. By WTinyLFU.c and minimalIncrementCBF.c: ten of 14.4 counters
per entry for each key, all of which are raised; keys count when they come in, are hit in the main part, and leave the window;
all are halved after 32 hits per entry. Until it is full, the protected part is filled, too.
"""

from math import ceil

from xxhash import xxh64_intdigest

from dlproxy.policy.caching import Entry, Key
from dlproxy.policy.caching.tiny_lfu import Sketch, WTinyLfu

COUNTERS, PLACES, SAMPLE = 14.377587518466, 10, 32  # per entry, per key; hits per entry
SEEDS = 0x12345678, 0x12344321
_LOW = 0xFFFFFFFF


class TheirFilter(Sketch):
    """`numbers`: the workload's, by digest: it hashes those."""

    def __init__(self, entries: int, numbers: dict[Key, int]) -> None:
        super().__init__()
        self._numbers = numbers
        self._counts = [0] * max(ceil(COUNTERS * entries), 2 * PLACES)
        self._hits_left = self._every = SAMPLE * entries

    def fit(self, entries: int) -> None:
        """It is as wide as it will be."""

    def add(self, key: Key) -> None:
        for place in self._places(key):
            self._counts[place] += 1

    def hit(self, key: Key) -> None:
        self.add(key)
        self._hits_left -= 1
        if not self._hits_left:
            self._hits_left = self._every
            self._counts = [count >> 1 for count in self._counts]

    def of(self, key: Key) -> int:
        return min([self._counts[place] for place in self._places(key)])

    def _places(self, key: Key) -> list[int]:
        number = (self._numbers[key] + 1).to_bytes(8, "little")
        first, step = (xxh64_intdigest(number, seed) & _LOW for seed in SEEDS)
        return [((first + place * step) & _LOW) % len(self._counts) for place in range(PLACES)]


class TheirWTinyLfu(WTinyLfu[None]):
    def __init__(self, budget: int, numbers: dict[Key, int]) -> None:
        super().__init__(budget)
        self._sketch = self._filter = TheirFilter(self._main_most, numbers)

    def get(self, key: Key) -> Entry[None] | None:
        entry = self._entries.get(key)
        if entry is not None and entry.place is self._window:
            entry.place.move_to_end(key)
        elif entry is not None:
            self._filter.hit(key)
            self._touch(entry)
        return entry

    def _fill(self, entry: Entry[None]) -> None:
        self._filter.add(entry.key)
        super()._fill(entry)
        probation_used = self.used - self._window_used - self._protected_used
        has_room = self._protected_used + entry.size <= self._protected_most
        if probation_used > self._main_most - self._protected_most and has_room:
            del self._probation[entry.key]
            self._protect(entry)

    def _evict(self) -> Entry[None]:
        judged = len(self._window) > 0
        evicted = super()._evict()
        if judged:  # the newcomer left, or it is the youngest of the main part
            self._filter.add(evicted.key if evicted.place is self._window else next(reversed(self._probation)))
        return evicted
