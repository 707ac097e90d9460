"""One model's result cache on one node in virtual time: the production policy, and requests that wait for another's answer.

Called by engine.py where it reads a request and where one ends. Not aware of: lanes, how long anything takes.
"""

from functools import lru_cache
from hashlib import blake2b

from dlproxy.message import FailureKind, Ticket
from dlproxy.policy.caching import make_cache

ANSWER_BYTES = 1 << 10  # of each: all alike


class SimulatedCache:
    """Room for so many answers. The first request for a key runs; those that come until it ends join it, and end as it does."""

    def __init__(self, policy: str, answers: int) -> None:
        self._kept = make_cache(policy, answers * ANSWER_BYTES)
        self._waiting: dict[int, list[Ticket]] = {}  # by key: those that have joined
        self._running: dict[int, int] = {}  # by the number of the request that runs: its key
        self.hits = self.joined = self.misses = 0

    def look_up(self, key: int, ticket: Ticket) -> bool | None:
        """True: it is there. False: somebody else's answer will be this one's, too. None: it must run."""
        if self._kept.get(_digest(key)) is not None:
            self.hits += 1
            return True
        waiting = self._waiting.get(key)
        if waiting is not None:
            self.joined += 1
            waiting.append(ticket)
            return False
        self.misses += 1
        self._waiting[key] = []
        self._running[ticket.id] = key
        return None

    def ended(self, number: int, failure: FailureKind | None) -> list[Ticket]:
        """A request has. Returns those that had joined it."""
        key = self._running.pop(number, None)
        if key is None:
            return []
        if failure is None:
            self._kept.put(_digest(key), None, ANSWER_BYTES, 1.0)
        return self._waiting.pop(key)


@lru_cache(1 << 16)
def _digest(key: int) -> bytes:
    return blake2b(key.to_bytes(8, "little"), digest_size=16).digest()
