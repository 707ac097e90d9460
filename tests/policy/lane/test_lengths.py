"""Rows of every length: the production lane beside a plain FIFO, and what it does with short and long ones."""

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

import pytest

from dlproxy.message import Ticket
from dlproxy.policy.cost import Point
from dlproxy.policy.events import Arrived, BatchDone, Complete, Dispatch, Event, InstanceUp, Reject, TimerFired, WakeAt
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.queueing import DISCIPLINES

Truth = Callable[[int, int], float]

SLO_S = 0.1
SHORT = 20  # tokens
BERT: Truth = lambda rows, length: 1e-3 + 0.04e-3 * rows * length + 0.3e-6 * rows * length * length  # noqa: E731
TRUTHS: dict[str, Truth] = {
    "attention": BERT,
    "rows alone": lambda rows, _: 1e-3 + 4e-3 * rows,
    "elements": lambda rows, length: 1e-3 + 1e-4 * rows * length,
    "steps": lambda rows, length: 1e-3 + (2e-5 + 6e-5 * rows) * length,
    "nothing": lambda rows, length: 5e-3,
}


LOADS = (0.5, 0.8, 0.95, 1.2)
CALIBRATED: tuple[tuple[int, ...], ...] = ((), (1, 8), (1, 32), (1, 8, 32, 128))  # each pair of these three is tried


def texts(random: Random, truth: Truth, load: float, count: int) -> list[tuple[float, int]]:
    """(arrival, length) of texts of 3 to 200 tokens that come at random."""
    lengths = [random.choice([random.randint(3, SHORT), random.randint(20, 80), random.randint(80, 200)]) for _ in range(count)]
    mean_s = sum(truth(1, length) for length in lengths) / count
    now, arrivals = 0.0, []
    for length in lengths:
        now += random.expovariate(load / mean_s)
        arrivals.append((now, length))
    return arrivals


def in_time_first_come(arrivals: list[tuple[float, int]], truth: Truth, factors: list[float]) -> set[int]:
    """Those that one instance serves in time, one by one in the order of arrival, if nobody is refused."""
    free_at, in_time = 0.0, set()
    for number, (arrived_at, length) in enumerate(arrivals):
        free_at = max(free_at, arrived_at) + truth(1, length) * factors[number]
        if free_at - arrived_at <= SLO_S:
            in_time.add(number)
    return in_time


class Served:
    """A lane with one instance under these arrivals: who was answered in time, who was refused on arrival."""

    def __init__(self, lane: Lane, arrivals: list[tuple[float, int]], truth: Truth, random: Random, noise: float) -> None:
        self.lane = lane
        self.in_time: set[int] = set()
        self.refused: set[int] = set()
        self.longest_s = 0.0
        self.limits: list[tuple[int, int]] = []
        pending: list[tuple[float, int, Event]] = [(0.0, -1, InstanceUp("a"))]
        for number, (at, length) in enumerate(arrivals):
            ticket = Ticket(number, at, at + SLO_S, shape_key=(length,), length=length)
            heappush(pending, (at, number, Arrived([ticket])))
        number, wake_at = len(arrivals), float("inf")
        while pending:
            now, _, event = heappop(pending)
            if isinstance(event, TimerFired):
                if now != wake_at:
                    continue
                wake_at = float("inf")
            for command in lane.on(event, now):
                number += 1
                if isinstance(command, Dispatch):
                    rows, length = len(command.tickets), command.tickets[0].length
                    seconds = truth(rows, length) * max(random.gauss(1.0, noise), 0.3)
                    self.longest_s = max(self.longest_s, seconds)
                    self.limits.append((rows, length))
                    heappush(pending, (now + seconds, number, BatchDone(command.batch_id, seconds)))
                elif isinstance(command, Complete):
                    self.in_time |= {ticket.id for ticket in command.tickets if now <= ticket.deadline_at + 1e-9}
                elif isinstance(command, Reject) and isinstance(event, Arrived) and command.ticket in event.tickets:
                    self.refused.add(command.ticket.id)
                elif isinstance(command, WakeAt):
                    wake_at = command.at
                    heappush(pending, (wake_at, number, TimerFired()))


def knobs(discipline: str = "edf") -> LaneKnobs:
    return LaneKnobs(max_batch=64, max_queue_rows=8192, slo_s=SLO_S, discipline=discipline)


