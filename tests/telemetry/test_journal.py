"""The journal: what went on when, in bounded space, and collections that took long."""

import gc
from collections.abc import Iterator
from math import inf

import pytest

from dlproxy.telemetry.journal import MOST_HAPPENINGS, Journal


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(clock: Clock) -> Iterator[Journal]:
    journal = Journal(clock)
    yield journal
    journal.close()


def test_what_goes_on_has_no_end_yet(clock: Clock, journal: Journal) -> None:
    load = journal.begin("load", "it was being loaded", model="m")
    clock.now = 2.0
    journal.add("knobs", "max_batch = 8", model="m")
    assert [(one.kind, one.began_at, one.ended_at) for one in journal.since(1.0)] == [("knobs", 2.0, 2.0), ("load", 0.0, inf)]
    clock.now = 3.0
    journal.end(load, "it was loaded")
    assert [one.words for one in journal.since(2.5)] == ["it was loaded"]


def test_only_the_newest_happenings_are_kept(journal: Journal) -> None:
    for number in range(2 * MOST_HAPPENINGS):
        journal.add("knobs", str(number))
    kept = list(journal.since(0.0))
    assert (len(kept), kept[0].words) == (MOST_HAPPENINGS, str(2 * MOST_HAPPENINGS - 1))


def test_collections_are_told_of_if_they_took_long(clock: Clock, journal: Journal) -> None:
    journal.watch_collections()

    def slowly(phase: str, info: dict[str, int]) -> None:
        clock.now += took_s

    gc.callbacks.insert(0, slowly)
    try:
        for took_s in (0.0001, 0.5):  # noqa: B007 - it is read above
            gc.collect()
    finally:
        gc.callbacks.remove(slowly)
    (found,) = journal.since(0.0)
    assert found.kind == "gc"
    assert found.ended_at - found.began_at == pytest.approx(0.5)
    journal.close()
    journal.close()  # and not twice


def test_nothing_is_noted_of_what_took_no_time(journal: Journal) -> None:
    journal.note(1, {"receive": 0.00001})
    journal.note(2, {"receive": 0.5})
    journal.note(2, {"load": 0.25})
    assert {number: notes.phases for number, notes in journal.notes.items()} == {2: {"receive": 0.5, "load": 0.25}}


def test_notes_of_requests_without_an_answer_do_not_stay(clock: Clock, journal: Journal) -> None:
    for clock.now in (0.0, 200.0, 400.0):
        journal.note(int(clock.now), {"receive": 1.0})
    journal.forget_old()
    assert list(journal.notes) == [200, 400]
