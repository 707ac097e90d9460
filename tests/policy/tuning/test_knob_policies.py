"""Policies of knobs by name: what all promise, what the bandit learns, and how the climb goes up."""

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dlproxy.policy.tuning import KNOB_POLICIES, make_knob_policy
from dlproxy.policy.tuning.bandit import ASIDE_S, MOST_ARMS, Bandit, arms, reward
from dlproxy.policy.tuning.climb import REST_S, STEPS, Climb, stepped
from dlproxy.policy.tuning.protocol import Knobs, Space, cores_of
from dlproxy.policy.tuning.window import Window
from tests.policy.tuning.lanes import KNOBS, SPACE, window

by_name = pytest.mark.parametrize("name", KNOB_POLICIES)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    cores = draw(st.integers(1, 64))
    sizes = [size for size in range(1, cores + 1) if size in (1, 2, 3, 4, 6, 8, 16, 32, 64)]
    ways = tuple((instances, threads) for threads in sizes for instances in sizes if instances * threads <= cores)
    names = ["instances", "threads", "max_batch", "max_wait_s"]
    return Space(
        cores=cores,
        max_batch=draw(st.integers(1, 1024)),
        ways=ways,
        objective_s=draw(st.sampled_from([0.01, 0.1, 5.0, inf])),
        prefers=draw(st.sampled_from(["", "cores", "rate"])),
        pinned=draw(st.frozensets(st.sampled_from(names))),
    )


def begun(space: Space, data: st.DataObject) -> Knobs:
    instances, threads = data.draw(st.sampled_from(space.ways))
    wait_s, max_batch = data.draw(st.sampled_from([0.0, 0.05])), data.draw(st.integers(1, space.max_batch))
    return {"max_batch": max_batch, "max_wait_s": wait_s, "instances": instances, "threads": threads}


@by_name
@settings(max_examples=30, deadline=None)
@given(spaces(), st.data())
def test_whatever_comes_every_proposal_is_one_that_may_hold(name: str, space: Space, data: st.DataObject) -> None:
    policy, knobs, now = make_knob_policy(name), begun(space, data), 0.0
    turns = st.tuples(st.integers(0, 100), st.integers(0, 100), st.sampled_from(["kept", "undone", "refused"]))
    for arrived, missed, outcome in data.draw(st.lists(turns, max_size=20)):
        now += 5.0
        seen = window(now, arrived=arrived, missed=min(missed, arrived), seconds=5.0)
        proposal = policy.act(seen, knobs, space, now)
        if proposal is None:
            continue
        assert space.allows(proposal.knobs, knobs)
        assert proposal.knobs != knobs
        assert proposal.reason
        if outcome != "refused":
            policy.learn(proposal.knobs, seen, kept=outcome == "kept")
        if outcome == "kept":
            knobs = proposal.knobs


@by_name
def test_they_decide_the_same_from_the_same_windows(name: str) -> None:
    def decided() -> list[object]:
        policy = make_knob_policy(name)
        return [policy.act(window(5.0 * number, missed=40), KNOBS, SPACE, 5.0 * number) for number in range(40)]

    assert decided() == decided()


@by_name
def test_what_is_good_is_left_alone(name: str) -> None:
    knobs = {**KNOBS, "max_batch": 64, "instances": 4}
    policy = make_knob_policy(name)
    assert {policy.act(window(5.0 * number), knobs, SPACE, 5.0 * number) for number in range(20)} == {None}


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(ValueError, match="there are rules, bandit, climb"):
        make_knob_policy("oracle")


