"""Caches that order entries by what happened to them: LRU by their last hit, LFU by how many, GDSF by hits, cost and size.

Made by make_cache(). Not aware of: what a value is, how old it is.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

from dlproxy.policy.caching.cache import Entry, Key, Store, V

COMPACT = 64  # entries of the heap that have left, at least, before it is made anew


class Lru(Store[V]):
    """Who was not hit for the longest time leaves. Triton's policy, and what Che's approximation predicts the hits of."""

    def get(self, key: Key) -> Entry[V] | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._order.move_to_end(key)
        return entry

    def _reset(self) -> None:
        self._order: OrderedDict[Key, Entry[V]] = OrderedDict()

    def _take(self, entry: Entry[V], seen: bool) -> None:
        self._order[entry.key] = entry

    def _evict(self) -> Entry[V]:
        return self._order.popitem(last=False)[1]

    def _remove(self, entry: Entry[V]) -> None:
        del self._order[entry.key]


class _Rank:
    """The entries of one frequency, in the order in which they reached it, between those of the next lower and higher ones."""

    __slots__ = ("entries", "freq", "higher", "lower")

    def __init__(self, freq: int) -> None:
        self.freq = freq
        self.entries: OrderedDict[Key, Entry[Any]] = OrderedDict()
        self.lower = self.higher = self

    def next(self, freq: int) -> _Rank:
        """The rank of this frequency after this one, made if there is none."""
        higher = self.higher
        if higher.freq == freq:
            return higher
        rank = _Rank(freq)
        rank.lower, rank.higher = self, higher
        self.higher = higher.lower = rank
        return rank

    def close(self) -> None:
        self.lower.higher = self.higher
        self.higher.lower = self.lower
        del self.lower, self.higher  # or they would hold each other


class Lfu(Store[V]):
    """Who was hit least often leaves, of equals who was so first. Plain: nothing ages, what leaves is forgotten.

    O(1): a rank for each frequency (Shah, Mitra and Matani, "An O(1) algorithm for implementing the LFU cache eviction scheme",
    2010). As libCacheSim's.
    """

    def get(self, key: Key) -> Entry[V] | None:
        entry = self._entries.get(key)
        if entry is not None:
            rank: _Rank = entry.place
            freq = rank.freq + 1
            higher = rank.higher
            if higher.freq != freq:
                higher = rank.next(freq)
            del rank.entries[key]
            if not rank.entries:
                rank.close()
            higher.entries[key] = entry
            entry.place = higher
        return entry

    def clear(self) -> None:
        rank = self._ranks.higher
        while rank is not self._ranks:
            following = rank.higher
            rank.close()
            rank = following
        super().clear()

    def _reset(self) -> None:
        self._ranks = _Rank(0)  # of no entry: before the lowest and after the highest

    def _take(self, entry: Entry[V], seen: bool) -> None:
        entry.place = rank = self._ranks.next(1)
        rank.entries[entry.key] = entry

    def _evict(self) -> Entry[V]:
        rank = self._ranks.higher
        entry = rank.entries.popitem(last=False)[1]
        if not rank.entries:
            rank.close()
        return entry

    def _remove(self, entry: Entry[V]) -> None:
        rank: _Rank = entry.place
        del rank.entries[entry.key]
        if not rank.entries:
            rank.close()


class Gdsf(Store[V]):
    """Who saves least per byte leaves: hits x seconds / bytes, above what the last one that left had, which ages the others.

    The one policy to which it matters what a hit saves. Source: Cherkasova, "Improving WWW proxies performance with
    greedy-dual-size-frequency caching policy", HP Labs 1998. A heap by worth, in which a hit changes nothing: worth only grows,
    so the lowest is right once it stands there with its worth of now. Among equals who was used last stays.
    """

    def get(self, key: Key) -> Entry[V] | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._used(entry)
        return entry

    def _used(self, entry: Entry[V]) -> None:
        entry.freq += 1
        self._uses += 1
        entry.place = (self._floor + entry.freq * entry.cost_s / entry.size, self._uses)

    def _reset(self) -> None:
        self._heap: list[tuple[tuple[float, int], Entry[V]]] = []  # no two are equal, so that entries are never compared
        self._floor = 0.0
        self._uses = 0

    def _take(self, entry: Entry[V], seen: bool) -> None:
        self._used(entry)
        heappush(self._heap, (entry.place, entry))

    def _evict(self) -> Entry[V]:
        heap = self._heap
        while True:
            worth, entry = heap[0]
            if entry.place is None:
                heappop(heap)
            elif entry.place != worth:
                heapreplace(heap, (entry.place, entry))
            else:
                heappop(heap)
                self._floor = worth[0]
                return entry

    def _remove(self, entry: Entry[V]) -> None:
        if len(self._heap) > 2 * len(self._entries) + COMPACT:
            entry.place = None
            self._heap = [(other.place, other) for other in self]
            heapify(self._heap)
