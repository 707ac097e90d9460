"""What cannot be met is said with the nearest that can, and that one is not complained of again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.config import Goal, parse_goal
from dlproxy.policy.reachable import unmet

LINE = [(rows, 0.030 + 0.005 * rows) for rows in (1, 2, 4, 64)]  # a row takes 35 ms
LENGTHS = [(1, 8, 0.010), (1, 64, 0.050), (8, 8, 0.024), (8, 64, 0.200)]
NOISY = [(1, 0.010), (1, 0.014), (8, 0.040), (8, 0.030)]


@pytest.mark.parametrize(
    ("text", "instances", "max_batch", "said"),
    [
        ("", 1, 64, []),
        ("max rate", 1, 64, []),
        ("p99=35ms", 1, 64, []),
        ("p99=20ms", 1, 64, ["p99=20ms cannot be met: one row alone takes 35 ms; the nearest that can is p99=35ms"]),
        ("p99.9=34.9ms", 1, 64, ["p99.9=34.9ms cannot be met: one row alone takes 35 ms; the nearest that can is p99.9=35ms"]),
        ("rate>=180", 1, 64, []),  # 64 rows in 0.35 s
        ("rate>=500", 3, 64, []),
        (
            "rate>=200",
            1,
            64,
            [
                "rate>=200 cannot be met: batches give at most 183 requests of one row a second on 1 instance; "
                "the nearest that can is rate>=180"
            ],
        ),
        ("p99=200ms, rate>=130", 1, 64, []),  # 12 rows take 90 ms, within 92
        ("p99=200ms, rate>=270", 2, 64, ["batches that keep p99=200ms give at most 267 requests", "rate>=260"]),
        ("p99=200ms, rate>=130", 1, 4, ["at most 80 requests", "rate>=80"]),
        ("p99=200ms, rate>=29", 1, 1, ["at most 28.6 requests", "rate>=28"]),
        ("p50=1ms, rate>=30", 1, 64, ["p50=35ms", "that keep p50=35ms give at most 28.6 requests"]),
        ("accuracy>=0.97", 1, 64, ["accuracy>=0.97 cannot be judged: the accuracy of this model has not been measured"]),
    ],
)
def test_what_cannot_be_met_is_said(text: str, instances: int, max_batch: int, said: list[str]) -> None:
    lines = unmet(parse_goal(text), LINE, instances, max_batch)
    assert bool(lines) is bool(said)
    for clue in said:
        assert any(clue in line for line in lines)


@pytest.mark.parametrize(
    ("accuracy", "said"), [(0.98, []), (0.97, []), (0.95, ["accuracy>=0.97 cannot be met: that of this model is 0.95"])]
)
def test_an_accuracy_that_was_measured_is_judged(accuracy: float, said: list[str]) -> None:
    assert unmet(parse_goal("accuracy>=0.97"), LINE, 1, 64, accuracy) == said


def test_without_a_calibration_nothing_is_said_of_speed() -> None:
    assert unmet(parse_goal("p99=1us, rate>=1000000"), [], 1, 64) == []


def test_the_shortest_rows_decide_where_lengths_differ() -> None:
    assert unmet(parse_goal("p99=10ms"), LENGTHS, 1, 64) == []
    (line,) = unmet(parse_goal("p99=9ms"), LENGTHS, 1, 64)
    assert "one row alone takes 10 ms" in line


def test_the_nearest_is_further_for_a_quantile_that_the_spread_makes_later() -> None:
    nearest = []
    for quantile in (0.5, 0.95, 0.99, 0.999):
        (line,) = unmet(Goal(0.001, quantile), NOISY, 1, 64)
        nearest.append(parse_goal(line.rpartition(" is ")[2]).latency_s)
    assert nearest == sorted(set(nearest), key=lambda latency_s: latency_s or 0.0)


POINTS = st.lists(st.tuples(st.integers(1, 64), st.floats(1e-5, 10.0)), min_size=1, max_size=5)


@given(
    prior=POINTS,
    latency_s=st.none() | st.floats(1e-6, 20.0),
    quantile=st.floats(0.01, 0.9999),
    rate=st.just(0.0) | st.floats(0.01, 1e6),
    instances=st.integers(1, 64),
    max_batch=st.integers(1, 1024),
)
def test_the_nearest_can_be_met(
    prior: list[tuple[int, float]],
    latency_s: float | None,
    quantile: float,
    rate: float,
    instances: int,
    max_batch: int,
) -> None:
    goal = Goal(latency_s, quantile if latency_s is not None else 0.99, rate)
    nearest = {}
    for line in unmet(goal, prior, instances, max_batch):
        found = parse_goal(line.rpartition(" is ")[2])
        nearest["latency" if found.latency_s is not None else "rate"] = found
    latency, least = nearest.get("latency", goal), nearest.get("rate", goal)
    assert unmet(Goal(latency.latency_s, goal.quantile, least.least_rate), prior, instances, max_batch) == []
