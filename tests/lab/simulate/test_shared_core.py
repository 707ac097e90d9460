"""What arrivals cost the batches of a shared core: learnt from a recording, and taken out of its batches."""

from collections import Counter
from math import inf

import numpy as np
import pytest

from dlproxy.lab.simulate.engine import Call, LoopCosts
from dlproxy.lab.simulate.service_times import Fitted, Sample, ServiceTimes
from dlproxy.lab.simulate.shared_core import separate
from dlproxy.policy.events import Arrived, BatchDone
from dlproxy.policy.knobs import LaneKnobs

from .fixtures import make_model, noted, run_calls

KNOBS = LaneKnobs(max_batch=8, max_queue_rows=100_000)
BASE_S, ROW_S = 0.004, 0.001
LINE = Fitted(BASE_S, ROW_S)
NONE = np.array([], np.float64)


def recorded(times: ServiceTimes, costs: LoopCosts) -> tuple[list[Sample], np.ndarray]:
    """Batches and arrivals of 3,000 requests of 1 to 3 rows that come at random, a third of the capacity."""
    random = np.random.default_rng(5)
    due = np.cumsum(random.exponential(0.012, 3000)).tolist()
    model = make_model("m", times, knobs=KNOBS)
    run_calls([model], [Call("m", 1 + number % 3, inf, at) for number, at in enumerate(due)], costs=costs)
    began: dict[int, tuple[float, int]] = {}
    for command in noted(model).dispatched:
        began[command.batch_id] = (0.0, sum(ticket.rows for ticket in command.tickets))
    arrivals, batches = [], []
    for at, event in noted(model).told:
        if isinstance(event, Arrived):
            arrivals += [ticket.arrived_at for ticket in event.tickets]
        elif isinstance(event, BatchDone):
            batches.append(Sample(began[event.batch_id][1], event.service_s, at_s=at - event.service_s))
    return batches, np.array(arrivals)


@pytest.mark.parametrize("read_s", [0.0005, 0.002])
def test_what_a_shared_core_added_to_batches_is_found_and_taken_out(read_s: float) -> None:
    batches, arrivals = recorded(LINE, LoopCosts(read_s, shares_core=True))
    assert max(batch.service_s - BASE_S - ROW_S * batch.rows for batch in batches) > read_s / 2, "some were held up"
    arrival_s, alone = separate(batches, arrivals)
    assert arrival_s == pytest.approx(read_s, rel=0.01)
    sizes = Counter(batch.rows for batch in batches)
    for batch in alone:
        if sizes[batch.rows] > 1:  # else nobody knows how long it takes alone
            assert batch.service_s == pytest.approx(BASE_S + ROW_S * batch.rows, abs=read_s / 50)


def test_on_cores_of_their_own_batches_stay_as_they_are() -> None:
    batches, arrivals = recorded(LINE, LoopCosts(0.001))
    arrival_s, alone = separate(batches, arrivals)
    assert arrival_s == pytest.approx(0.0, abs=1e-9)
    assert [batch.service_s for batch in alone] == pytest.approx([batch.service_s for batch in batches], abs=1e-7)


def test_noise_that_arrivals_have_no_part_in_is_not_put_down_to_them() -> None:
    batches, arrivals = recorded(Fitted(BASE_S, ROW_S, cv=0.1, seed=3), LoopCosts(0.0005, shares_core=True))
    assert separate(batches, arrivals)[0] == pytest.approx(0.0005, rel=0.2)


def test_pauses_in_which_many_arrive_are_not_what_an_arrival_costs() -> None:
    batches, arrivals = recorded(LINE, LoopCosts(0.0005, shares_core=True))
    paused = [batch._replace(service_s=batch.service_s + 0.2) if n % 50 == 0 else batch for n, batch in enumerate(batches)]
    assert separate(paused, arrivals)[0] == pytest.approx(0.0005, rel=0.1)


def test_no_batch_gets_quicker_than_the_quickest_of_its_size_and_no_hand_over_less_than_nothing() -> None:
    random = np.random.default_rng(1)
    batches, arrivals = [], []
    for number in range(400):
        at, crowd = float(number), 8 if number % 50 == 0 else number % 3  # eight at once cost less each than one
        held_up_s = 0.01 * min(crowd, 4)
        batches.append(Sample(1 + number % 2, 0.3 + 0.1 * (number % 2) + held_up_s, 0.001, at_s=at))
        arrivals += [*(at + random.uniform(0.01, 0.2, crowd)).tolist(), at + batches[-1].service_s + 0.0005]
    arrival_s, alone = separate(batches, np.sort(np.array(arrivals)))
    assert arrival_s == pytest.approx(0.01, rel=0.02)
    for batch in alone:
        assert batch.service_s == pytest.approx(0.3 + 0.1 * (batch.rows - 1), abs=0.0005)
    assert {batch.hand_over_s for batch in alone} == {0.0}
    assert [(batch.rows, batch.at_s) for batch in alone] == [(batch.rows, batch.at_s) for batch in batches]


@pytest.mark.parametrize("batches", [[], [Sample(1, 0.5, at_s=0.0)], [Sample(1, 0.5, at_s=float(n)) for n in range(3)]])
def test_too_few_batches_or_arrivals_teach_nothing(batches: list[Sample]) -> None:
    assert separate(batches, np.array([0.1, 0.2])) == (0.0, batches)
    assert separate([Sample(1, 0.5, at_s=float(n)) for n in range(50)], NONE)[0] == 0.0


def test_arrivals_before_and_after_a_batch_are_no_part_of_it() -> None:
    batches = [Sample(1, 0.5 + 0.1 * (n % 2), at_s=float(n)) for n in range(100)]
    inside = [n + 0.25 for n in range(1, 100, 2)]
    around = [n + at for n in range(100) for at in (0.0, 0.75)]
    arrival_s, alone = separate(batches, np.sort(np.array(inside + around)))
    assert arrival_s == pytest.approx(0.1)
    assert [batch.service_s for batch in alone] == pytest.approx([0.5] * 100)
