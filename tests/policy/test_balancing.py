"""What holds for every balancer, and for all that look at latency: they choose who is ready, replay, forget, avoid failures."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.policy.balancing import BALANCERS, Balancer, LeastPeakEwma, SplitMix64, make_balancer

from .balanced import LATENCY_AWARE, WEIGHTED, drive, mentions

FLEET = ["a", "b", "c"]
each_balancer = pytest.mark.parametrize("name", BALANCERS)
each_latency_aware = pytest.mark.parametrize("name", LATENCY_AWARE)
steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "choose", "observe", "forget"]),
        st.sampled_from("abcde"),
        st.sets(st.sampled_from("abcde"), min_size=1),
        st.integers(0, 6),
        st.floats(0.0, 20.0),
    ),
    max_size=40,
)


def test_the_default_is_peak_ewma_and_an_unknown_name_is_refused_with_those_known() -> None:
    assert isinstance(make_balancer(BALANCERS[0]), LeastPeakEwma)
    with pytest.raises(ValueError, match=r"no balancer 'best'; there are peak-ewma, round-robin, .*, prequal"):
        make_balancer("best")


def play(balancer: Balancer, script: list[tuple[str, str, set[str], int, float]]) -> list[str]:
    """Carry out the steps and return the choices, each of which was ready."""
    now, chosen = 0.0, []
    for what, instance, others, count, seconds in script:
        now += seconds
        if what == "add":
            balancer.add(instance, now, 0.5 + count)
        elif what == "observe":
            balancer.observe(instance, seconds, ok=bool(count % 3), now=now)
        elif what == "forget":
            balancer.forget(instance)
        else:
            in_flight = {name: (count * number) % 5 for number, name in enumerate("abcde")}
            ready = sorted(others)
            choice = balancer.choose(ready if count % 2 else dict.fromkeys(ready), in_flight, now, instance * (count % 4))
            assert choice in others
            chosen.append(choice)
    return chosen


@each_balancer
@settings(max_examples=30)
@given(script=steps, slow_start_s=st.sampled_from([0.0, 5.0]))
def test_chooses_one_that_is_ready_whatever_happened_and_again_the_same(
    name: str, script: list[tuple[str, str, set[str], int, float]], slow_start_s: float
) -> None:
    first, second = (play(make_balancer(name, slow_start_s=slow_start_s), script) for _ in range(2))
    assert first == second


@each_balancer
@settings(max_examples=20)
@given(script=steps)
def test_nothing_is_remembered_of_what_was_forgotten(name: str, script: list[tuple[str, str, set[str], int, float]]) -> None:
    balancer = make_balancer(name, slow_start_s=1.0)
    play(balancer, [step if step[0] != "forget" else ("add", *step[1:]) for step in script])
    for instance in "abcde":
        balancer.forget(instance)
        balancer.forget(instance)
        assert not mentions(balancer, instance)


def test_the_search_for_memories_finds_them() -> None:
    for name in ("peak-ewma", "prequal", "consistent-hash", "weighted-round-robin"):
        balancer = make_balancer(name)
        drive(balancer, FLEET, requests=50, gap_s=0.01, keys=("x",))
        assert mentions(balancer, "a"), name


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("gap_s", [0.5, 0.02])
def test_more_weight_never_gets_fewer(name: str, gap_s: float) -> None:
    """Over a long run of even services: an idle fleet (one at a time) and a busy one (five at a time)."""
    keys = [f"key-{number}" for number in range(400)]
    shares = []
    for weight in (0.25, 1.0, 4.0):
        balancer = make_balancer(name)
        for instance in FLEET:
            balancer.add(instance, 0.0, weight if instance == "b" else 1.0)
        shares.append(drive(balancer, FLEET, requests=2000, gap_s=gap_s, keys=keys)["b"])
    assert shares[0] <= shares[1] <= shares[2]
    assert shares[0] < shares[2]


@pytest.mark.parametrize("name", WEIGHTED)
def test_an_impossible_weight_is_refused(name: str) -> None:
    for weight in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="weight"):
            make_balancer(name).add("a", 0.0, weight)


# Those that look at latency


@each_latency_aware
@pytest.mark.parametrize(
    ("healthy_s", "at_once"), [(0.001, 0.2), (0.001, 6.0), (0.05, 0.2), (0.05, 6.0), (1.0, 1.0), (1.0, 6.0), (100.0, 200.0)]
)
def test_what_fails_fast_never_gets_more_than_a_fair_share(name: str, healthy_s: float, at_once: float) -> None:
    """As long as requests come more often than the 10 s for which anything is remembered."""
    sent = drive(
        make_balancer(name), FLEET, requests=2000, gap_s=healthy_s / at_once, service_s=healthy_s, failing=frozenset("b")
    )
    assert sent["b"] <= 2000 / 3


@each_latency_aware
def test_what_failed_is_tried_again_and_then_trusted(name: str) -> None:
    balancer = make_balancer(name)
    drive(balancer, FLEET, requests=500, gap_s=0.01, service_s=0.05, failing=frozenset("b"))
    later = drive(balancer, FLEET, requests=10_000, gap_s=0.01, service_s=0.05, from_s=5.0)
    assert later["b"] > 1000


@each_latency_aware
def test_a_slow_one_gets_fewer_and_is_tried_again_when_it_has_been_left_alone(name: str) -> None:
    balancer = make_balancer(name)
    slow = {"a": 0.02, "b": 1.0, "c": 0.02}
    sent = drive(balancer, FLEET, requests=3000, gap_s=0.01, service_s=slow)
    assert sent["b"] < 0.2 * 3000
    assert drive(balancer, FLEET, requests=6000, gap_s=0.01, service_s=slow, from_s=40.0)["b"] > 0, "it may be better now"


@each_latency_aware
def test_an_instance_that_joins_is_tried_soon(name: str) -> None:
    balancer = make_balancer(name)
    drive(balancer, ["a", "b"], requests=200, gap_s=0.05, service_s=0.010)
    balancer.add("c", 10.0)
    assert drive(balancer, FLEET, requests=200, gap_s=0.05, service_s=0.010, from_s=10.0)["c"] > 0


@pytest.mark.parametrize("name", ["power-of-two", "prequal"])
def test_equal_draws_give_equal_choices_and_others_others(name: str) -> None:
    names = [f"i-{number}" for number in range(40)]
    runs = []
    for seed in (1, 1, 2):
        balancer = make_balancer(name, draw=SplitMix64(seed))
        runs.append(drive(balancer, names, requests=300, gap_s=0.001))
    assert runs[0] == runs[1] != runs[2]


def test_splitmix_gives_the_published_numbers_and_covers_the_unit_interval() -> None:
    """The first outputs for seed 1234567 are those of Vigna's splitmix64.c, as many libraries test them."""
    numbers = SplitMix64(1234567)
    assert [numbers.next64() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    draws = [numbers() for _ in range(10_000)]
    assert 0.0 <= min(draws) < 0.001 < 0.999 < max(draws) < 1.0
    assert sum(draws) / len(draws) == pytest.approx(0.5, abs=0.015)
