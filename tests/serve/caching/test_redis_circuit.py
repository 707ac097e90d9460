"""When a shared cache is asked, and how long it is waited for."""

from random import Random

import pytest

from dlproxy.serve.caching.circuit import BACK_OFF_S, FAILURES, STEADY, WAIT_S, Circuit, Pace


def _opened(circuit: Circuit, now: float) -> None:
    assert [circuit.failed(now) for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]


def test_it_opens_after_failures_in_a_row() -> None:
    circuit = Circuit(Random(1))
    for _ in range(3 * FAILURES):
        circuit.failed(0.0)
        circuit.answered()
    assert not circuit.is_open
    _opened(circuit, 0.0)
    assert circuit.is_open
    assert circuit.opened == 1


def test_one_probe_at_a_time_closes_it() -> None:
    circuit = Circuit(Random(1))
    _opened(circuit, 10.0)
    assert not circuit.takes_probe(10.0 + BACK_OFF_S[0] / 4)
    assert circuit.takes_probe(10.0 + BACK_OFF_S[0])
    assert not circuit.takes_probe(1000.0), "one is under way"
    circuit.probed(10.2, well=True)
    assert not circuit.is_open


def test_it_backs_off_for_longer_each_time_up_to_a_limit() -> None:
    circuit, now, waits = Circuit(Random(1)), 0.0, []
    _opened(circuit, now)
    for _ in range(12):
        began = now
        while not circuit.takes_probe(now):
            now += 0.01
        waits.append(now - began)
        circuit.probed(now, well=False)
    assert waits[0] <= BACK_OFF_S[0] + 0.01
    assert all(later > 0.9 * before for before, later in zip(waits, waits[2:7], strict=False)), "doubled, but for the jitter"
    assert BACK_OFF_S[1] / 2 <= max(waits) <= BACK_OFF_S[1] + 0.02


def test_only_steady_answers_take_the_back_off_back() -> None:
    for answers, quick in ((STEADY - 1, False), (STEADY, True)):
        circuit, now = Circuit(Random(1)), 0.0
        _opened(circuit, now)
        for _ in range(6):
            now += BACK_OFF_S[1]
            assert circuit.takes_probe(now)
            circuit.probed(now, well=False)
        now += BACK_OFF_S[1]
        assert circuit.takes_probe(now)
        circuit.probed(now, well=True)
        for _ in range(answers):
            circuit.answered()
        _opened(circuit, now)
        assert circuit.takes_probe(now + BACK_OFF_S[0]) is quick


@pytest.mark.parametrize(
    ("compute_s", "wait_s", "lease_s"), [(0.020, WAIT_S, 0.1), (0.004, 0.001, 0.1), (1.0, WAIT_S, 3.0), (60.0, WAIT_S, 30.0)]
)
def test_waits_and_leases_follow_the_model(compute_s: float, wait_s: float, lease_s: float) -> None:
    pace = Pace()
    assert pace.wait_s == WAIT_S
    for _ in range(100):
        pace.took(compute_s)
    assert pace.wait_s == pytest.approx(wait_s)
    assert pace.lease_s == pytest.approx(lease_s)


def test_a_stated_wait_holds() -> None:
    pace = Pace(0.05)
    pace.took(0.001)
    assert pace.wait_s == 0.05


def test_the_slowest_of_a_hundred_is_what_counts() -> None:
    pace = Pace()
    for number in range(256):
        pace.took(1.0 if number % 50 == 0 else 0.1)
    assert pace.lease_s == pytest.approx(3.0)
