"""Caches made of first-in-first-out queues: S3-FIFO and SIEVE. A hit moves nothing.

Made by make_cache(). Not aware of: what a value is, how old it is.
"""

from collections import OrderedDict

from dlproxy.policy.caching.cache import Entry, Key, Store, V

SMALL = 0.1  # of the budget
GHOST = 0.9  # of the budget: as many bytes as the main queue holds have left the small one since
TO_MAIN = 2  # hits in the small queue that make an entry stay
MOST = 3  # a counter of two bits


class S3Fifo(Store[V]):
    """Newcomers pass a small queue; who was hit twice in it, or comes back soon after it left, gets into the main one.

    In the main queue an entry that was hit goes round again, up to three times. Source: Yang et al., "FIFO queues are all you
    need for cache eviction", SOSP 2023, and the numbers of its authors' libCacheSim: two hits, where the paper's text has "more
    than one access", and as long as the cache was never full, what the small queue has no room for goes into the main one.
    """

    def get(self, key: Key) -> Entry[V] | None:
        entry = self._entries.get(key)
        if entry is not None and entry.freq < MOST:
            entry.freq += 1
        return entry

    def _reset(self) -> None:
        self._small: OrderedDict[Key, Entry[V]] = OrderedDict()
        self._main: OrderedDict[Key, Entry[V]] = OrderedDict()
        self._ghost: OrderedDict[Key, int] = OrderedDict()
        self._small_used = self._ghost_used = 0
        self._been_full = False

    def _share_out(self) -> None:
        self._small_most = int(self.budget * SMALL)
        self._ghost_most = int(self.budget * GHOST)
        self._forget()

    def _seen_before(self, key: Key) -> bool:
        size = self._ghost.pop(key, None)
        if size is None:
            return False
        self._ghost_used -= size
        return True

    def _take(self, entry: Entry[V], seen: bool) -> None:
        if seen or (not self._been_full and self._small_used >= self._small_most):
            self._into_main(entry)
        else:
            entry.place = self._small
            self._small[entry.key] = entry
            self._small_used += entry.size

    def _into_main(self, entry: Entry[V]) -> None:
        entry.place = self._main
        self._main[entry.key] = entry

    def _evict(self) -> Entry[V]:
        self._been_full = True
        small = self._small
        if self.used - self._small_used > self.budget - self._small_most:
            return self._evict_main()
        while small:
            key, entry = small.popitem(last=False)
            self._small_used -= entry.size
            if entry.freq < TO_MAIN:
                self._ghost[key] = entry.size
                self._ghost_used += entry.size
                self._forget()
                return entry
            entry.freq = 0
            self._into_main(entry)
        return self._evict_main()

    def _evict_main(self) -> Entry[V]:
        main = self._main
        while True:
            key, entry = main.popitem(last=False)
            if not entry.freq:
                return entry
            entry.freq -= 1
            main[key] = entry

    def _forget(self) -> None:
        while self._ghost_used > self._ghost_most:
            self._ghost_used -= self._ghost.popitem(last=False)[1]

    def _remove(self, entry: Entry[V]) -> None:
        del entry.place[entry.key]
        if entry.place is self._small:
            self._small_used -= entry.size


class Sieve(Store[V]):
    """One queue, and a hand that goes through it from the oldest on: it lets pass who was hit since, and takes who was not.

    Newcomers join at the young end, the hand stays where it took somebody. So the queue is kept in two: whom the hand
    has still to look at in this round, and whom it has let pass. Source: Zhang et al., "SIEVE is simpler than LRU", NSDI 2024.
    """

    def get(self, key: Key) -> Entry[V] | None:
        entry = self._entries.get(key)
        if entry is not None:
            entry.freq = 1
        return entry

    def _reset(self) -> None:
        self._ahead: OrderedDict[Key, Entry[V]] = OrderedDict()
        self._passed: OrderedDict[Key, Entry[V]] = OrderedDict()

    def _take(self, entry: Entry[V], seen: bool) -> None:
        entry.place = self._ahead
        self._ahead[entry.key] = entry

    def _evict(self) -> Entry[V]:
        while True:
            key, entry = self._ahead.popitem(last=False)
            hit = entry.freq
            if hit:
                entry.freq = 0
                entry.place = self._passed
                self._passed[key] = entry
            self._turn_round()
            if not hit:
                return entry

    def _turn_round(self) -> None:
        """At the young end the hand goes on at the old one at once: who joins now is younger than all it has let pass."""
        if not self._ahead:
            self._ahead, self._passed = self._passed, self._ahead

    def _remove(self, entry: Entry[V]) -> None:
        del entry.place[entry.key]
        self._turn_round()
