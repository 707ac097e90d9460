"""Inputs that are not run any more, because they have ended worker processes: known again by their content.

Asked by serve/driver.py while there are any. Not aware of: how it was found out, lanes.
"""

import hashlib
from collections.abc import Callable

from dlproxy.message import Request

MOST = 1024  # inputs remembered; the oldest goes first


class Quarantine:
    """Remembers inputs for `hold_s` seconds each. True while there is one, or was when it last looked."""

    def __init__(self, hold_s: float, clock: Callable[[], float]) -> None:
        self._hold_s = hold_s
        self._clock = clock
        self._until: dict[bytes, float] = {}  # in the order of their ends

    def __len__(self) -> int:
        return len(self._until)

    def add(self, request: Request) -> None:
        """Its like is refused from now on."""
        key = fingerprint(request)
        self._until.pop(key, None)
        self._until[key] = self._clock() + self._hold_s
        if len(self._until) > MOST:
            del self._until[next(iter(self._until))]

    def left_s(self, request: Request) -> float:
        """Seconds for which this input is refused; 0 if it is not."""
        now = self._clock()
        while self._until and next(iter(self._until.values())) <= now:
            del self._until[next(iter(self._until))]
        return max(self._until.get(fingerprint(request), now) - now, 0.0) if self._until else 0.0


def fingerprint(request: Request) -> bytes:
    """16 bytes that two requests share if and only if, for all practical purposes, their inputs are the same."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in request.inputs:
        digest.update(f"{tensor.name}\0{tensor.dtype.value}\0{tensor.shape}\0{len(tensor.data)}\0".encode())
        digest.update(tensor.data)
    return digest.digest()
