"""What every cache keeps to: entries by key within a budget of bytes. Its subclasses say which entry leaves.

Made by make_cache() for serve/ and lab/simulate, one for each model. Not aware of: what a value is, how old it is, threads.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

Key = bytes  # a digest of 16 bytes: its bits are taken to be random

LARGEST = (
    10  # one entry takes at most a tenth of the budget: it would drive out all of S3-FIFO's small queue, and a lot elsewhere
)

# What an entry takes beside its value: itself, its key, tables and queues, and what the policy remembers of those that left.
# Measured over 2,000 to 16,000 entries, CPython 3.11: at most 516 (S3-FIFO), 447 elsewhere. Who counts bytes adds it to sizes.
ENTRY_BYTES = 520

V = TypeVar("V")


class Entry(Generic[V]):
    """An answer that is kept. `size`: bytes; `cost_s`: seconds of compute that a hit saves. The rest is the policy's own."""

    __slots__ = ("cost_s", "freq", "key", "place", "size", "value")

    def __init__(self, key: Key, value: V, size: int, cost_s: float) -> None:
        self.key = key
        self.value = value
        self.size = size
        self.cost_s = cost_s
        self.freq = 0
        self.place: Any = None  # where the policy has it, None once it has left

    def __repr__(self) -> str:
        return f"Entry({self.key!r}, {self.size} B, {self.cost_s:g} s, freq {self.freq})"


class CachePolicy(Protocol[V]):
    """Which answers are kept. `used` bytes never exceed `budget`. No clock, no randomness: the same calls, the same entries."""

    @property
    def budget(self) -> int: ...

    @property
    def used(self) -> int: ...

    def get(self, key: Key) -> Entry[V] | None:
        """A client looks it up: counts as a use."""

    def peek(self, key: Key) -> Entry[V] | None:
        """As `get`, without counting."""

    def put(self, key: Key, value: V, size: int, cost_s: float) -> list[Entry[V]]:
        """Take it in, in place of an older entry of that key. Returns what had to leave for it; the new entry itself if it is
        not admitted, which one of more than a tenth of the budget never is."""

    def drop(self, key: Key) -> Entry[V] | None:
        """It is no longer true. Nothing is remembered of it."""

    def resize(self, budget: int) -> list[Entry[V]]:
        """Returns what has to leave."""

    def clear(self) -> None:
        """As if nothing had ever been put. Who lets go of a cache calls it: entries and queues hold each other."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Entry[V]]: ...


class Store(ABC, Generic[V]):
    """The part of a cache that all policies share: the look-up table and the count of bytes."""

    def __init__(self, budget: int) -> None:
        self.budget = 0
        self.used = 0
        self._largest = 0
        self._entries: dict[Key, Entry[V]] = {}
        self._reset()
        self.resize(budget)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry[V]]:
        return iter(self._entries.values())

    def peek(self, key: Key) -> Entry[V] | None:
        return self._entries.get(key)

    def put(self, key: Key, value: V, size: int, cost_s: float) -> list[Entry[V]]:
        assert size > 0
        if key in self._entries:
            self.drop(key)
        entry = Entry(key, value, size, cost_s)
        if size > self._largest:
            return [entry]
        seen = self._seen_before(key)
        left = self._make_room(self.budget - size)
        self._entries[key] = entry
        self.used += size
        self._take(entry, seen)
        return left

    def drop(self, key: Key) -> Entry[V] | None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.used -= entry.size
            self._remove(entry)
            entry.place = None
        return entry

    def resize(self, budget: int) -> list[Entry[V]]:
        assert budget >= 0
        self.budget = budget
        self._largest = budget // LARGEST
        self._share_out()
        return self._make_room(budget)

    def clear(self) -> None:
        for entry in self._entries.values():
            entry.place = None
        self._entries.clear()
        self.used = 0
        self._reset()

    def _make_room(self, most: int) -> list[Entry[V]]:
        left: list[Entry[V]] = []
        while self.used > most:
            entry = self._evict()
            entry.place = None
            del self._entries[entry.key]
            self.used -= entry.size
            left.append(entry)
        return left

    # What a policy says

    def _seen_before(self, key: Key) -> bool:
        """Whether it remembers a key that it does not hold; asked once before it is taken in."""
        return False

    @abstractmethod
    def _take(self, entry: Entry[V], seen: bool) -> None:
        """It is new, and there is room."""

    @abstractmethod
    def _evict(self) -> Entry[V]:
        """Take one out of the policy's own lists, and return it. There is one."""

    @abstractmethod
    def _remove(self, entry: Entry[V]) -> None:
        """Take this one out of the policy's own lists."""

    def _share_out(self) -> None:
        """The budget is another."""

    @abstractmethod
    def _reset(self) -> None:
        """Empty lists."""
