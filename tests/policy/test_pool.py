"""The instance pool: who is ready, whatever happens, under every balancer; fair turns; probes; waiting for a better one."""

from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.policy.balancing import BALANCERS
from dlproxy.policy.ejection import Circuit
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.pool import LATENCY_AWARE, InstancePool


def pool(names: str = "ab", *, capacity: int = 1, **knobs: Any) -> InstancePool:
    made = InstancePool(LaneKnobs(max_batch=4, max_queue_rows=100, **knobs))
    for name in names:
        made.add(name, capacity, 1.0, 0.0)
    return made


def take(instances: InstancePool, now: float = 0.0, *, avoided: str = "", affinity: str = "") -> str:
    return instances.take(now, affinity=affinity, avoided=avoided)


def release(instances: InstancePool, name: str, now: float = 0.0, *, factor: float = 1.0, ok: bool = True) -> None:
    instances.release(name, factor * 0.010, predicted_s=0.010, ok=ok, now=now)


def test_an_instance_is_ready_while_it_has_room() -> None:
    instances = pool("a", capacity=2)
    assert [take(instances), take(instances)] == ["a", "a"]
    assert not instances.ready
    release(instances, "a")
    assert list(instances.ready) == ["a"]


@pytest.mark.parametrize("balancer", BALANCERS)
def test_an_avoided_instance_is_taken_only_if_no_other_is_ready(balancer: str) -> None:
    instances = pool("abc", balancer=balancer)
    assert "a" not in (take(instances, avoided="a"), take(instances, avoided="a"))
    assert take(instances, avoided="a") == "a"


@pytest.mark.parametrize("capacity", [1, 3])
@pytest.mark.parametrize("balancer", ["round-robin", "weighted-round-robin"])
def test_turns_are_equal_however_often_batches_end_in_between(balancer: str, capacity: int) -> None:
    instances = pool("abc", balancer=balancer, capacity=capacity)
    taken = []
    for _ in range(30):
        taken.append(take(instances))
        release(instances, taken[-1])
    assert {name: taken.count(name) for name in "abc"} == {"a": 10, "b": 10, "c": 10}


def test_has_other_means_up_and_trusted_busy_or_not() -> None:
    instances = pool("ab", eject_after=1)
    assert not pool("a").has_other("a")
    assert pool("a").has_other("b")
    take(instances, avoided="a")
    assert instances.has_other("a"), "b is busy"
    release(instances, "b", ok=False)
    assert not instances.has_other("a"), "b is ejected"


def test_probes_come_due_and_are_known_to_be() -> None:
    instances = pool("ab", eject_after=1)
    assert instances.probe_at == inf
    name = take(instances, 1.0)
    release(instances, name, 2.0, ok=False)
    assert instances.probe_at == 12.0
    instances.probe(11.9)
    assert name not in instances.ready
    instances.probe(12.0)
    assert name in instances.ready
    assert instances.probe_at == inf
    other = "b" if name == "a" else "a"
    assert take(instances, 12.0, avoided=other) == name
    assert name not in instances.ready
    release(instances, name, 13.0)
    assert {state.circuit for state in instances.states()} == {Circuit.CLOSED}


@pytest.mark.parametrize("how", ["lost", "configured"])
def test_what_was_ejected_is_ready_again_if_nobody_may_be_any_more(how: str) -> None:
    instances = pool("ab", eject_after=1)
    release(instances, take(instances, avoided="b"), ok=False)
    assert list(instances.ready) == ["b"]
    if how == "lost":
        instances.remove("b")
    else:
        instances.configure(LaneKnobs(max_batch=4, max_queue_rows=100, eject_after=0), 1.0)
    assert "a" in instances.ready
    assert instances.probe_at == inf


@pytest.mark.parametrize("balancer", BALANCERS)
def test_waiting_for_a_better_one_pays_only_where_latency_counts(balancer: str) -> None:
    instances = pool("ab", balancer=balancer)
    for _ in range(2):
        assert {take(instances, avoided="b"), take(instances)} == {"a", "b"}
        release(instances, "a")
        release(instances, "b", factor=50.0)
    assert instances.worth_waiting_s(0.1, 0.0, avoided="") == 0.0, "all are ready"
    assert take(instances, avoided="b") == "a"
    expected_s = 4.9 if balancer in LATENCY_AWARE else 0.0
    assert instances.worth_waiting_s(0.1, 0.0, avoided="") == pytest.approx(expected_s)
    assert instances.worth_waiting_s(0.1, 0.0, avoided="a") == 0.0, "for a alone it would be waited"


def test_an_instance_of_the_same_name_is_another_one() -> None:
    instances = pool("ab", eject_after=1)
    release(instances, take(instances, avoided="b"), ok=False)
    instances.remove("a")
    assert "a" not in instances
    instances.add("a", 2, 1.0, 5.0)
    assert [(state.name, state.circuit, state.capacity) for state in instances.states()] == [
        ("b", Circuit.CLOSED, 1),
        ("a", Circuit.CLOSED, 2),
    ]
    with pytest.raises(AssertionError, match="is up already"):
        instances.add("a", 2, 1.0, 6.0)


actions = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "release", "fail", "fail", "lose", "up", "configure", "wait"]),
        st.integers(0, 9),
        st.sampled_from(["", "a", "b"]),
    ),
    max_size=60,
)


@settings(max_examples=60)
@given(actions=actions, balancer=st.sampled_from(BALANCERS), eject_after=st.integers(0, 2), capacity=st.integers(1, 2))
def test_ready_means_room_and_trust_and_always_somebody_is_trusted(
    actions: list[tuple[str, int, str]], balancer: str, eject_after: int, capacity: int
) -> None:
    instances = pool("abcd", capacity=capacity, balancer=balancer, eject_after=eject_after)
    running: list[str] = []
    now = 0.0
    for action, number, avoided in actions:
        if action == "take" and instances.ready:
            before = set(instances.ready)
            name = take(instances, now, avoided=avoided, affinity=str(number))
            assert name in before
            assert name != avoided or before == {avoided}
            running.append(name)
        elif action in ("release", "fail") and running:
            release(instances, running.pop(number % len(running)), now, ok=action == "release")
        elif action == "lose" and len(instances):
            name = instances.states()[number % len(instances)].name
            instances.remove(name)
            running = [other for other in running if other != name]
        elif action == "up" and "abcd"[number % 4] not in instances:
            instances.add("abcd"[number % 4], capacity, 1.0 + number, now)
        elif action == "configure":
            knobs = LaneKnobs(max_batch=4, max_queue_rows=9, balancer=BALANCERS[number % 8], eject_after=number % 3)
            instances.configure(knobs, now)
        elif action == "wait":
            now += 0.5 + 4.0 * number
            instances.probe(now)
        states = {state.name: state for state in instances.states()}
        assert {name: state.in_flight for name, state in states.items()} == {name: running.count(name) for name in states}
        room = {name for name, state in states.items() if state.in_flight < state.capacity}
        closed = {name for name, state in states.items() if state.circuit is Circuit.CLOSED}
        open_ = {name for name, state in states.items() if state.circuit is Circuit.OPEN}
        assert room & closed <= set(instances.ready) <= room - open_
        assert len(closed) * 2 >= len(states)
        assert (instances.probe_at < inf) == bool(open_)
