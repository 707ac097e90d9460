"""How many bytes each model's cache gets: where one more byte saves the most seconds, some are moved to, a few at a time.

Called by serve/ for every answer that leaves a cache and every miss, and now and then for all models. Not aware of: how a
cache chooses whom it keeps, how much memory there is.
"""

from collections import OrderedDict
from collections.abc import Mapping

from msgspec import Struct

from dlproxy.policy.caching.cache import Key

REACH = 0.25  # of the budget: as many bytes of answers that have left are remembered, by their keys
GHOSTS = 8_192  # keys at most, some 2 MB, however small the answers; then the reach is shorter
LOOK_S = 5.0  # between two looks at what more bytes would have saved
NEWEST = 0.2  # weight of the newest look in what is known: a memory of some five looks
LEAST_ASKED = 20  # times that what had left was asked for, in the memory: what is moved on fewer is moved by chance
PAYS = 1.25  # times as much must a byte save elsewhere: near the best division, 25 % of the marginal worth are little of all
FLOOR = 0.1  # of an equal share, for every model: its answers can still show that they are worth more
MOST, LEAST = 1 / 16, 1 / 256  # of all bytes, moved at a time: the steps are halved where they go back and forth


class Ghost:
    """Keys of answers that have left one cache, in that order, for REACH of its budget: which of them are asked for again.

    Each that is would still be there if the budget were larger by its reach. Exact for LRU; for other policies what leaves is
    not always what more bytes would keep, but which of two models is worse off, it tells.
    """

    def __init__(self) -> None:
        self._left: OrderedDict[Key, tuple[int, float]] = OrderedDict()
        self._bytes = 0
        self.reach = 0.0  # bytes
        self.asked = 0
        self.lost_s = 0.0  # of compute, since the beginning, that a budget larger by the reach would have saved

    def __len__(self) -> int:
        return len(self._left)

    def left(self, key: Key, size: int, cost_s: float, budget: int) -> None:
        """It had to leave a cache of this budget, or never got in. Not for what was dropped."""
        before = self._left.pop(key, None)
        if before is not None:
            self._bytes -= before[0]
        self._left[key] = (size, cost_s)
        self._bytes += size
        self.reach = REACH * budget
        while self._bytes > REACH * budget:
            self._bytes -= self._left.popitem(last=False)[1][0]
        if len(self._left) > GHOSTS:
            self._bytes -= self._left.popitem(last=False)[1][0]
            self.reach = float(self._bytes)

    def missed(self, key: Key) -> bool:
        """A client asked for what is not there. Returns whether it was there of late."""
        gone = self._left.pop(key, None)
        if gone is None:
            return False
        self._bytes -= gone[0]
        self.asked += 1
        self.lost_s += gone[1]
        return True

    def clear(self) -> None:
        """All that left is no longer true."""
        self._left.clear()
        self._bytes = 0


class CacheStats(Struct, frozen=True):
    """What is known of one model's cache: bytes in use, and what its ghost tells. `asked` and `lost_s` only grow."""

    used: int
    asked: int
    lost_s: float
    reach: float


class _Known(Struct):
    asked_before: int
    lost_before_s: float
    asked: float = 0.0  # in the memory
    worth: float = 0.0  # seconds saved per second and byte, by a larger budget
    bytes: float = 0.0


class BudgetShares:
    """Moves bytes between the models' caches until one more saves as much everywhere (where hits grow ever slower with
    bytes, as under every policy here, that division saves most: Stone, Turek and Wolf, "Optimal partitioning of cache memory",
    IEEE ToC 1992).

    At most one step at a look: from where a byte is worth least to where it is worth most, if that is PAYS times as much, and
    LEAST_ASKED answers that had left were asked for again there. Who does not fill its bytes gives of those first. A new model
    starts with an equal share. When the total changes, as under memory pressure, all shares do, at once and in proportion.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._total = 0
        self._looked_at: float | None = None
        self._step = MOST
        self._last = ("", "")  # from whom to whom

    def act(self, now: float, stats: Mapping[str, CacheStats], total: int) -> Mapping[str, int]:
        """Bytes by model, `total` in all at most. Call it when models come or go, when the total changes, and now and then."""
        if stats.keys() != self._known.keys():
            self._come_and_go(stats, total)
        if total != self._total and self._known:
            self._scale(total)
        if self._looked_at is None:
            self._looked_at = now
        elif now - self._looked_at >= LOOK_S:
            self._look(stats, now - self._looked_at)
            self._looked_at = now
            self._move(stats)
        return {name: int(known.bytes) for name, known in self._known.items()}

    def _come_and_go(self, stats: Mapping[str, CacheStats], total: int) -> None:
        self._known = {name: known for name, known in self._known.items() if name in stats}
        rest = [known.bytes for known in self._known.values()]
        equal = sum(rest) / len(rest) if rest else total / max(len(stats), 1)
        for name, seen in stats.items():
            if name not in self._known:
                self._known[name] = _Known(seen.asked, seen.lost_s, bytes=equal)
        self._total = -1  # what there is, is divided anew, in proportion

    def _scale(self, total: int) -> None:
        """In proportion, but for the floor."""
        floor = FLOOR * total / len(self._known)
        whole = sum([known.bytes for known in self._known.values()])
        above = 0.0
        for known in self._known.values():
            known.bytes = (known.bytes * total / whole if whole else total / len(self._known)) - floor
            above += max(known.bytes, 0.0)
        left = total - floor * len(self._known)
        for known in self._known.values():
            known.bytes = floor + (max(known.bytes, 0.0) * left / above if above else 0.0)
        self._total = total

    def _look(self, stats: Mapping[str, CacheStats], seconds: float) -> None:
        for name, known in self._known.items():
            seen = stats[name]
            lost_s, asked = seen.lost_s - known.lost_before_s, seen.asked - known.asked_before
            known.lost_before_s, known.asked_before = seen.lost_s, seen.asked
            worth = lost_s / seconds / max(seen.reach, 1.0)
            known.worth += NEWEST * (worth - known.worth)
            known.asked += asked - NEWEST * known.asked

    def _move(self, stats: Mapping[str, CacheStats]) -> None:
        known, step = self._known, self._step * self._total
        floor = FLOOR * self._total / max(len(known), 1)
        takers = [name for name in known if known[name].asked >= LEAST_ASKED]
        if not takers:
            return
        taker = max(takers, key=lambda name: known[name].worth)
        worth = {
            name: known[name].worth if known[name].bytes - step < stats[name].used else 0.0  # it does not miss what it lacks
            for name in known
            if name != taker and known[name].bytes > floor
        }
        giver = min(worth, key=worth.__getitem__, default=taker)
        if giver == taker or known[taker].worth < PAYS * worth[giver]:
            return
        if self._last == (taker, giver):
            self._step = max(self._step / 2, LEAST)
        elif self._last == (giver, taker):
            self._step = min(self._step * 1.25, MOST)
        self._last = (giver, taker)
        moved = min(step, known[giver].bytes - floor)
        known[giver].bytes -= moved
        known[taker].bytes += moved
