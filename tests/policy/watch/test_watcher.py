"""Watching: features are finite, what is usual is learnt and kept, charts and alarms do what their tables say."""

from collections.abc import Iterator, Sequence
from math import isfinite, log
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dlproxy.policy.tuning.window import Window
from dlproxy.policy.watch.detectors import LIMITS, SPAN, Charts, Learnt
from dlproxy.policy.watch.features import FEATURES, NAMES, Features, KnownCosts, Seen, features
from dlproxy.policy.watch.usual import FARTHEST, FIRST, Usual
from dlproxy.policy.watch.watcher import AMONG, CALM, ENOUGH, WINDOW_S, Alarm, Watcher

COUNTS = st.integers(0, 10**6)
SECONDS = st.floats(0.0, 1e6)


def window(number: int, random: Random, *, slow: float = 1.0, failed: int = 0, rows: int = 1, rate: float = 20.0) -> Window:
    """Of a model that takes 10 ms for a batch of one and 2 ms for each further row."""
    answered = round(rate * WINDOW_S * random.uniform(0.9, 1.1))
    seconds = slow * answered * (0.008 + 0.002 * rows) * random.uniform(0.98, 1.02)
    return Window(
        at=number * WINDOW_S,
        seconds=WINDOW_S,
        arrived=answered + failed,
        answered=answered,
        in_time=answered,
        failed=failed,
        rows=answered * rows,
        p50_s=slow * 0.012 * random.uniform(0.95, 1.05),
        p99_s=slow * 0.020 * random.uniform(0.9, 1.1),
        in_flight=slow * 0.4 * random.uniform(0.8, 1.2),
        dispersion=random.uniform(0.7, 1.4),
        costs={rows: (answered, seconds)},
    )


class Life:
    """A watched model."""

    def __init__(self) -> None:
        self.watcher = Watcher(Charts())
        self.number = 0
        self._random = Random(3)

    def go_on(self, windows: int, way: int = 1, **kinds: float) -> list[str]:
        """What was unusual after each."""
        found = []
        for _ in range(windows):
            self.number += 1
            seen = Seen(window(self.number, self._random, **kinds), way)  # type: ignore[arg-type]
            self.watcher.look(seen, seen.window.at)
            found.append(self.watcher.unusual)
        return found


@given(
    st.builds(
        Window,
        at=SECONDS,
        seconds=st.floats(1e-9, 1e6),
        arrived=COUNTS,
        answered=COUNTS,
        in_time=st.just(0),
        refused=COUNTS,
        failed=COUNTS,
        rows=COUNTS,
        p50_s=SECONDS,
        p99_s=SECONDS,
        in_flight=SECONDS,
        dispersion=SECONDS,
        costs=st.dictionaries(st.integers(1, 4096), st.tuples(st.integers(1, 1000), SECONDS), max_size=4),
    ),
    st.integers(0, 100),
)
def test_whatever_a_window_says_its_features_are_finite(seen: Window, hits: int) -> None:
    known = KnownCosts()
    for _ in range(3):
        found = features(Seen(seen, "way", hits, 100), known)
        assert len(found) == len(NAMES)
        assert all(value is None or isfinite(value) for value in found)
        known.learn(seen.costs, "way")


def test_what_batches_take_is_compared_size_by_size_and_way_by_way() -> None:
    known = KnownCosts()
    assert known.against({1: (9, 0.09)}, "a") is None
    known.learn({1: (100, 1.0), 8: (100, 2.4)}, "a")
    for costs, times in (
        ({1: (5, 0.05)}, 1.0),
        ({8: (5, 0.24)}, 2.0),
        ({1: (5, 0.05), 8: (5, 0.12)}, 1.0),
        ({16: (5, 0.2)}, 1.0),  # on the line: 8 ms and 2 ms a row
        ({16: (5, 0.2), 4000: (1, 9.0)}, 1.0),  # nothing tells of the last one
    ):
        assert known.against(costs, "a") == pytest.approx(log(times), abs=1e-9)
    assert known.against({1: (5, 0.05)}, "b") is None
    assert known.against({4000: (1, 9.0)}, "a") is None


def test_of_one_size_alone_no_line_is_drawn() -> None:
    known = KnownCosts()
    known.learn({1: (100, 1.0)}, "a")
    assert known.against({4: (100, 9.0)}, "a") is None


def spread(values: Sequence[float], *others: float | None) -> Iterator[Features]:
    rest = (*others, *([None] * (len(NAMES) - 1 - len(others))))
    return ((value, *rest) for value in values)


def test_what_is_usual_follows_slowly_and_outliers_hardly_at_all() -> None:
    random, usual = Random(1), Usual()
    for found in spread([random.gauss(5.0, 0.5) for _ in range(FIRST)]):
        assert not usual.known
        usual.learn(found)
    centre = usual.centres[0]
    assert centre == pytest.approx(5.0, abs=0.3)
    assert usual.spreads[0] == pytest.approx(0.5, rel=0.5)
    assert usual.centres[1:] == [None] * (len(NAMES) - 1)
    (off,) = (usual.off(found) for found in spread([1e9], 3.0))
    assert off == (FARTHEST, *([0.0] * (len(NAMES) - 1)))
    usual.learn(next(spread([1e9])))
    assert usual.centres[0] == pytest.approx(centre, abs=0.05)
    for found in spread([7.0] * 1500):
        usual.learn(found)
    assert usual.centres[0] == pytest.approx(7.0, abs=0.3)


