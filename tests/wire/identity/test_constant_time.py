"""How long a key's check takes says nothing of how much of it was right: Welch's t over many tries (as dudect does)."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter_ns

import numpy as np
import pytest

from dlproxy.config.security import AuthConfig
from dlproxy.message import InferenceError
from dlproxy.testing import ManualClock
from dlproxy.wire.identity import key_file, keys
from dlproxy.wire.identity.desk import IdentityDesk
from dlproxy.wire.identity.keys import Keys
from dlproxy.wire.terms import Peer

TRIES = int(os.environ.get("DLPROXY_TRIES", "20000"))  # half with a wrong beginning, half with a wrong end; 4,000 at least
SUSPICIOUS = 4.5
DESKS, TEXTS = 100, 20  # desks have keys of their own for their digests

Check = Callable[[str], object]


def _statistic(make: Callable[[], tuple[Check, str, ManualClock]]) -> float:
    """Welch's t between keys that are wrong at the beginning and at the end, each of which has been asked before."""
    random = np.random.default_rng(7)
    doors = []
    for _ in range(DESKS):
        check, key, clock = make()
        assert check(key) is not None
        texts = [_wrong(key, number, random) for number in range(TEXTS)]
        for at in random.permutation(2 * TEXTS):  # neither kind comes first in memory or in the caches
            clock.advance(1.0)  # slow hashes are computed here, and there are only so many in a second
            number, end = divmod(int(at), 2)
            texts[number][end] = "".join(texts[number][end])
            _refused(check, texts[number][end])
        doors.append((check, texts))
    times = np.empty((2, DESKS, TEXTS, TRIES // (2 * DESKS * TEXTS)))
    for turn in range(times.shape[3]):
        for place in random.permutation(DESKS * TEXTS):
            desk, number = divmod(int(place), TEXTS)
            check, texts = doors[desk]
            for end in random.permutation(2):
                known = texts[number][end]
                text = known[:3] + known[3:]  # an object of its own, at a place of its own
                before = perf_counter_ns()
                _refused(check, text)
                times[end, desk, number, turn] = perf_counter_ns() - before
    # Where a text's digest falls in a table takes its own time, and tells nothing: each text counts once. What interrupts us
    # is no part of its median, and what is a desk's own none of the comparison.
    found = np.median(times, axis=3)
    first, last = (found - np.median(found, axis=(0, 2))[None, :, None]).reshape(2, -1)
    error = np.sqrt(first.var(ddof=1) / first.size + last.var(ddof=1) / last.size)
    statistic = float((first.mean() - last.mean()) / error)
    print(f"\n{times.size:,} tries: t = {statistic:.2f}; a difference of {SUSPICIOUS * error:.1f} ns would have been found")  # noqa: T201
    return statistic


def _wrong(key: str, number: int, random: np.random.Generator) -> list[str]:
    letters = np.array([*"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"])
    start = key.rindex("_", 0, 14) + 1
    others = [letter for letter in letters if letter not in (key[start], key[-1])]
    rest = "".join(random.choice(letters, len(key) - start - 1))
    return [key[:start] + others[number] + rest, key[:-1] + others[number]]


def _refused(check: Check, text: str) -> None:
    try:
        check(text)
    except InferenceError:
        return
    raise AssertionError("it was let in")


@pytest.fixture
def keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    monkeypatch.setattr(key_file, "COST", 1)
    monkeypatch.setattr(keys, "LOOK_S", 1e9)
    path = tmp_path / "keys.toml"
    gc.disable()
    yield path, key_file.create(path, "shop", scopes=["infer"], models=["*"])
    gc.enable()


def test_the_check_of_keys_takes_as_long_whatever_of_them_is_right(keyed: tuple[Path, str]) -> None:
    path, key = keyed

    def make() -> tuple[Check, str, ManualClock]:
        clock = ManualClock()
        return Keys(path, clock).principal, key, clock

    assert abs(_statistic(make)) < SUSPICIOUS


def test_a_request_takes_as_long_whatever_of_its_key_is_right(keyed: tuple[Path, str]) -> None:
    path, key = keyed

    def make() -> tuple[Check, str, ManualClock]:
        clock = ManualClock()
        desk, peer = IdentityDesk(AuthConfig(keys=str(path)), {}, clock), Peer("10.0.0.1")
        return lambda text: desk(peer, b"POST", b"/v2", {b"x-api-key": text.encode()}), key, clock

    assert abs(_statistic(make)) < SUSPICIOUS


def test_a_comparison_that_ends_at_the_first_difference_would_be_found(keyed: tuple[Path, str]) -> None:
    path, key = keyed

    class Naive(Keys):
        def _digest(self, text: str) -> bytes:
            for mine, theirs in zip(key, text, strict=False):
                if mine != theirs:
                    break
            return super()._digest(text)

    def make() -> tuple[Check, str, ManualClock]:
        clock = ManualClock()
        return Naive(path, clock).principal, key, clock

    assert _statistic(make) < -SUSPICIOUS
