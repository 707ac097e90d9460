"""Who answers which class of priority: as little is degraded as load allows, rarely, and only for a reason."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dlproxy.policy.tuning.pilot import Decision
from dlproxy.policy.variants import (
    CALM_S,
    DWELL_S,
    LEVELS,
    MOST_CALM_S,
    TICK_S,
    Aim,
    Candidate,
    Governor,
    Window,
    changes_between,
    order_of,
)

M = Candidate("m", 0.99, 100.0)
Q = Candidate("q", 0.97, 200.0)
P = Candidate("p", 0.90, 400.0)
ALL = (M, Q, P)
BEST = {1: "m", 4: "m", 8: "m"}


class Scene:
    """A governor that is told of one tick after the other."""

    def __init__(self, candidates: Sequence[Candidate] = ALL, aim: Aim = Aim(), *, shared: bool = True) -> None:  # noqa: B008 - it is frozen
        self.candidates = candidates
        self.governor = Governor("m", aim)
        self.shared = shared
        self.now = 0.0
        self.said: list[Decision] = []

    def run(
        self, seconds: float, rates: Mapping[int, float], *, missed: float = 0.0, held: bool = False, crowded: bool = False
    ) -> "Scene":
        """Rows per second by level, each a request; of which so many miss the objective."""
        for _ in range(round(seconds / TICK_S)):
            self.now += TICK_S
            rows = [rates.get(level, 0.0) * TICK_S for level in range(9)]
            window = Window(TICK_S, rows, round(sum(rows)), round(missed * sum(rows)), 0, self.candidates, crowded, self.shared)
            decision = self.governor.look(window, self.now, held=held)
            if decision is not None:
                self.said.append(decision)
        return self

    @property
    def kinds(self) -> list[str]:
        return [decision.kind for decision in self.said]

    def who(self, *levels: int) -> str:
        return "".join(self.governor.assignment[level] for level in levels)


@pytest.mark.parametrize(
    ("rates", "candidates", "aim", "by_level"),
    [
        ({4: 60.0}, ALL, Aim(), "mmmm"),
        ({4: 150.0}, ALL, Aim(), "mqqq"),  # the most accurate that can; classes nobody asks in go along
        ({4: 300.0}, ALL, Aim(), "mppp"),
        ({4: 300.0}, ALL, Aim(0.97), "mqqq"),  # as much as is allowed, though it does not suffice
        ({4: 300.0}, ALL, Aim(0.98), "mmmm"),
        ({4: 300.0}, (M, Candidate("q", 0.0, 200.0)), Aim(0.5), "mmmm"),  # its accuracy is not known
        ({4: 300.0}, (M, Candidate("q", 0.0, 200.0)), Aim(), "mqqq"),
        ({4: 300.0}, (M, Candidate("q", 0.97, 90.0)), Aim(), "mmmm"),  # slower, however it was made
        ({4: 300.0}, (M, Candidate("q", 0.97, 200.0, up=False), P), Aim(), "mppp"),
        ({4: 150.0}, (Candidate("m", 0.99, 0.0), Q), Aim(), "mqqq"),  # which is never in time itself
        ({1: 40.0, 4: 40.0, 8: 40.0}, ALL, Aim(), "mmqq"),  # 4 and 8 would be 0.9 of what can be done even with 8 at p
        ({1: 40.0, 4: 100.0, 8: 40.0}, ALL, Aim(), "mmpp"),
        ({1: 500.0, 4: 40.0, 8: 40.0}, ALL, Aim(), "pppp"),
        ({1: 18.0, 4: 70.0}, (M, Candidate("q", 0.97, 200.0, others=60.0)), Aim(), "mmqq"),  # it has work of its own
    ],
)
def test_who_answers_under_load(rates: dict[int, float], candidates: Sequence[Candidate], aim: Aim, by_level: str) -> None:
    scene = Scene(candidates, aim).run(2.0, rates)
    if rates.get(1):
        assert scene.who(1, 3, 4, 8) == by_level
    else:
        assert scene.who(3, 4, 5, 8) == by_level


def test_the_first_tick_that_shows_the_whole_height_of_a_load_is_enough() -> None:
    scene = Scene().run(5.0, {4: 50.0}).run(2 * TICK_S, {4: 300.0})
    assert scene.kinds == ["degrades"]
    (decision,) = scene.said
    assert decision.changes == {"priority 4 to 8": ("m", "p")}
    assert "3.00 times what can be answered in time" in decision.reason
    assert decision.expected == "a load of 0.75"


def test_it_goes_back_soon_after_an_overload_and_says_what_it_did() -> None:
    scene = Scene().run(5.0, {4: 50.0}).run(3.0, {4: 300.0}, missed=0.5)
    assert scene.governor.measured(scene.now) is None, "too early"
    scene.run(2.0, {4: 300.0})
    measured = scene.governor.measured(scene.now)
    assert measured is not None
    assert measured[0] is scene.said[0]
    assert measured[1].measured == "21.7% of the requests miss the objective, 50.7% before"
    scene.run(7.0, {4: 300.0})
    ended_at = scene.now
    scene.run(10.0, {4: 50.0})
    assert scene.kinds == ["degrades", "restores"]
    assert CALM_S <= scene.said[1].at - ended_at < 5.0
    assert scene.who(1, 4, 8) == "mmm"


def test_what_is_barely_too_much_is_seen_in_time_and_chance_is_not() -> None:
    assert Scene((Candidate("m", 1.0, 4000.0), Candidate("q", 1.0, 9000.0))).run(4.0, {4: 3900.0}).who(4) == "q"
    few = Scene((Candidate("m", 1.0, 4.0), Candidate("q", 1.0, 9.0))).run(5.0, {4: 4.0})
    assert few.kinds == [], "one a tick is as much as it can do, but so few may be many by chance"


@pytest.mark.parametrize(("rate", "who"), [(60.0, "q"), (300.0, "p")])
def test_without_an_objective_a_full_queue_alone_is_overload(rate: float, who: str) -> None:
    scene = Scene(aim=Aim(in_time=False)).run(5.0, {4: rate})
    assert scene.kinds == []
    assert scene.run(3.0, {4: rate}, missed=0.3, crowded=True).who(4) == who
    assert scene.kinds == ["degrades"]


def test_evidence_beats_the_model_but_no_stall_and_no_hopeless_deadline() -> None:
    assert Scene().run(4.0, {4: 80.0}, missed=0.2).kinds == ["degrades"]
    assert Scene().run(4.0, {4: 70.0}).run(0.5, {4: 70.0}, missed=1.0).run(4.0, {4: 70.0}).kinds == [], (
        "the machine stood still"
    )
    assert Scene().run(8.0, {4: 30.0}, missed=0.3).kinds == [], "clients that want it at once"
    scene = Scene().run(20.0, {4: 80.0}, missed=0.2)
    assert scene.who(4) == "p", "neither is what it was said to be"


def test_candidates_beside_each_other_need_no_switch_as_requests_spill() -> None:
    scene = Scene(shared=False).run(10.0, {4: 600.0}, missed=0.1)
    assert scene.kinds == []
    assert scene.governor.cheaper("m") == "q"
    scene = Scene((Candidate("m", 0.99, 0.0), Q), shared=False).run(2.0, {4: 50.0})
    assert scene.who(4) == "q", "m can answer nothing in time"


def test_whom_a_request_spills_to() -> None:
    scene = Scene().run(1.0, {4: 50.0})
    assert [scene.governor.cheaper(name) for name in ("m", "q", "p")] == ["q", "p", ""]
    scene = Scene((M, Candidate("q", 0.97, 200.0, up=False), P), Aim(0.95)).run(1.0, {4: 50.0})
    assert scene.governor.cheaper("m") == "", "one is not up, the other not accurate enough"


def test_a_pin_holds_at_once_and_until_it_goes() -> None:
    scene = Scene().run(1.0, {4: 50.0})
    scene.governor.aim = Aim(pin="p")
    scene.run(TICK_S, {4: 50.0})
    assert set(scene.governor.assignment) == {"p"}
    assert scene.governor.cheaper("p") == scene.governor.cheaper("m") == ""
    scene.run(30.0, {4: 500.0}, missed=0.5)
    scene.governor.aim = Aim(pin="m")
    scene.run(30.0, {4: 500.0}, missed=0.5)
    assert set(scene.governor.assignment) == {"m"}
    scene.governor.aim = Aim(0.95, pin="p")  # less accurate than what is wanted of all
    scene.run(TICK_S, {4: 50.0})
    assert set(scene.governor.assignment) == {"m"}
    assert scene.kinds == ["assigns", "assigns"]


def test_while_it_is_held_nothing_is_decided() -> None:
    scene = Scene().run(30.0, {4: 500.0}, missed=0.5, held=True)
    assert scene.kinds == []
    scene.run(1.0, {4: 500.0})
    scene.run(60.0, {4: 10.0}, held=True)
    assert scene.who(4) == "p"


def test_who_has_gone_answers_nobody() -> None:
    scene = Scene().run(5.0, {4: 150.0})
    assert scene.who(4) == "q"
    scene.candidates = (M, P)
    scene.run(TICK_S, {4: 150.0})
    assert scene.who(4) == "m"
    assert scene.run(DWELL_S, {4: 150.0}).who(4) == "p"
    assert scene.kinds == ["degrades", "assigns", "degrades"]


def test_one_that_restarts_keeps_its_place() -> None:
    scene = Scene((M, Q)).run(5.0, {4: 150.0})
    scene.candidates = (M, Candidate("q", 0.97, 200.0, up=False))
    scene.run(2.0, {4: 150.0})
    scene.candidates = (M, Q)
    scene.run(2.0, {4: 150.0})
    assert scene.kinds == ["degrades"]
    assert scene.who(4) == "q"


@pytest.mark.parametrize("shared", [False, True])
def test_while_nobody_is_up_nothing_is_decided_and_then_it_goes_on(shared: bool) -> None:
    scene = Scene((Candidate("m", 0.99, 0.0), Candidate("q", 0.97, 0.0, up=False)), shared=shared)
    assert scene.run(2.0, {}).run(2.0, {4: 50.0}, missed=1.0).kinds == []
    scene.candidates = (Candidate("m", 0.99, 0.0), Q)
    assert scene.run(2.0, {4: 50.0}, missed=1.0).who(4) == "q", "the model itself is still down"
    scene.candidates = ALL
    assert scene.run(DWELL_S + CALM_S, {4: 50.0}).who(4) == "m"


def test_a_load_that_flaps_waits_longer_each_time() -> None:
    scene = Scene()
    for _ in range(30):
        scene.run(12.0, {4: 180.0}).run(8.0, {4: 20.0})
    switches = [decision.at for decision in scene.said]
    first, last = [at for at in switches if at < 100.0], [at for at in switches if at >= 500.0]
    assert len(first) > len(last) == 0
    assert scene.run(MOST_CALM_S + DWELL_S, {4: 20.0}).who(4) == "m"


def test_changes_are_told_by_ranges_of_priority() -> None:
    before, after = ["m"] * 9, ["m", "m", "q", "q", "m", "p", "p", "p", "p"]
    assert changes_between(before, after) == {"priority 2 to 3": ("m", "q"), "priority 5 to 8": ("m", "p")}
    assert changes_between(before, ["m"] * 8 + ["q"]) == {"priority 8": ("m", "q")}
    assert changes_between(before, before) == {}


candidate = st.builds(
    Candidate,
    st.just(""),
    accuracy=st.sampled_from([0.0, 0.8, 0.9, 0.95, 0.99]),
    capacity=st.sampled_from([0.0, 50.0, 100.0, 150.0, 300.0, 1000.0]),
    others=st.sampled_from([0.0, 0.0, 30.0]),
    up=st.sampled_from([True, True, True, False]),
)
candidates = st.lists(candidate, min_size=0, max_size=4).map(
    lambda found: [M, *(Candidate(f"v{n}", one.accuracy, one.capacity, one.others, one.up) for n, one in enumerate(found))]
)
phases = st.lists(
    st.tuples(
        st.sampled_from([0.5, 1.0, 4.0, 13.0]),
        st.dictionaries(st.sampled_from([1, 2, 4, 5, 8]), st.sampled_from([1.0, 20.0, 90.0, 200.0, 900.0]), max_size=3),
        st.sampled_from([0.0, 0.0, 0.02, 0.2, 1.0]),
    ),
    max_size=8,
)


@settings(max_examples=20)
@given(candidates, phases, st.sampled_from([0.0, 0.85, 0.95]), st.booleans(), st.booleans())
def test_whatever_happens(
    found: list[Candidate],
    history: list[tuple[float, dict[int, float], float]],
    least: float,
    shared: bool,
    in_time: bool,
) -> None:
    scene = Scene(found, Aim(least, in_time), shared=shared)
    order = [one.name for one in order_of(found, least)]
    accuracy = {one.name: one.accuracy for one in found}
    for seconds, rates, missed in history:
        for _ in range(round(seconds / TICK_S)):
            scene.run(TICK_S, rates, missed=missed)
            ranks = [order.index(scene.governor.assignment[level]) for level in LEVELS]
            assert ranks == sorted(ranks), "a less urgent class has a better one than a more urgent"
            assert all(name == "m" or accuracy[name] >= least for name in scene.governor.assignment)
    at = [decision.at for decision in scene.said]
    assert all(later - before >= DWELL_S for before, later in pairwise(at))
    scene.candidates = [replace(one, others=0.0) for one in found]
    scene.run(2 * MOST_CALM_S + DWELL_S, {4: 20.0})
    assert scene.who(1, 4, 8) == "mmm", "the load is gone, of others, too"


@given(
    candidates,
    st.lists(st.dictionaries(st.sampled_from([1, 4, 8]), st.floats(0.0, 30.0), max_size=3), max_size=60),
    st.booleans(),
)
def test_nothing_is_degraded_without_overload(found: list[Candidate], ticks: list[dict[int, float]], shared: bool) -> None:
    found = [Candidate(one.name, one.accuracy, one.capacity, 0.0, one.up) for one in found]
    scene = Scene(found, shared=shared)
    for rates in ticks:
        scene.run(TICK_S, rates)
    assert scene.kinds == []
