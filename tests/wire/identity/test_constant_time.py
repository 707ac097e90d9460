"""How long a key's check takes says nothing of how much of it was right: Welch's t over many tries."""

import os
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from dlproxy.message import InferenceError
from dlproxy.wire.identity import key_file
from dlproxy.wire.identity.keys import Keys

TRIES = int(os.environ.get("DLPROXY_TRIES", "20000"))  # 100,000 and more show it well; each kind gets half of them
SUSPICIOUS = 4.5


def test_wrong_keys_take_as_long_whatever_of_them_is_right(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    key = key_file.create(path, "shop", scopes=["infer"], models=["*"])
    known = Keys(path, lambda: 0.0)
    known.principal(key)
    last = "A" if key[-1] != "A" else "B"
    wrong = {"first character": key[:13] + ("A" if key[13] != "A" else "B") + key[14:], "last character": key[:-1] + last}
    for text in wrong.values():  # their slow hashes are behind us: it is the look-up that is timed
        _refused(known, text)
    random = np.random.default_rng(7)
    taken: dict[str, list[int]] = {kind: [] for kind in wrong}
    kinds = list(wrong)
    for pick in random.integers(0, 2, TRIES):
        text = wrong[kinds[pick]]
        before = perf_counter_ns()
        _refused(known, text)
        taken[kinds[pick]].append(perf_counter_ns() - before)
    assert abs(_welch(*map(np.array, taken.values()))) < SUSPICIOUS


def _refused(known: Keys, text: str) -> None:
    try:
        known.principal(text)
    except InferenceError:
        return
    raise AssertionError("it was let in")


def _welch(one: np.ndarray, other: np.ndarray) -> float:
    """Of what is below the 95th percentile: what interrupts us is no part of the comparison."""
    most = np.quantile(np.concatenate([one, other]), 0.95)
    a, b = one[one <= most].astype(float), other[other <= most].astype(float)
    return float((a.mean() - b.mean()) / np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)))
