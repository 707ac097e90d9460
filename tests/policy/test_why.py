"""What explains a request's time: each cause in a case of its own, and what holds of any case."""

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.why import (
    LEAST_SHARE,
    PHASES,
    Case,
    Comparison,
    Happening,
    Neighbour,
    Phase,
    Run,
    StepTook,
    causes,
    covered,
    in_words,
)

USUAL: dict[Phase, float] = {"queue": 0.001, "batch": 0.0001, "compute": 0.010, "split": 0.0001}


def run(number: int = 9, rows: int = 1, begins: float = 0.2, ends: float = 0.21, **more: Any) -> Run:
    return Run(number, more.pop("instance", "m-0"), rows, more.pop("reason", "idle"), begins, ends, ends - begins, **more)


def case(phases: dict[Phase, float], **more: Any) -> Case:
    settings: dict[str, Any] = {"run": run(), "comparison": Comparison(before=50, batch_rows=1.0)}
    return Case("m", {"batch": 0.0001, "compute": 0.010, "split": 0.0001, **phases}, USUAL, **{**settings, **more})


QUEUED: dict[Phase, float] = {"queue": 0.2}
COMPUTED: dict[Phase, float] = {"compute": 0.2}
gc = Happening("gc", "a collection", 0.01, 0.19)
load = Happening("load", "version 2 of model 'm' was being loaded", -1.0, inf, "m", "2")
up = Happening("instance", "m-0 came up", 0.19, 0.19, "m", "m-0")
neighbour = Neighbour("big", 1, 0.19, 0.19, run(3, 64, 0.0, 0.19, model="big"))
quick = tuple(run(number, 1, 0.02 * number, 0.02 * number + 0.02) for number in range(9))


@pytest.mark.parametrize(
    ("kind", "seconds", "told"),
    [
        pytest.param("gc", 0.18, case(QUEUED, happenings=(gc,), ahead=quick, ahead_s=0.18, ahead_batches=9), id="gc, queued"),
        pytest.param("gc", 0.18, case(COMPUTED, happenings=(gc, load), run=run(begins=0.0, ends=0.2)), id="gc while it runs"),
        pytest.param("cold_start", 2.0, case({"load": 2.0}, happenings=(load,)), id="it had the model loaded"),
        pytest.param("cold_start", 0.19, case(QUEUED, happenings=(up,)), id="no instance was up"),
        pytest.param("cold_start", 0.19, case(COMPUTED, comparison=Comparison()), id="the first batch of an instance"),
        pytest.param("version_swap", 0.19, case(COMPUTED, happenings=(load,)), id="a load while it ran"),
        pytest.param(
            "version_swap", 0.199, case(QUEUED, happenings=(load,), ahead=quick, ahead_s=0.2), id="and while it waited"
        ),
        pytest.param("retry", 0.3, case({"earlier_run": 0.3}, earlier=(run(1, error="broken"),)), id="it ran again"),
        pytest.param("hedge", 0.1, case({"earlier_run": 0.1}, earlier=(run(1, ends=inf),)), id="its first run was late"),
        pytest.param(
            *("heavy_neighbour", 0.19, case(QUEUED, run=run(reason="turn"), neighbours=(neighbour,), ahead=quick, ahead_s=0.2)),
            id="another model's turn",
        ),
        pytest.param("heavy_neighbour", 0.19, case(COMPUTED, neighbours=(neighbour,)), id="beside another model"),
        pytest.param(
            *("large_batch_ahead", 0.19, case(QUEUED, ahead=(run(8, 40, 0.0, 0.19),), ahead_s=0.19, ahead_batches=1)),
            id="behind a large batch",
        ),
        pytest.param(
            *("slow_batch_ahead", 0.19, case(QUEUED, ahead=(run(8, 1, 0.0, 0.19),), ahead_s=0.19, ahead_batches=1)),
            id="behind a slow one of usual size",
        ),
        pytest.param("queue", 0.199, case(QUEUED, ahead=quick, ahead_s=0.18, ahead_batches=9), id="behind many"),
        pytest.param("fill", 0.199, case(QUEUED, max_wait_s=0.25), id="for a fuller batch"),
        pytest.param("unusual_input", 0.19, case(COMPUTED, rows=8), id="more rows than others"),
        pytest.param("unusual_input", 0.19, case(COMPUTED, length=512), id="longer than others"),
        pytest.param("large_batch", 0.19, case(COMPUTED, run=run(rows=16)), id="in a large batch"),
        pytest.param(
            *("slow_instance", 0.19, case(COMPUTED, comparison=Comparison(here_s=0.2, others_s=0.01, before=9))),
            id="on a slow instance",
        ),
        pytest.param("upstream_stall", 0.19, case(COMPUTED, upstream=True), id="another server took long"),
        pytest.param("stage", 0.18, case(COMPUTED, steps=(StepTook("ocr", 0.1, 0.1, 0.01, 0.01),)), id="a step of it"),
        pytest.param("sequence", 0.3, case({"check": 0.3}, in_sequence=True), id="the request before it"),
        pytest.param("check", 0.3, case({"check": 0.3}), id="before its model's queue"),
        pytest.param("shared_run", 0.3, Case("m", {"cache": 0.3}, USUAL, joined=7), id="another's run"),
        pytest.param("cache", 0.3, Case("m", {"cache": 0.3}, USUAL), id="other nodes' answers"),
        pytest.param("slow_client", 0.3, case({"receive": 0.3}), id="a slow body"),
        pytest.param("slow_client", 0.3, case({"send": 0.3}), id="a slow reader"),
        pytest.param("busy_loop", 0.2999, case({"batch": 0.3}), id="handed over late"),
        pytest.param("answer", 0.2999, case({"split": 0.3}), id="a large answer"),
        pytest.param("compute", 0.19, case(COMPUTED), id="nobody knows"),
    ],
)
def test_each_cause_comes_first_where_it_is_planted(kind: str, seconds: float, told: Case) -> None:
    first, *_ = causes(told)
    assert first.kind == kind, first.words
    assert first.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("kind", "failure", "reason"),
    [
        ("quota", "quota", "quota"),
        ("cancelled", "cancelled", "cancelled"),
        ("queue", "queue_full", "queue_full"),
        ("queue", "deadline", "predicted_late"),
        ("queue", "overloaded", "codel"),
        ("no_instance", "unavailable", "instance_lost"),
        ("failed", "model_failed", "failed"),
        ("bad_request", "invalid_argument", "bad_request"),
    ],
)
def test_a_failure_says_its_own_reason_first(kind: str, failure: str, reason: str) -> None:
    first, *_ = causes(Case("m", {"queue": 0.0}, USUAL, failure=failure, reason=reason, message="why"))
    assert (first.kind, first.words) == (kind, "why")


