"""The way a model runs follows from what it was seen to take in each; the table of what follows from what."""

from collections.abc import Callable, Sequence
from math import inf
from threading import current_thread, local
from time import sleep, thread_time

import numpy as np
import pytest
from numpy.typing import NDArray

from dlproxy.instance import trial
from dlproxy.instance.trial import PATIENCE_S, TURNS, Measured, Way, best_way, measure, measure_again
from dlproxy.message import DType, Signature, TensorSpec
from dlproxy.testing import FakeRuntime

Array = NDArray[np.generic]

SIGNATURE = Signature((TensorSpec("x", DType.FP32, (-1, 1)),), (TensorSpec("y", DType.FP32, (-1, 1)),), True, "fake")
INLINE, ONE = Way(inline=True, instances=1, threads=1), Way(inline=False, instances=1, threads=1)
BESIDE, WIDE = Way(inline=False, instances=4, threads=1), Way(inline=False, instances=1, threads=4)


@pytest.mark.parametrize(
    ("narrow_ms", "slow_ms", "beside_ms", "wide_ms", "objective_ms", "way"),
    [
        (0.02, 0.03, inf, inf, None, INLINE),
        (0.1, 0.5, inf, inf, None, ONE),  # some requests would hold the loop
        (0.5, 0.6, 0.15, inf, None, BESIDE),
        (0.5, 0.6, 0.55, inf, None, ONE),  # side by side gains nothing: the model waits for memory, or for one core
        (10, 12, 2.6, 4, None, BESIDE),
        (10, 12, 9, 4, None, WIDE),
        (10, 12, 9, 8.9, None, BESIDE),  # so little that the other cores are better left to others
        (10, 12, 4.2, 4, None, BESIDE),  # on a machine that others disturb, this little tells nothing
        (10, 12, inf, 4, None, WIDE),
        (10, 12, inf, 9, None, ONE),
        (10, 12, 2.6, 4, 50, BESIDE),
        (10, 12, 2.6, 4, 15, WIDE),  # one core is too late for it, all of them are not
        (10, 12, 2.6, 9, 15, BESIDE),  # neither is in time
    ],
)
def test_what_is_best(
    narrow_ms: float, slow_ms: float, beside_ms: float, wide_ms: float, objective_ms: float | None, way: Way
) -> None:
    found = Measured(narrow_ms / 1e3, narrow_ms / 1e3, slow_ms / 1e3, beside_ms / 1e3, wide_ms / 1e3)
    objective_s = None if objective_ms is None else objective_ms / 1e3
    assert best_way(found, cores=4, side=4, threads=1, objective_s=objective_s, may_inline=True) == way
    if way.inline:
        assert best_way(found, cores=4, side=4, threads=1, objective_s=objective_s, may_inline=False) == ONE


def _sleeper(seconds: float) -> FakeRuntime:
    def run(inputs: Sequence[Array]) -> list[Array]:
        sleep(seconds)
        return [inputs[0]]

    return FakeRuntime(SIGNATURE, run)


def test_every_way_is_measured_where_it_may_pay() -> None:
    requests = [[np.zeros((1, 1), np.float32)]] * 3
    found = measure(requests, _sleeper(4e-3), 2, lambda: _sleeper(1e-3))
    assert found.narrow_s > found.beside_s > found.narrow_s / 3, "a sleeper sleeps as well beside another"
    assert found.wide_s < found.narrow_s / 2
    quick = measure(requests, _sleeper(0.0), 2, lambda: pytest.fail("nobody loads a quick model twice"))
    assert (quick.beside_s, quick.wide_s) == (inf, inf)


def test_a_model_that_fails_side_by_side_says_so() -> None:
    calls = [0]

    def run(inputs: Sequence[Array]) -> list[Array]:
        calls[0] += 1
        sleep(1e-3)
        if calls[0] > 5:
            raise MemoryError("no more")
        return [inputs[0]]

    with pytest.raises(MemoryError, match="no more"):
        measure([[np.zeros((1, 1), np.float32)]], FakeRuntime(SIGNATURE, run), 2, None)


def test_other_requests_gain_as_the_first_ones_did() -> None:
    """While serving, only processor time tells: what others take from the cores meanwhile is not the model's."""

    def busy(inputs: Sequence[Array]) -> list[Array]:
        until = thread_time() + 4e-3
        while thread_time() < until:
            pass
        return [inputs[0]]

    requests = [[np.zeros((1, 1), np.float32)]] * 3
    before = Measured(1e-3, 1e-3, 1e-3, 0.6e-3, 0.8e-3)
    again = measure_again(requests, FakeRuntime(SIGNATURE, busy), before, 2)
    assert again.narrow_s == pytest.approx(4e-3, rel=0.2)
    assert again.beside_s == pytest.approx(0.6 * again.narrow_s)
    assert again.wide_s == pytest.approx(0.8 * again.narrow_s)
    quick = Measured(20e-6, 20e-6, 20e-6, inf, inf)
    assert measure_again(requests, FakeRuntime(SIGNATURE, busy), quick, 2).beside_s == pytest.approx(2.2e-3, rel=0.2)
    assert measure_again(requests, FakeRuntime(SIGNATURE, busy), quick, 1).beside_s == inf


