"""Workers in step, real processes: the same gradients and losses as one alone, and what a lost one comes to."""

import sys
from typing import Any

import pytest

from dlproxy.lab.learn.experiment import LearnError
from dlproxy.lab.learn.parallel.workers import Parallel, opened
from tests.lab.learn.parallel.networks import Killing, experiment, trained

pytestmark = pytest.mark.extras


def test_the_gradient_is_that_of_the_whole_batch() -> None:
    """Seen in the weights after one step of rate 1 by all 199 examples, which two workers cannot share evenly."""
    one = experiment(optimiser="sgd", rate=1.0, batch="all", epochs=1, examples=199)
    with opened(Parallel(workers=2), one, [1], 1, str) as workers:
        weights, losses = trained(one, workers)
    alone, losses_alone = trained(one)
    assert _apart(weights, alone) < 1e-6
    assert losses == pytest.approx(losses_alone, abs=1e-6)


def test_they_reach_the_same_loss_and_one_that_is_killed_ends_the_training_with_its_name() -> None:
    """Of a batch of 33 they have unlike numbers, of the last, of two, one each."""
    one = experiment(epochs=10, rate=1e-2)
    with opened(Parallel(workers=2), one, [1, 2], 1, str) as workers:
        weights, losses = trained(one, workers)
        alone, losses_alone = trained(one)
        assert losses == pytest.approx(losses_alone, rel=1e-4)
        assert losses[-1] < 0.5 * losses[0]
        assert _apart(weights, alone) < 1e-3
        (pid,) = workers.pids  # type: ignore[attr-defined]
        with pytest.raises(LearnError, match=r"a worker was lost: worker 2 of 2 was killed by signal 9\. The same command"):
            trained(one, Killing(workers, pid, after=2))


def _apart(weights: list[Any], others: list[Any]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(weights, others, strict=True))


def test_a_worker_that_cannot_begin_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        pytest.raises(LearnError, match="the workers did not start: worker 2 of 2 ended with 1"),
        opened(Parallel(workers=2), experiment(), [1], 1, str),
    ):
        pass