def test_what_ran_out_of_time_says_first_what_took_it() -> None:
    late = Case("m", {"queue": 0.2}, USUAL, happenings=(gc,), failure="deadline", reason="expired", message="expired")
    assert causes(late)[0].kind == "gc"


def test_what_is_as_usual_has_no_cause() -> None:
    assert causes(Case("m", dict(USUAL), USUAL, run=run())) == []


seconds = st.one_of(st.just(0.0), st.floats(0.0, 2.0))
instants = st.floats(-1.0, 3.0)
endless = st.one_of(seconds, st.just(inf))
runs = st.builds(
    lambda number, rows, begins, took, reason, error: Run(number, "m-0", rows, reason, begins, begins + took, 0.0, error),
    *(st.integers(1, 9), st.integers(1, 64), instants, endless, st.sampled_from(("idle", "turn", "hedge"))),
    st.sampled_from(("", "broken")),
)
happenings = st.builds(
    lambda kind, begins, took: Happening(kind, "m-0 came up", begins, begins + took, "m", "m-0"),
    *(st.sampled_from(("gc", "load", "instance", "start", "knobs")), instants, endless),
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    phases = draw(st.dictionaries(st.sampled_from(PHASES), seconds))
    usual = draw(st.dictionaries(st.sampled_from(PHASES), seconds))
    ahead = tuple(draw(st.lists(runs, max_size=3)))
    near = tuple(Neighbour("n", 1, draw(seconds), draw(seconds), one) for one in draw(st.lists(runs, max_size=2)))
    found = Case("m", phases, usual, draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.none() | runs))
    found.earlier, found.ahead, found.ahead_batches = tuple(draw(st.lists(runs, max_size=2))), ahead, len(ahead)
    found.ahead_s, found.neighbours = draw(seconds), near
    found.happenings = tuple(draw(st.lists(happenings, max_size=3)))
    found.comparison = Comparison(draw(seconds), draw(seconds), draw(st.integers(0, 2)))
    found.upstream, found.max_wait_s, found.in_sequence = draw(st.booleans()), draw(seconds), draw(st.booleans())
    return found


@given(told=cases())
def test_causes_explain_no_more_than_what_is_beyond_the_usual(told: Case) -> None:
    """The largest first, none twice as long as it was, and each of some weight."""
    found = causes(told)
    others_s = told.comparison.others_s
    usual = dict(told.usual)
    if others_s:
        usual["compute"] = min(usual.get("compute", 0.0), others_s)
    beyond_s = sum(max(took_s - usual.get(phase, 0.0), 0.0) for phase, took_s in told.phases.items())
    assert sum(cause.seconds for cause in found) <= beyond_s + 1e-9
    assert [cause.seconds for cause in found] == sorted([cause.seconds for cause in found], reverse=True)
    assert all(cause.seconds >= LEAST_SHARE * sum(told.phases.values()) for cause in found)
    assert all(cause.words and "inf" not in cause.words and "nan" not in cause.words for cause in found)


@given(told=cases(), longer_s=st.floats(0.5, 5.0))
def test_what_is_not_known_never_hides_a_collection(told: Case, longer_s: float) -> None:
    """As long as all else together, and while nothing else could have gone on, it comes first."""
    told.phases = {"queue": longer_s}
    told.usual = {}
    told.happenings = (Happening("gc", "a collection", 0.0, longer_s),)
    first, *others = causes(told)
    assert (first.kind, others) == ("gc", [])


@given(found=st.lists(runs, max_size=6), begins=instants, took=seconds)
def test_what_runs_cover_is_no_more_than_the_span_nor_their_sum(found: list[Run], begins: float, took: float) -> None:
    inside = covered(found, begins, begins + took)
    assert 0.0 <= inside <= took + 1e-9
    assert inside <= sum(one.ended_at - one.began_at for one in found) + 1e-9
    longest_s = max([min(one.ended_at, 6.0) - one.began_at for one in found], default=0.0)
    assert covered(found, -1.0, 6.0) >= longest_s - 1e-9


@pytest.mark.parametrize(
    ("took_s", "words"), [(0.0, "0 µs"), (0.00025, "250 µs"), (0.0123, "12.3 ms"), (1.5, "1.5 s"), (75.0, "75 s")]
)
def test_durations_have_three_digits(took_s: float, words: str) -> None:
    assert in_words(took_s) == words
