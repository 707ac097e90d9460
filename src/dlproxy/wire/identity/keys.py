"""API keys of requests: a keyed digest of each is remembered with its verdict, and its slow hash computed once.

Called by desk.py. Not aware of: headers, protocols.
"""

import hashlib
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from math import inf
from pathlib import Path

from msgspec import Struct

from dlproxy.config import ConfigError
from dlproxy.message import Failure, FailureKind, InferenceError, Principal
from dlproxy.wire.identity.key_file import Key, matches, parts_of, read

MOST_VERDICTS = 10_000
LOOK_S = 0.5  # how often the file is looked at: a revoked key is refused within a second
SLOW_PER_S, SLOW_BURST = 5.0, 20.0  # slow hashes of each key: wrong secrets behind a known id cost no more than that

UNKNOWN = Failure(FailureKind.UNAUTHENTICATED, "the API key is not known")

log = logging.getLogger(__name__)


class _Budget(Struct):
    """Slow hashes that may be computed for one id, as of `at`."""

    left: float
    at: float


class Keys:
    """The keys of one file, which is followed. A file that cannot be read any more changes nothing, and is logged."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """Raises ConfigError."""
        self._path = path
        self._clock = clock
        self._digest_key = secrets.token_bytes(32)
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()  # to names; empty for what is none
        self._budgets: dict[str, _Budget] = {}
        self._principals: dict[str, Principal] = {}
        self._keys: dict[str, Key] = {}
        self._state = self._stat()
        self._looked_at = clock()
        self._take(read(path))

    def knows(self, text: str) -> bool:
        """Whether it was found to be a key of the file before, be it one that does not hold any more."""
        self._follow()
        return bool(self._verdicts.get(self._digest(text)))

    def principal(self, text: str) -> Principal:
        """Whose key it is. Raises InferenceError: UNAUTHENTICATED; QUOTA for too many wrong ones."""
        self._follow()
        digest = self._digest(text)
        name = self._verdicts.get(digest)
        if name is None:
            name = self._verdict(text)
            self._verdicts[digest] = name
            if len(self._verdicts) > MOST_VERDICTS:
                self._verdicts.popitem(last=False)
        key = self._keys.get(name)
        if key is None:
            raise InferenceError(UNKNOWN)
        if refusal := key.refusal(datetime.now(UTC)):
            raise InferenceError(Failure(FailureKind.UNAUTHENTICATED, refusal))
        return self._principals[name]

    def _digest(self, text: str) -> bytes:
        return hashlib.blake2b(text.encode(), key=self._digest_key, digest_size=32).digest()

    def _verdict(self, text: str) -> str:
        parts = parts_of(text)
        if parts is None:
            return ""
        found = next((name for name, key in self._keys.items() if key.id == parts[0]), "")
        if found:
            self._spend(parts[0])
            return found if matches(self._keys[found], parts[1]) else ""
        return ""

    def _spend(self, number: str) -> None:
        now = self._clock()
        budget = self._budgets.setdefault(number, _Budget(SLOW_BURST, now))
        budget.left = min(budget.left + (now - budget.at) * SLOW_PER_S, SLOW_BURST) - 1.0
        budget.at = now
        if budget.left < 0.0:
            budget.left += 1.0
            raise InferenceError(Failure(FailureKind.QUOTA, "too many wrong API keys; try again later", 1.0))

    def _follow(self) -> None:
        now = self._clock()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        state = self._stat()
        if state == self._state:
            return
        self._state = state
        try:
            self._take(read(self._path))
        except ConfigError as error:
            log.error("the API keys stay as they were: %s", error)

    def _take(self, keys: dict[str, Key]) -> None:
        before, self._keys = self._keys, keys
        changed = {name for name, key in before.items() if keys.get(name) != key}
        self._principals = {
            name: self._principals[name]
            if name in self._principals and name not in changed
            else Principal(name, key.tenant, key.grant, key.quota)
            for name, key in keys.items()
        }
        same = {name for name in keys if name in before and before[name].hash == keys[name].hash}
        self._verdicts = OrderedDict((digest, name) for digest, name in self._verdicts.items() if name in same)
        self._budgets = {key.id: self._budgets.get(key.id, _Budget(SLOW_BURST, -inf)) for key in keys.values()}

    def _stat(self) -> tuple[int, int, int]:
        try:
            state = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return state.st_mtime_ns, state.st_ino, state.st_size