def test_what_never_moves_has_the_spread_of_its_floor_and_a_feature_that_comes_later_is_learnt_then() -> None:
    usual = Usual()
    for found in spread([1.0] * FIRST):
        usual.learn(found)
    assert usual.spreads[0] == FEATURES["rate"].floor
    for found in spread([1.0] * 12, 2.0):
        assert usual.centres[1] is None or usual.off(found)[1] == 0.0
        usual.learn(found)
    assert usual.centres[1] == pytest.approx(2.0)


@given(st.lists(st.floats(0.0, 3.0), max_size=80))
def test_an_alarm_begins_after_enough_unusual_windows_and_ends_after_as_many_calm_ones(scores: list[float]) -> None:
    alarm, before = Alarm(), False
    for place, score in enumerate(scores):
        now = alarm.hear(score)
        if now and not before:
            assert sum(one >= 1.0 for one in scores[max(place - AMONG + 1, 0) : place + 1]) >= ENOUGH
        if before and not now:
            assert all(one < 1.0 for one in scores[place - CALM + 1 : place + 1])
        before = now


@pytest.mark.parametrize("name", NAMES)
def test_each_chart_heeds_its_own_limit_and_the_side_that_is_bad(name: str) -> None:
    side = FEATURES[name].side or 1
    place = NAMES.index(name)

    def last(value: float) -> float:
        charts = Charts(dict.fromkeys(NAMES, 2.0))
        off = [0.0] * len(NAMES)
        off[place] = value
        return max(charts.observe(off, 0.0) for _ in range(50))

    reached = 2.0 * (0.3 / 1.7) ** 0.5
    assert last(side * reached * 1.01) >= 1.0
    assert last(side * reached * 0.99) < 1.0
    assert (last(-side * reached * 1.01) < 1.0) == bool(FEATURES[name].side)
    assert set(LIMITS) == set(NAMES)


def test_a_network_is_shown_the_last_windows_once_there_are_enough() -> None:
    shown: list[list[float]] = []
    learnt = Learnt(lambda windows: shown.append([one[0] for one in windows]) or 0.5)  # type: ignore[func-returns-value]
    scores = [learnt.observe([float(number)] * len(NAMES), 0.0) for number in range(SPAN + 1)]
    assert scores == [0.0] * (SPAN - 1) + [0.5, 0.5]
    assert shown == [[float(number) for number in range(SPAN)], [float(number) for number in range(1, SPAN + 1)]]
    learnt.forget()
    assert learnt.observe([0.0] * len(NAMES), 0.0) == 0.0


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ({"slow": 2.0}, "time of batches against the known"),
        ({"failed": 6}, "failed requests 1"),
        ({"rows": 8}, "rows of a request 8, usually 1"),
        ({"rate": 200.0}, "/s, usually 20"),
    ],
)
def test_a_fault_raises_an_alarm_that_says_what_and_ends_when_it_is_over(kinds: dict[str, float], said: str) -> None:
    life = Life()
    assert not any(life.go_on(FIRST + 300))
    found = life.go_on(12, 1, **kinds)
    assert not found[ENOUGH - 2]
    assert said in found[-1]
    assert life.go_on(200, 1, **kinds)[-1] == found[-1], "what is unusual is not learnt"
    assert not life.go_on(CALM + 12)[-1]


def test_a_change_of_the_load_or_of_the_way_it_runs_is_no_fault_nor_is_silence() -> None:
    life = Life()
    life.go_on(FIRST + 60)
    assert not any(life.go_on(60, rate=30.0))
    assert not any(life.go_on(30, way=2, slow=1.2))
    idle = Window(at=0.0, seconds=WINDOW_S)
    for number in range(100):
        assert not life.watcher.look(Seen(replace(idle, at=1e4 + number)), 1e4 + number)
    assert life.watcher.score == 0.0
    assert not any(life.go_on(60))


def test_what_an_operator_accepts_is_learnt_anew() -> None:
    life = Life()
    life.go_on(FIRST)
    assert not life.watcher.accept(), "there is nothing to accept"
    life.go_on(20, slow=2.0)
    assert life.watcher.accept()
    assert not any(life.go_on(FIRST + 60, slow=2.0))
    assert any(life.go_on(20, slow=4.0))


def test_values_are_told_in_units_that_people_read() -> None:
    told = {name: feature.told(log(2.0)) for name, feature in FEATURES.items()}
    assert (told["rate"], told["p99"], told["cost"], told["batch"]) == ("2/s", "2 s", "200%", "2")
    assert (FEATURES["failed"].told(0.5), FEATURES["hits"].told(0.5)) == ("25.0%", "50%")
