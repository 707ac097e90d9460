"""Near first, until its queue costs more than the way to others; a lane waits for it as long as that pays."""

from heapq import heappop, heappush
from math import inf

import pytest

from dlproxy.message import Ticket
from dlproxy.policy.balancing.nearest import FRESH_S, Nearest
from dlproxy.policy.events import Arrived, BatchDone, Complete, Dispatch, Event, InstanceUp, TimerFired, WakeAt
from dlproxy.policy.hops import Load
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane

SERVICE_S = 0.010


def nearest(**distances_s: float) -> Nearest:
    """Each takes 10 ms for a batch, and the way there and back."""
    balancer = Nearest()
    for name, distance_s in distances_s.items():
        balancer.add(name, 0.0)
        balancer.told(name, Load(distance_s=distance_s), 0.0)
        balancer.observe(name, SERVICE_S + distance_s, ok=True, now=0.0)
    return balancer


@pytest.mark.parametrize(
    ("distance_s", "in_flight", "chosen"),
    [
        pytest.param(0.005, 0, "a", id="idle: the near one"),
        pytest.param(0.005, 1, "b", id="5 ms away: a batch of 10 ms before it costs more"),
        pytest.param(0.020, 1, "a", id="20 ms away: one batch before it costs less"),
        pytest.param(0.020, 2, "a", id="as much: the first"),
        pytest.param(0.020, 3, "b", id="three cost more"),
        pytest.param(0.0, 1, "b", id="as near: the idle one"),
    ],
)
def test_near_until_its_queue_costs_more_than_the_way(distance_s: float, in_flight: int, chosen: str) -> None:
    balancer = nearest(a=0.0, b=distance_s)
    assert balancer.choose("ab", {"a": in_flight, "b": 0}, 0.0) == chosen


def test_what_others_send_there_counts_for_a_second() -> None:
    balancer = nearest(a=0.0, b=0.020)
    balancer.told("a", Load(9, 0.100), 1.0)
    idle = {"a": 0, "b": 0}
    assert balancer.choose("ab", idle, 1.0) == "b"
    assert balancer.choose("ab", idle, 1.0 + FRESH_S) == "a"


def test_being_far_away_is_not_being_slow() -> None:
    balancer = nearest(a=0.0, b=0.500)
    for name, took_s in (("a", 1.0), ("b", SERVICE_S + 0.5)):
        balancer.observe(name, took_s, ok=True, now=0.0)
    assert balancer.choose("ab", {"a": 0, "b": 0}, 0.0) == "b", "a has become slower than the way to b"


def test_waiting_pays_no_longer_than_the_way_is() -> None:
    balancer = nearest(a=0.0, b=0.050, c=0.050)
    assert balancer.worth_waiting_s("b", "a", {"a": 2, "b": 0}, 0.0) == pytest.approx(0.030)
    assert balancer.worth_waiting_s("b", "a", {"a": 9, "b": 0}, 0.0) == 0.0, "its queue costs more"
    assert balancer.worth_waiting_s("b", "c", {"b": 0, "c": 0}, 0.0) == 0.0, "no nearer"
    assert balancer.worth_waiting_s("b", "", {"b": 0}, 0.0) == 0.0
    balancer.observe("b", 30.0, ok=False, now=0.0)
    assert balancer.worth_waiting_s("b", "a", {"a": 0, "b": 0}, 0.0) <= 0.050


def simulated(distance_s: float, rate: float, *, balancer: str = "nearest", requests: int = 2000) -> tuple[float, float]:
    """A lane before `near` and `far`, which run one batch of one row at a time: share of `far`, mean latency in seconds."""
    lane = Lane(LaneKnobs(max_batch=1, max_queue_rows=10_000, balancer=balancer), [(1, SERVICE_S)])
    ways_s = {"near": 0.0, "far": distance_s}
    due: list[tuple[float, int, Event]] = [
        (number / rate, number, Arrived([Ticket(number, number / rate)])) for number in range(requests)
    ]
    due += [(0.0, number - 9, InstanceUp(name, 2)) for number, name in enumerate(ways_s)]
    due.sort(key=lambda one: one[:2])
    free_at, sent, waited_s, number = dict.fromkeys(ways_s, 0.0), dict.fromkeys(ways_s, 0), 0.0, requests
    while due:
        now, _, event = heappop(due)
        for command in lane.on(event, now):
            number += 1
            if isinstance(command, Dispatch):
                name, way_s = command.instance, ways_s[command.instance]
                sent[name] += 1
                free_at[name] = ends_at = max(free_at[name], now + way_s / 2) + SERVICE_S
                done = BatchDone(command.batch_id, ends_at + way_s / 2 - now, load=Load(distance_s=way_s))
                heappush(due, (ends_at + way_s / 2, number, done))
            elif isinstance(command, Complete):
                waited_s += sum(now - ticket.arrived_at for ticket in command.tickets)
            elif isinstance(command, WakeAt) and command.at < inf:
                heappush(due, (command.at, number, TimerFired()))
    return sent["far"] / requests, waited_s / requests


@pytest.mark.parametrize(
    ("distance_s", "load", "least", "most"),
    [
        pytest.param(0.0, 0.5, 0.0, 0.5, id="as near, half of what one can: either will do"),
        pytest.param(0.005, 0.5, 0.0, 0.02, id="5 ms away and not needed"),
        pytest.param(0.020, 0.5, 0.0, 0.02, id="20 ms away and not needed"),
        pytest.param(0.020, 0.9, 0.0, 0.02, id="the near one can do it all"),
        pytest.param(0.005, 1.6, 0.35, 0.55, id="more than one can: the rest goes far"),
        pytest.param(0.020, 1.6, 0.30, 0.50, id="also over 20 ms"),
    ],
)
def test_the_far_one_gets_what_the_near_one_cannot_do(distance_s: float, load: float, least: float, most: float) -> None:
    share, mean_s = simulated(distance_s, load / SERVICE_S)
    assert least <= share <= most
    assert mean_s < SERVICE_S + 2.5 * max(distance_s, SERVICE_S), "nobody queues for longer than the way is worth"


def test_it_beats_balancing_without_regard_to_distance() -> None:
    for distance_s in (0.005, 0.020):
        own, other = (simulated(distance_s, 0.9 / SERVICE_S, balancer=name)[1] for name in ("nearest", "round-robin"))
        assert own < other