def test_a_guess_is_never_several_threads() -> None:
    found = Measured(10e-3, 10e-3, 12e-3, 9e-3, 4e-3, disturbed=True)
    assert best_way(found, cores=4, side=4, threads=1, objective_s=15e-3, may_inline=True) == BESIDE
    quick = Measured(100e-6, 100e-6, 150e-6, inf, inf, disturbed=True)
    assert best_way(quick, cores=4, side=4, threads=1, objective_s=None, may_inline=True) == INLINE


class _Machine(local):
    """Each thread's own clocks: runs make them go on, and others take as much again of some of the time."""

    now = cpu = waited = 0.0

    def passes(self, seconds: float, waited: float) -> None:
        self.now += seconds + waited
        self.cpu += seconds
        self.waited += waited


class _Trial:
    """A model of 5 ms on a machine of two cores; several threads take 3 ms. `busy`: turns in which others take half of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, busy: Callable[[int], bool]) -> None:
        self._machine, self._busy = _Machine(), busy
        self.turn = 0
        monkeypatch.setattr(trial, "perf_counter", lambda: self._machine.now)
        monkeypatch.setattr(trial, "thread_time", lambda: self._machine.cpu)
        monkeypatch.setattr(trial, "waited_s", lambda: self._machine.waited)
        monkeypatch.setattr(trial, "all_waited_s", lambda: {"1": self._machine.waited})
        beside = trial._beside
        monkeypatch.setattr(trial, "_beside", lambda *which: (self._next(), beside(*which))[1])

    def _next(self) -> None:
        self.turn += 1

    def measure(self, beside_s: float = 5e-3, patience_s: float = PATIENCE_S) -> Measured:
        main = current_thread()

        def narrow(inputs: Sequence[Array]) -> list[Array]:
            alone = current_thread() is main
            self._passes(5e-3 if alone else beside_s)
            return [inputs[0]]

        def wide(inputs: Sequence[Array]) -> list[Array]:
            self._passes(3e-3)
            return [inputs[0]]

        requests = [[np.zeros((1, 1), np.float32)]]
        return measure(requests, FakeRuntime(SIGNATURE, narrow), 2, lambda: FakeRuntime(SIGNATURE, wide), patience_s)

    def _passes(self, seconds: float) -> None:
        self._machine.passes(seconds, seconds if self._busy(self.turn) else 0.0)


def _near(found: Measured, beside_s: float, wide_s: float, disturbed: bool) -> bool:
    times = (found.narrow_s, found.narrow_cpu_s, found.beside_s, found.wide_s)
    return times == pytest.approx((5e-3, 5e-3, beside_s, wide_s)) and found.disturbed is disturbed


def test_a_calm_machine_is_tried_for_a_few_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _Trial(monkeypatch, lambda turn: False)
    assert _near(made.measure(), 2.5e-3, 3e-3, disturbed=False)
    assert made.turn == TURNS


def test_turns_that_others_disturb_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _Trial(monkeypatch, lambda turn: turn < 2 * TURNS)
    assert _near(made.measure(), 2.5e-3, 3e-3, disturbed=False)
    assert made.turn == 3 * TURNS - 1


def test_several_threads_are_chosen_when_calm_turns_speak_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _Trial(monkeypatch, lambda turn: turn % 2 == 0).measure(beside_s=9e-3)  # each waits for the other's memory
    assert _near(found, 4.5e-3, 3e-3, disturbed=False)
    assert best_way(found, cores=2, side=2, threads=1, objective_s=None, may_inline=True).threads == 2


def test_where_no_turn_is_calm_what_others_took_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _Trial(monkeypatch, lambda turn: True)
    found = made.measure()
    assert _near(found, 2.5e-3, 6e-3, disturbed=True)
    assert TURNS < made.turn < 1000
    way = best_way(found, cores=2, side=2, threads=1, objective_s=None, may_inline=True)
    assert way == Way(inline=False, instances=2, threads=1)


def test_a_quick_model_is_run_until_nobody_takes_its_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches that others have used make it slower than it is, by processor time too."""
    runs = [0]
    made = _Trial(monkeypatch, lambda turn: runs[0] < 100)

    def run(inputs: Sequence[Array]) -> list[Array]:
        runs[0] += 1
        made._passes(0.22e-3 if runs[0] < 100 else 0.17e-3)
        return [inputs[0]]

    requests = [[np.zeros((1, 1), np.float32)]]
    found = measure(requests, FakeRuntime(SIGNATURE, run), 2, None)
    assert (found.slow_s, found.disturbed) == (pytest.approx(0.17e-3), False)
    runs[0] = -(10**6)
    assert measure(requests, FakeRuntime(SIGNATURE, run), 2, None).disturbed


def test_while_serving_nothing_is_loaded_twice_for_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    made = _Trial(monkeypatch, lambda turn: True)
    found = made.measure(patience_s=0.0)
    assert (made.turn, found.wide_s, found.disturbed) == (TURNS, inf, True)
    other = Measured(5e-3, 5e-3, 5e-3, 2.5e-3, 3e-3, disturbed=True)
    assert measure_again(
        [[np.zeros((1, 1), np.float32)]], FakeRuntime(SIGNATURE, lambda inputs: [inputs[0]]), other, 2
    ).disturbed