class Best:
    """Tries what a policy wants under a load that misses a share that depends on the knobs, and keeps what is better."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.now = 0.0
        self.knobs: Knobs = KNOBS
        self.tried: list[Knobs] = []

    def missed(self, knobs: Knobs) -> int:
        """Of a thousand: none with four instances and batches of sixteen, more the further away."""
        far = abs(4 - int(str(knobs["instances"]))) * 80 + (int(str(knobs["threads"])) - 1) * 60
        return min(far + abs(16 - int(str(knobs["max_batch"]))) * 4 + int(1000 * float(str(knobs["max_wait_s"]))), 900)

    def seen(self, knobs: Knobs) -> Window:
        return window(self.now, arrived=1000, missed=self.missed(knobs), seconds=5.0)

    def search(self, policy: Bandit | Climb, rounds: int) -> None:
        for _ in range(rounds):
            self.now += 5.0
            proposal = policy.act(self.seen(self.knobs), self.knobs, self.space, self.now)
            if proposal is None:
                continue
            self.tried.append(proposal.knobs)
            better = self.missed(proposal.knobs) < self.missed(self.knobs)
            policy.learn(proposal.knobs, self.seen(proposal.knobs), kept=better)
            if better:
                self.knobs = proposal.knobs


def test_the_climb_reaches_the_top_of_a_smooth_hill() -> None:
    best = Best(SPACE)
    best.search(Climb(), 30)
    assert best.missed(best.knobs) == 0
    assert (best.knobs["instances"], best.knobs["threads"], best.knobs["max_batch"]) == (4, 1, 16)


def test_the_bandit_comes_near_the_best_of_its_arms() -> None:
    best = Best(SPACE)
    possible = min([best.missed(arm) for arm in arms(KNOBS, SPACE)])
    best.search(Bandit(), 60)
    assert best.missed(best.knobs) <= possible + 10


def test_the_bandit_needs_no_search_when_it_knows_the_load() -> None:
    """Two loads that want different arms take turns: in the end, each switch needs a proposal or two."""
    bandit, best = Bandit(), Best(SPACE)
    quiet, loud = Best(SPACE), Best(SPACE)
    quiet.missed = lambda knobs: 300 if knobs["max_batch"] != 1 else 0
    quiet.seen = lambda knobs: window(best.now, arrived=20, missed=quiet.missed(knobs) * 20 // 1000, seconds=5.0)
    loud.missed = lambda knobs: 300 if knobs["max_batch"] == 1 else 0
    loud.seen = lambda knobs: window(best.now, arrived=20_000, missed=loud.missed(knobs) * 20, seconds=5.0)
    tries = []
    for turn in range(10):
        one, other = (quiet, loud) if turn % 2 else (loud, quiet)
        one.now, one.knobs, one.tried = best.now, other.knobs, []
        one.search(bandit, 20)
        best.now = one.now
        assert one.missed(one.knobs) == 0
        tries.append(len(one.tried))
    assert max(tries[4:]) <= 2


@given(spaces(), st.data())
def test_arms_are_few_and_all_may_hold(space: Space, data: st.DataObject) -> None:
    knobs = begun(space, data)
    found = list(arms(knobs, space))
    assert 1 <= len(found) <= MOST_ARMS
    assert all(space.allows(arm, knobs) for arm in found)


def test_arms_go_from_the_largest_batches_to_none_and_over_all_ways() -> None:
    found = list(arms({**KNOBS, "max_wait_s": 0.05}, SPACE))
    assert {(arm["instances"], arm["threads"]) for arm in found} == set(SPACE.ways)
    assert {1, 64} < {arm["max_batch"] for arm in found}
    assert {arm["max_wait_s"] for arm in found} == {0.0}


@pytest.mark.parametrize(
    ("prefers", "better", "worse"),
    [
        ("", window(1.0), window(1.0, missed=10)),
        ("", window(1.0), replace(window(1.0), p99_s=0.09)),
        ("", window(1.0), window(1.0, failed=10)),
        ("rate", window(1.0, arrived=200), window(1.0)),
    ],
    ids=["misses", "latency", "failures", "rate"],
)
def test_the_reward_prefers(prefers: str, better: Window, worse: Window) -> None:
    space = replace(SPACE, prefers=prefers)
    assert reward(KNOBS, better, space, 100.0) > reward(KNOBS, worse, space, 100.0)


def test_where_cores_count_both_free_some_while_the_objective_is_met() -> None:
    space, knobs = replace(SPACE, prefers="cores"), {**KNOBS, "instances": 4}
    assert reward(KNOBS, window(1.0), space) > reward(knobs, window(1.0), space)
    for policy in (Bandit(), Climb()):
        proposals = [policy.act(window(5.0 * number), knobs, space, 5.0 * number) for number in range(10)]
        found = [proposal for proposal in proposals if proposal is not None]
        assert found
        for proposal in found:
            assert proposal.harmless
            assert cores_of(proposal.knobs) < 4


def test_the_bandit_sets_aside_what_it_proposed_in_vain() -> None:
    bandit = Bandit()
    proposals = [bandit.act(window(5.0 * number, missed=50), KNOBS, SPACE, 5.0 * number) for number in range(12)]
    knobs = [proposal.knobs for proposal in proposals if proposal is not None]
    again = [
        later - number for number, one in enumerate(knobs) for later in range(number + 1, len(knobs)) if one == knobs[later]
    ]
    assert len(knobs) == 12
    assert all(5.0 * distance >= ASIDE_S for distance in again)


def test_the_climb_rests_after_a_round_in_vain() -> None:
    climb = Climb()
    proposals = [climb.act(window(0.5 * number, missed=50), KNOBS, SPACE, 0.5 * number) for number in range(100)]
    tried = [number for number, proposal in enumerate(proposals) if proposal is not None]
    rounds = len([step for step in STEPS if stepped(KNOBS, SPACE, step) is not None])
    assert tried[:rounds] == list(range(rounds))
    assert all(0.5 * number < 0.5 * rounds or 0.5 * number >= REST_S for number in tried)


@pytest.mark.parametrize(
    ("step", "knobs", "after"),
    [
        pytest.param("more instances", {}, {"instances": 2}, id="the next number"),
        pytest.param("more instances", {"threads": 4}, {"instances": 2, "threads": 2}, id="in exchange for threads"),
        pytest.param("more instances", {"instances": 4}, None, id="no more"),
        pytest.param("more threads", {"instances": 2}, {"threads": 2}, id="as many instances"),
        pytest.param("more threads", {"instances": 4}, {"instances": 2, "threads": 2}, id="in exchange for instances"),
        pytest.param("fewer instances", {"instances": 4}, {"instances": 2}, id="fewer"),
        pytest.param("fewer threads", {}, None, id="no fewer"),
        pytest.param("larger batches", {"max_batch": 48}, {"max_batch": 64}, id="as far as the space goes"),
        pytest.param("larger batches", {"max_batch": 64}, None, id="no further"),
        pytest.param("smaller batches", {"max_batch": 1}, None, id="no smaller batch"),
        pytest.param("less waiting", {"max_wait_s": 0.004}, {"max_wait_s": 0.002}, id="half the wait"),
        pytest.param("less waiting", {"max_wait_s": 0.0015}, {"max_wait_s": 0.0}, id="then none"),
        pytest.param("more waiting", {}, {"max_wait_s": 0.001}, id="a wait at all"),
        pytest.param("more waiting", {"max_wait_s": 0.04}, None, id="never more than half the objective"),
    ],
)
def test_steps(step: str, knobs: Knobs, after: Knobs | None) -> None:
    before = {**KNOBS, **knobs}
    assert stepped(before, SPACE, step) == (None if after is None else {**before, **after})
