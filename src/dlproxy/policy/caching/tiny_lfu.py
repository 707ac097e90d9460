"""W-TinyLFU: a small window for newcomers, and a main part that they enter only if they are used more often than who leaves.

Made by make_cache(). Not aware of: what a value is, how old it is.
"""

from collections import OrderedDict
from hashlib import blake2b
from struct import Struct

from dlproxy.policy.caching.cache import Entry, Key, Store, V

WINDOW = 0.01  # of the budget
PROTECTED = 0.8  # of the main part: who was hit there
MOST = 15  # a counter of four bits
SAMPLE = 16  # uses per entry, then all counters are halved: 10 in Caffeine, 32 in libCacheSim
WIDTH = 8  # counters in a row per entry, at least: a quarter as many lose up to two points of hits, more gain little
LEAST = 128  # entries
_HALF = bytes(count >> 1 for count in range(256))
_CUT = Struct("<4I").unpack


class Sketch:
    """How often keys were used of late: a count-min sketch with four rows of counters up to 15, all halved now and then.

    A key's digest is cut into four numbers of 32 bits, its place in each row: no hash of ours, nothing to seed.
    Source: Einziger, Friedman and Manes, "TinyLFU: a highly efficient cache admission policy", ACM ToS 2017.
    """

    def __init__(self) -> None:
        self._entries = LEAST
        self._rows = [bytearray(WIDTH * LEAST) for _ in range(4)]
        self._left = SAMPLE * LEAST

    def fit(self, entries: int) -> None:
        """The cache holds so many. What was counted holds: in wider rows each counter stands twice."""
        if entries > self._entries:
            self._left += SAMPLE * (entries - self._entries)
            self._entries = entries
            if WIDTH * entries > len(self._rows[0]):
                self._rows = [row + row for row in self._rows]

    def add(self, key: Key) -> None:
        mask = len(self._rows[0]) - 1
        for row, number in zip(self._rows, _numbers(key), strict=True):
            place = number & mask
            count = row[place]
            if count < MOST:
                row[place] = count + 1
        self._left -= 1
        if not self._left:
            self._rows = [row.translate(_HALF) for row in self._rows]
            self._left = SAMPLE * self._entries // 2

    def of(self, key: Key) -> int:
        mask = len(self._rows[0]) - 1
        return min([row[number & mask] for row, number in zip(self._rows, _numbers(key), strict=True)])


def _numbers(key: Key) -> tuple[int, ...]:
    """Four random numbers of 32 bits: a digest's own."""
    if type(key) is not bytes or len(key) != 16:
        key = blake2b(repr(key).encode(), digest_size=16).digest()
    return _CUT(key)


class WTinyLfu(Store[V]):
    """LRU queues: a window of 1 %, and in the main part 20 % on probation and 80 % protected.

    Who has to leave the window competes with who would leave the main part: the one that was used more often of late stays.
    Source: as of the sketch, and Caffeine's numbers; the window is not adapted.
    """

    def get(self, key: Key) -> Entry[V] | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._sketch.add(key)
            self._touch(entry)
        return entry

    def _touch(self, entry: Entry[V]) -> None:
        """It was hit."""
        place = entry.place
        if place is self._probation:
            del place[entry.key]
            self._protect(entry)
        else:
            place.move_to_end(entry.key)

    def _reset(self) -> None:
        self._window: OrderedDict[Key, Entry[V]] = OrderedDict()
        self._probation: OrderedDict[Key, Entry[V]] = OrderedDict()
        self._protected: OrderedDict[Key, Entry[V]] = OrderedDict()
        self._window_used = self._protected_used = 0
        self._sketch = Sketch()

    def _share_out(self) -> None:
        self._main_most = self.budget - int(self.budget * WINDOW)
        self._protected_most = int(self._main_most * PROTECTED)
        self._demote()

    def _protect(self, entry: Entry[V]) -> None:
        self._protected[entry.key] = entry
        entry.place = self._protected
        self._protected_used += entry.size
        self._demote()

    def _demote(self) -> None:
        while self._protected_used > self._protected_most:
            key, entry = self._protected.popitem(last=False)
            self._protected_used -= entry.size
            self._probation[key] = entry
            entry.place = self._probation

    def _take(self, entry: Entry[V], seen: bool) -> None:
        self._sketch.fit(len(self._entries))
        self._sketch.add(entry.key)
        self._window[entry.key] = entry
        entry.place = self._window
        self._window_used += entry.size

    def _evict(self) -> Entry[V]:
        window = self._window
        while window:
            key, newcomer = window.popitem(last=False)
            self._window_used -= newcomer.size
            main_used = self.used - self._window_used - newcomer.size
            if main_used + newcomer.size <= self._main_most:
                self._fill(newcomer)
                continue
            main = self._probation or self._protected
            if not main or self._sketch.of(key) <= self._sketch.of(next(iter(main))):
                return newcomer
            victim = self._evict_main()
            self._probation[key] = newcomer
            newcomer.place = self._probation
            return victim
        return self._evict_main()

    def _fill(self, entry: Entry[V]) -> None:
        """It comes into the main part, which has room."""
        self._probation[entry.key] = entry
        entry.place = self._probation

    def _evict_main(self) -> Entry[V]:
        if self._probation:
            return self._probation.popitem(last=False)[1]
        _, entry = self._protected.popitem(last=False)
        self._protected_used -= entry.size
        return entry

    def _remove(self, entry: Entry[V]) -> None:
        del entry.place[entry.key]
        if entry.place is self._window:
            self._window_used -= entry.size
        elif entry.place is self._protected:
            self._protected_used -= entry.size
