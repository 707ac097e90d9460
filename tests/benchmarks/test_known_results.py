"""Quick runs of benchmarks/known_results with fixed seeds, and that a wrong result would be noticed."""

from math import inf

import pytest

from benchmarks.harness.checks import Check, as_text
from benchmarks.known_results import closed_loops, early_drop, prequal, slow_backend, two_choices, waits
from benchmarks.known_results.__main__ import main
from dlproxy.lab.simulate.engine import Heap
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.policy.balancing import RoundRobin


def test_waits_follow_pollaczek_khinchine_and_lindley() -> None:
    outcome = waits.run(1, 0.03, waits.SERVICES[:2])
    assert not [check.result for check in outcome.checks if not check.within]


def test_waits_of_too_long_services_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Fitted.draw

    def longer_in_the_simulator(self: Fitted, rows: int, idle_s: float = 0.0, at_s: float = 0.0) -> tuple[float, float]:
        service_s, hand_over_s = drawn(self, rows, idle_s)
        return service_s, hand_over_s + 0.1  # Lindley's recursion reads the service only

    monkeypatch.setattr(Fitted, "draw", longer_in_the_simulator)
    outcome = waits.run(1, 0.01, waits.SERVICES[:1])
    assert all(check.missed for check in outcome.checks)


@pytest.mark.parametrize(
    ("load", "choices", "expected"), [(0.9, 1, 10.0), (0.9, 2, 2.614), (0.95, 2, 3.383), (0.99, 2, 5.432), (0.9, 3, 2.028)]
)
def test_closed_form_of_two_choices(load: float, choices: int, expected: float) -> None:
    assert two_choices.mean_response(load, choices) == pytest.approx(expected, abs=2e-3)


@pytest.fixture
def thinned(monkeypatch: pytest.MonkeyPatch) -> float:
    """The rate of a quarter of the requests of slow_backend, whose arithmetic is that of any."""
    rate = slow_backend.RATE / 4
    monkeypatch.setattr(slow_backend, "RATE", rate)
    return rate


@pytest.mark.usefixtures("thinned")
def test_round_robin_sends_an_eleventh_to_the_slow_backend() -> None:
    late = 1.0 - slow_backend.simulate(lambda draw: RoundRobin(), 1).share_within(slow_backend.TIMEOUT_S)
    assert late == pytest.approx(0.5 / 11, abs=5e-4)


def test_peak_ewma_is_no_sinkhole_for_what_fails_at_once_and_counting_is(thinned: float) -> None:
    shares = {}
    for name in ("peak-EWMA", "least loaded"):
        make = slow_backend.BALANCERS[name][0]
        shares[name] = slow_backend.simulate(make, 1, slow_backend.FAILING).share_within(slow_backend.TIMEOUT_S)
    assert shares["peak-EWMA"] >= 0.999
    elsewhere = 10 / slow_backend.NORMAL_S / thinned  # it sends there what finds a backend with none in flight
    assert shares["least loaded"] == pytest.approx(0.5 + 0.5 * elsewhere, abs=0.01)


def test_prequal_stays_far_below_round_robin_on_a_short_ramp() -> None:
    ramp = prequal.Ramp(1, 1.0)
    tail = {name: prequal.tail_ms(prequal.simulate(name, ramp, 1)) for name in (prequal.ROUND_ROBIN, prequal.PREQUAL)}
    assert tail[prequal.PREQUAL] < 0.25 * tail[prequal.ROUND_ROBIN]


def test_a_server_shares_its_cores_and_gives_up_after_five_seconds() -> None:
    heap, ended = Heap(), {}

    def finished(server: str, number: int, now: float, ok: bool) -> None:
        ended[number] = (round(now, 9), ok)

    server = prequal.Server("s", 1.0, heap, finished)
    server.arrive(1, 1.0, 0.0)  # alone for half a second, then at half speed for one
    heap.run_until(0.5)
    server.arrive(2, 2.0, 0.5)  # half a second of it done at 1.5, the rest takes until 3 ...
    heap.run_until(2.0)
    server.left(0.1, 2.0)  # ... but not with a tenth of a core: 1 second is left, 0.35 are done at 5.5
    heap.run_until(10.0)
    assert ended == {1: (1.5, True), 2: (5.5, False)}


def test_early_drop_stays_near_the_floor_where_others_collapse() -> None:
    case = early_drop.CASES["1.2"]
    missed = {name: early_drop.repeat(case, name, 1, 4000).missed.mean() for name in (early_drop.DLPROXY, early_drop.SHRINK)}
    assert early_drop.FLOOR < missed[early_drop.DLPROXY] < early_drop.FLOOR + 10.0 < 60.0 < missed[early_drop.SHRINK]


def test_closed_loops_follow_their_sources() -> None:
    outcome = closed_loops.run(1, 0.2)
    assert not [check.result for check in outcome.checks if not check.within]


def test_a_miss_ends_with_1_and_a_known_difference_does_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(differs: str) -> Check:
        return Check(group="group", result="wait", expected=1.0, low=0.9, high=inf, measured=0.5, differs=differs)

    for differs, code, verdict in (("", 1, "MISS"), ("a reason", 0, "differs")):
        outcome = waits.Outcome([check(differs)], 1)
        monkeypatch.setattr("benchmarks.known_results.__main__.RESULTS", {"waits": lambda seed, outcome=outcome: outcome})
        assert main(["--only", "waits"]) == code
        assert verdict in capsys.readouterr().out
    assert as_text([check("")]).splitlines()[-1].split()[-1] == "MISS"
