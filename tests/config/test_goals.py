"""What a user wants, as `slo` says it: every goal has a text, and what is no goal is answered with the nearest that is."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dlproxy.config import ConfigError, Goal, ModelConfig, check, load, parse_goal
from dlproxy.config.effects import LEVELS
from dlproxy.config.goals import EXAMPLES, parse_latency
from dlproxy.policy.queueing import DEFAULT_LEVEL, LOWEST_LEVEL

MODEL = '[models.m]\npath = "a"\n'


@pytest.mark.parametrize(
    ("text", "goal", "normal"),
    [
        ("", Goal(), ""),
        ("  ", Goal(), ""),
        ("p99=20ms", Goal(0.02), "p99=20ms"),
        (" p99 = 250 us ", Goal(250e-6), "p99=250us"),
        ("p99=0.5s", Goal(0.5), "p99=500ms"),
        ("p99=1.5ms", Goal(1.5e-3), "p99=1.5ms"),
        ("p95=50ms", Goal(0.05, 0.95), "p95=50ms"),
        ("p50=5ms", Goal(0.005, 0.5), "p50=5ms"),
        ("p99.9=1s", Goal(1.0, 0.999), "p99.9=1s"),
        ("p99.90=1000ms", Goal(1.0, 0.999), "p99.9=1s"),
        ("rate>=500", Goal(least_rate=500.0), "rate>=500"),
        ("rate >= 500 / s", Goal(least_rate=500.0), "rate>=500"),
        ("rate>=0.5/s", Goal(least_rate=0.5), "rate>=0.5"),
        ("max rate", Goal(prefers="rate"), "max rate"),
        ("min  cores", Goal(prefers="cores"), "min cores"),
        ("accuracy>=0.97", Goal(least_accuracy=0.97), "accuracy>=0.97"),
        ("accuracy>=97%", Goal(least_accuracy=0.97), "accuracy>=0.97"),
        ("accuracy >= 97.5 %", Goal(least_accuracy=0.975), "accuracy>=0.975"),
        ("accuracy>=1", Goal(least_accuracy=1.0), "accuracy>=1"),
        (
            "accuracy>=97%,min cores,rate>=500/s,p95=50ms",
            Goal(0.05, 0.95, 500.0, "cores", 0.97),
            "p95=50ms, rate>=500, min cores, accuracy>=0.97",
        ),
    ],
)
def test_goals_are_read_and_told_in_normal_form(text: str, goal: Goal, normal: str) -> None:
    assert parse_goal(text) == goal
    assert str(goal) == normal


ABOVE_0 = st.floats(0.0, exclude_min=True, allow_nan=False, allow_infinity=False)
GOALS = st.builds(
    Goal,
    latency_s=ABOVE_0,
    quantile=st.floats(0.0, 1.0, exclude_min=True, exclude_max=True),
    least_rate=st.just(0.0) | ABOVE_0,
    prefers=st.sampled_from(["", "rate", "cores"]),
    least_accuracy=st.floats(0.0, 1.0),
) | st.builds(Goal, least_rate=ABOVE_0)


@given(goal=GOALS)
@example(goal=Goal(0.1 + 0.2, 1.0 / 3.0, 5e-324, "rate", 1e-300))
@example(goal=Goal(5e-324, 5e-324, 1.7e308))
@example(goal=Goal(0.9999999999999999e-3, 0.9999999999999999))
def test_every_goal_is_what_its_text_says(goal: Goal) -> None:
    assert parse_goal(str(goal)) == goal


CLAUSES = st.lists(
    st.sampled_from(
        [*EXAMPLES, "p95", "rate", "max", "cores", ">=", "=", "%", " ", "1", "99", "0.5", ".", "ms", "us", "s", "/s"]
    ),
    max_size=6,
).map("".join)


@given(text=st.text() | st.lists(st.text(max_size=8) | CLAUSES, max_size=4).map(",".join))
@example(text="p=20ms")
@example(text="rate>=1e9")
@example(text="p99=1..2ms")
@example(text="accuracy>=\N{ARABIC-INDIC DIGIT ONE}%")
def test_what_is_no_goal_is_refused_with_one_that_is(text: str) -> None:
    refused: ConfigError | None = None
    try:
        parse_goal(text)
    except ConfigError as error:
        refused = error
    if refused is not None:
        message = str(refused)
        assert refused.knob == "slo"
        assert "\n" not in message
        _, asked, nearest = message.rpartition("did you mean '")
        if asked:
            assert parse_goal(nearest.removesuffix("'?")) != Goal()
        else:
            assert message.endswith(("write it like p99=20ms, rate>=500, max rate, min cores, accuracy>=0.97", "of them out"))


@pytest.mark.parametrize(
    ("text", "clause", "hint"),
    [
        ("20ms", "20ms", "did you mean 'p99=20ms'?"),
        ("latency=35ms", "latency=35ms", "did you mean 'p99=35ms'?"),
        ("p99<=20ms", "p99<=20ms", "did you mean 'p99=20ms'?"),
        ("p95=50", "p95=50", "did you mean 'p95=50ms'?"),
        ("P95=50ms", "P95=50ms", "did you mean 'p95=50ms'?"),
        ("p100=20ms", "p100=20ms", "did you mean 'p99=20ms'?"),
        ("p0=20ms", "p0=20ms", "did you mean 'p99=20ms'?"),
        ("p99=0ms", "p99=0ms", "did you mean 'p99=20ms'?"),
        ("p99=nans", "p99=nans", "did you mean 'p99=20ms'?"),
        ("p99=20ms, rate>600", "rate>600", "did you mean 'rate>=600'?"),
        ("rate=600/s", "rate=600/s", "did you mean 'rate>=600'?"),
        ("rate>=0", "rate>=0", "did you mean 'rate>=500'?"),
        ("max rat", "max rat", "did you mean 'max rate'?"),
        ("max cores", "max cores", "did you mean 'min cores'?"),
        ("acuracy>=0.9", "acuracy>=0.9", "did you mean 'accuracy>=0.9'?"),
        ("accuracy>=97", "accuracy>=97", "did you mean 'accuracy>=97%'?"),
        ("accuracy>=101%", "accuracy>=101%", "did you mean 'accuracy>=0.97'?"),
        ("fast", "fast", "write it like p99=20ms, rate>=500, max rate, min cores, accuracy>=0.97"),
        ("p99=20ms,", "", "write it like p99=20ms"),
    ],
)
def test_the_clause_that_is_not_understood_is_named(text: str, clause: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_goal(text)
    assert str(caught.value).startswith(f"slo {clause!r} is not understood; {hint}")


@pytest.mark.parametrize(
    ("text", "both"),
    [
        ("p99=20ms, p95=10ms", "both 'p99=20ms' and 'p95=10ms'"),
        ("rate>=5, max rate, rate>=6/s", "both 'rate>=5' and 'rate>=6/s'"),
        ("max rate,p99=20ms,min cores", "both 'max rate' and 'min cores'"),
        ("max rate, max rate", "both 'max rate' and 'max rate'"),
    ],
)
def test_what_is_said_twice_is_refused(text: str, both: str) -> None:
    with pytest.raises(ConfigError, match=f"says {both}; leave one of them out"):
        parse_goal(text)


# Objectives of priorities


def test_there_is_an_objective_for_every_level_of_priority() -> None:
    assert [int(level) for level in LEVELS] == list(range(1, LOWEST_LEVEL + 1))
    model = ModelConfig(path="a", slo_by_priority=dict.fromkeys(LEVELS, "p95=10ms"))
    assert check(model) == []
    assert model.slo_s_by_level == dict.fromkeys(range(1, 9), 0.01)
    assert str(DEFAULT_LEVEL) in LEVELS


@pytest.mark.parametrize("text", ["", "rate>=5", "p99=1ms, min cores"])
def test_an_objective_of_a_priority_is_a_latency_alone(text: str) -> None:
    with pytest.raises(ConfigError, match="is no latency alone; write it like p99=10ms"):
        parse_latency(text)


MISTAKES: list[tuple[str, int, list[str]]] = [
    ('slo = "p99=20ms, rate>600"', 3, ["slo 'rate>600' is not understood; did you mean 'rate>=600'?"]),
    ('\n[models.m.slo_by_priority]\n1 = "p99=10"', 4, ["slo_by_priority.1: slo 'p99=10'", "did you mean 'p99=10ms'?"]),
    ('slo_by_priority = {1 = "rate>=5"}', 3, ["slo_by_priority.1: slo 'rate>=5' is no latency alone"]),
    ('slo_by_priority = {9 = "p99=1ms"}', 3, ["slo_by_priority: '9' is no priority; there are 1, 2"]),
    ("slo_by_priority = {1 = 20}", 3, ["slo_by_priority", "str", "int"]),
    ("start = {max_bach = 1}", 3, ["start: 'max_bach' is no knob that the autopilot changes; did you mean 'max_batch'?"]),
    ("start = {slo = 'p99=1ms'}", 3, ["start: 'slo' is no knob that the autopilot changes"]),
    ("start = {max_batch = 0}", 3, ["start.max_batch: expected `int` >= 1"]),
    ("[models.m.start]\nbalancer = 'pack-ewma'", 3, ["start.balancer: 'pack-ewma'", "did you mean 'peak-ewma'?"]),
    ("max_batch = 8\nstart = {max_batch = 4}", 4, ["start has a first value of max_batch, which is set as well: leave one"]),
    ("run = 'thread'\nstart = {run = 'inline'}", 4, ["start has a first value of run, which is set as well"]),
    ("start = {max_batch = 512}", 3, ["start: max_batch = 512 is above max_batch = 256 itself"]),
    ("start = {run = 'inlin'}", 3, ["start: run = 'inlin' is not understood; did you mean 'inline'?"]),
    ("autoscale = 'in-flight'\nstart = {run = 'inline'}", 4, ["start: autoscale = 'in-flight' has no effect"]),
    ("pinned = ['max_bach']", 3, ["pinned: 'max_bach' is no knob that the autopilot changes; did you mean 'max_batch'?"]),
    ("autopilot = 'onn'", 3, ["models.m.autopilot: 'onn' is not one of its values; did you mean 'on'?"]),
]


@pytest.mark.parametrize(("text", "line", "clues"), MISTAKES)
def test_a_mistake_in_a_file_is_named_with_its_line(tmp_path: Path, text: str, line: int, clues: list[str]) -> None:
    (tmp_path / "dlproxy.toml").write_text(f"{MODEL}{text}\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "dlproxy.toml")
    assert f"dlproxy.toml:{line}: " in str(caught.value)
    assert not [clue for clue in clues if clue not in str(caught.value)], str(caught.value)


# What is pinned


@pytest.mark.parametrize(
    ("text", "pinned"),
    [
        ("", []),
        ("slo = 'p99=1s'\nbatching = 'off'", []),
        ("max_batch = 256", ["max_batch"]),
        ("threads = 0\nrun = 'thread'\ninstances = 2", ["instances", "threads", "run"]),
        ("pinned = ['max_wait_s']\nbalancer = 'round-robin'", ["max_wait_s", "balancer"]),
        ("start = {max_batch = 1}", []),
    ],
)
def test_what_a_file_sets_is_pinned(tmp_path: Path, text: str, pinned: list[str]) -> None:
    (tmp_path / "dlproxy.toml").write_text(f"{MODEL}{text}\n[models.m.versions.2]\ndiscipline = 'sjf'\n")
    first, second = load(tmp_path / "dlproxy.toml").models["m"]
    assert set(first.pinned) == set(pinned)
    assert set(second.pinned) == {*pinned, "discipline"}


def test_first_values_are_no_promise() -> None:
    settings: dict[str, Any] = {"max_batch": 4, "hedge": True, "instances": 2}
    config = ModelConfig(path="a", start=settings)
    begun = config.begun(("max_batch", "instances"))
    assert (config.max_batch, config.instances) == (256, 0)
    assert (begun.max_batch, begun.instances, begun.hedge) == (4, 2, False)
