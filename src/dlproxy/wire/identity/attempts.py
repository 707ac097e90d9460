"""Whoever guesses keys has to wait longer and longer, by address. Called by desk.py. Not aware of: keys."""

from collections import OrderedDict
from collections.abc import Callable

from msgspec import Struct

from dlproxy.hosts import client_of
from dlproxy.message import Failure, FailureKind, InferenceError

FREE = 10  # wrong tries before anybody has to wait
FIRST_S, LONGEST_S = 0.5, 60.0  # waits: twice as long each time
FORGOTTEN_S = 300.0  # without a wrong try
MOST_ADDRESSES = 10_000


class _Tries(Struct):
    count: int
    last_at: float
    until: float


class Attempts:
    """Wrong tries of each address. An empty address, that of a Unix socket, is one like others; an IPv6 /64 is one, too."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._tries: OrderedDict[str, _Tries] = OrderedDict()

    def check(self, address: str) -> None:
        """Raises InferenceError QUOTA while this one has to wait."""
        if not self._tries:
            return
        tries = self._tries.get(client_of(address))
        if tries is not None and (left_s := tries.until - self._clock()) > 0.0:
            raise InferenceError(Failure(FailureKind.QUOTA, "too many wrong keys from this address", left_s))

    def failed(self, address: str) -> None:
        now, address = self._clock(), client_of(address)
        tries = self._tries.get(address)
        if tries is None or now - tries.last_at > FORGOTTEN_S:
            tries = self._tries[address] = _Tries(0, now, now)
        tries.count += 1
        tries.last_at = now
        if tries.count > FREE:
            tries.until = now + min(FIRST_S * 2.0 ** min(tries.count - FREE - 1, 20), LONGEST_S)
        self._tries.move_to_end(address)
        if len(self._tries) > MOST_ADDRESSES:
            self._tries.popitem(last=False)