@pytest.mark.parametrize(
    ("name", "load", "calibrated"),
    [
        (name, LOADS[(number + other) % len(LOADS)], calibrated)
        for number, name in enumerate(TRUTHS)
        for other, calibrated in enumerate(CALIBRATED)
    ],
    ids=str,
)
def test_no_short_text_is_refused_that_a_plain_fifo_would_have_served_in_time(
    name: str, load: float, calibrated: tuple[int, ...]
) -> None:
    truth, random = TRUTHS[name], Random(7)
    prior: list[Point] = [(1, length, truth(1, length)) for length in calibrated[1:]]
    if len(calibrated) == 2:  # warm-up does not say of which length
        prior = [(rows, truth(rows, calibrated[1])) for rows in (1, 2, 4)]
    arrivals = texts(random, truth, load, 400)
    for noise in (0.0, 0.05):
        factors = [max(random.gauss(1.0, noise), 0.3) for _ in arrivals]
        fifo = in_time_first_come(arrivals, truth, factors)
        served = Served(Lane(knobs(), prior), arrivals, truth, random, noise)
        short = {number for number in served.refused if arrivals[number][1] <= SHORT}
        assert not short & fifo, f"{sorted(short & fifo)} of {len(served.refused)} refused, with {noise:.0%} noise"
        assert len(served.in_time) >= 0.99 * len(fifo)


def test_forty_short_texts_are_not_taken_for_forty_long_ones() -> None:
    lane = taught(BERT)
    now = 100.0
    lane.on(InstanceUp("a"), now)
    lane.on(Arrived([Ticket(1, now, now + SLO_S, shape_key=(200,), length=200)]), now)
    ahead = [Ticket(number, now, now + SLO_S, shape_key=(3 + number % 5,), length=3 + number % 5) for number in range(2, 42)]
    assert not [command for command in lane.on(Arrived(ahead), now) if isinstance(command, Reject)]
    (text,) = [Ticket(50, now, now + SLO_S, shape_key=(4,), length=4)]
    assert not lane.on(Arrived([text]), now), "some 10 ms of short texts, and the 21 ms that run"
    long = [Ticket(number, now, now + SLO_S, shape_key=(number,), length=number) for number in range(190, 200)]
    assert sum(isinstance(command, Reject) for command in lane.on(Arrived(long), now)) >= 6, "20 ms each"


def test_the_limit_is_that_of_the_heads_length() -> None:
    lane = taught(BERT)
    batching = lane.batching
    goals = [batching.goal_at(length) for length in (5, 20, 60, 200)]
    assert goals == [64, 48, 12, 2], "46 ms are for a batch"
    random = Random(2)
    served = Served(taught(BERT), texts(random, BERT, 3.0, 2000), BERT, random, 0.0)
    assert served.longest_s <= 2 * 0.46 * SLO_S
    assert max(rows for rows, length in served.limits if length <= 10) > 4 * max(
        rows for rows, length in served.limits if length > 150
    )


@pytest.mark.parametrize("wrong", [0.01, 100.0])
def test_no_batch_takes_twice_its_budget_from_a_wrong_calibration(wrong: float) -> None:
    for name, truth in TRUTHS.items():
        random = Random(3)
        prior: list[Point] = [(rows, wrong * truth(rows, 8)) for rows in (1, 2, 4)]
        served = Served(Lane(knobs(), prior), texts(random, truth, 3.0, 1000), truth, random, 0.0)
        assert served.longest_s <= 2 * 0.46 * SLO_S, name


@pytest.mark.parametrize("discipline", DISCIPLINES)
def test_every_discipline_tells_short_work_from_long(discipline: str) -> None:
    lane = taught(BERT, discipline)
    now = 100.0
    queue = lane.queue
    for number in range(2, 12):
        queue.push(Ticket(number, now, now + SLO_S, shape_key=(4,), length=4), now)
    few_s = queue.work_before(Ticket(50, now, now + SLO_S, shape_key=(9,), length=9), now + 1e-3).others_s
    assert few_s <= 10 * BERT(1, 4)
    for number in range(12, 22):
        queue.push(Ticket(number, now, now + SLO_S, shape_key=(180 + number,), length=180 + number), now)
    most_s = queue.work_before(Ticket(51, now + 1e-3, now + 1.0, shape_key=(199,), length=199), now + 1e-3).others_s
    assert most_s >= few_s
    assert (queue.rows_like(Ticket(0, now, shape_key=(4,))), queue.rows_like(Ticket(0, now, shape_key=(3,)))) == (10, 0)
    while len(queue):
        queue.pop(4, now)
    assert queue.work_before(Ticket(52, now, now + 1.0, shape_key=(9,), length=9), now).others_s == 0.0


def test_shortest_job_first_takes_the_shorter_text_first() -> None:
    lane = taught(BERT, "sjf")
    now = 100.0
    for number, length in ((2, 150), (3, 10), (4, 60)):
        lane.queue.push(Ticket(number, now, shape_key=(length,), length=length), now)
    assert [ticket.id for _ in range(3) for ticket in lane.queue.pop(1, now)] == [3, 4, 2]


def taught(truth: Truth, discipline: str = "edf") -> Lane:
    """A lane that has seen batches of all lengths."""
    lane, random = Lane(knobs(discipline)), Random(1)
    for batch in range(200):
        length = random.randint(3, 200)
        rows = min(lane.batching.limit, 1 + batch % 64)
        lane.batching.observe(rows, truth(rows, length), batch / 10, length)
    return lane
