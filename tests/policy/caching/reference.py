"""LRU, LFU, SIEVE and GDSF as their papers' texts have them: lists that are searched, whatever that costs.

Called by test_policies.py. Not aware of: values.
"""

from typing import Any


class Naive:
    """`items`: (key, size, cost) in the policy's order; the same interface as a cache, but for what `put` returns: keys."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.items: list[list[Any]] = []  # [key, size, cost, count, last use]
        self.uses = 0

    @property
    def used(self) -> int:
        return sum(item[1] for item in self.items)

    def keys(self) -> set[bytes]:
        return {item[0] for item in self.items}

    def get(self, key: bytes) -> bool:
        for item in self.items:
            if item[0] == key:
                self.use(item)
                return True
        return False

    def put(self, key: bytes, size: int, cost: float) -> list[bytes]:
        self.drop(key)
        if size > self.budget // 10:
            return [key]
        left = self.make_room(self.budget - size)
        self.items.append([key, size, cost, 0, 0])
        self.use(self.items[-1])
        return left

    def resize(self, budget: int) -> list[bytes]:
        self.budget = budget
        return self.make_room(budget)

    def make_room(self, most: int) -> list[bytes]:
        left = []
        while self.used > most:
            victim = self.victim()
            self.leave(victim)
            left.append(victim[0])
        return left

    def drop(self, key: bytes) -> None:
        for item in self.items:
            if item[0] == key:
                self.leave(item)
                return

    def leave(self, item: list[Any]) -> None:
        self.items.remove(item)

    def use(self, item: list[Any]) -> None:
        self.uses += 1
        item[3] += 1
        item[4] = self.uses

    def victim(self) -> list[Any]:
        raise NotImplementedError


class NaiveLru(Naive):
    def victim(self) -> list[Any]:
        return min(self.items, key=lambda item: item[4])


class NaiveLfu(Naive):
    def victim(self) -> list[Any]:
        return min(self.items, key=lambda item: (item[3], item[4]))


class NaiveSieve(Naive):
    """`items` from the oldest to the youngest; `hand`: the place of who is looked at next."""

    def __init__(self, budget: int) -> None:
        super().__init__(budget)
        self.hand = 0

    def use(self, item: list[Any]) -> None:
        item[3] = min(item[3] + 1, 2)  # 1: new, 2: hit since

    def victim(self) -> list[Any]:
        while self.items[self.hand][3] == 2:
            self.items[self.hand][3] = 1
            self.hand = (self.hand + 1) % len(self.items)
        return self.items[self.hand]

    def leave(self, item: list[Any]) -> None:
        at = self.items.index(item)
        self.items.remove(item)
        if at < self.hand:
            self.hand -= 1
        if self.hand == len(self.items):
            self.hand = 0


class NaiveGdsf(Naive):
    def __init__(self, budget: int) -> None:
        super().__init__(budget)
        self.floor = 0.0

    def use(self, item: list[Any]) -> None:
        super().use(item)
        item[5:] = [self.floor + item[3] * item[2] / item[1]]

    def victim(self) -> list[Any]:
        victim = min(self.items, key=lambda item: (item[5], item[4]))
        self.floor = victim[5]
        return victim


NAIVE = {"lru": NaiveLru, "lfu": NaiveLfu, "sieve": NaiveSieve, "gdsf": NaiveGdsf}
