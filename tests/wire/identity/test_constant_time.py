"""How long a key's check takes says nothing of how much of it was right: Student's t over many desks."""

import os
from pathlib import Path
from time import perf_counter_ns

import numpy as np
import pytest

from dlproxy.message import InferenceError
from dlproxy.wire.identity import key_file
from dlproxy.wire.identity.keys import Keys

TRIES = int(os.environ.get("DLPROXY_TRIES", "20000"))  # 100,000 and more show it well; each kind gets half of them
SUSPICIOUS = 4.5
DESKS = 500  # each with a key of its own for its digests: where those fall in a table differs, and tells nothing


def test_wrong_keys_take_as_long_whatever_of_them_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_file, "COST", 1)
    path = tmp_path / "keys.toml"
    key = key_file.create(path, "shop", scopes=["infer"], models=["*"])
    desks = [Keys(path, lambda: 0.0) for _ in range(DESKS)]
    last = "A" if key[-1] != "A" else "B"
    wrong = {"first": key[:13] + ("A" if key[13] != "A" else "B") + key[14:], "last": key[:-1] + last}
    random = np.random.default_rng(7)
    for known in desks:  # their slow hashes are behind us: it is the look-up that is timed, wherever in the table it ends
        known.principal(key)
        for kind in random.permutation(list(wrong)):
            _refused(known, wrong[kind])
    differences = []
    for number, turned in enumerate(random.integers(0, 2, TRIES // 2)):
        known, took = desks[number % DESKS], {}
        for kind in ("last", "first") if turned else ("first", "last"):
            text = wrong[kind][:3] + wrong[kind][3:]  # an object of its own, at a place of its own
            before = perf_counter_ns()
            _refused(known, text)
            took[kind] = perf_counter_ns() - before
        differences.append(took["first"] - took["last"])
    by_desk = np.median(np.array(differences).reshape(-1, DESKS), axis=0)  # what interrupts us is no part of the comparison
    assert abs(by_desk.mean()) / (by_desk.std(ddof=1) / np.sqrt(DESKS)) < SUSPICIOUS


def _refused(known: Keys, text: str) -> None:
    try:
        known.principal(text)
    except InferenceError:
        return
    raise AssertionError("it was let in")
