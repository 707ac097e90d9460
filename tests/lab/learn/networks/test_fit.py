"""What descends a loss: against closed forms where there are any, and step by step where the gradient is known."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from dlproxy.compress.recipes.torch.training import reproducible  # noqa: E402
from dlproxy.lab.learn.experiment import LearnError  # noqa: E402
from dlproxy.lab.learn.networks.fit import How, answers, fit  # noqa: E402

pytestmark = pytest.mark.extras
ROWS = 70


class Slope(nn.Module):  # type: ignore[misc] # torch's types are not read
    """One weight; with `descends` as its loss the gradient is 1, whatever the rows are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1))

    def forward(self, given: Any) -> Any:
        return self.weight.expand(len(given), 1)


def descends(got: Any, _wanted: Any) -> Any:
    return got.mean()


def line(seed: int = 1) -> tuple[Any, Any]:
    """Inputs of mean 0, and targets that are nearly linear in them."""
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(ROWS, 3, generator=random)
    inputs = inputs - inputs.mean(0)
    targets = inputs @ torch.tensor([[1.0], [-2.0], [0.1]]) + 0.5 + 0.1 * torch.randn(ROWS, 1, generator=random)
    return inputs, targets


def weights(how: How, **more: Any) -> Any:
    with reproducible(seed=1, threads=1):
        network = nn.Linear(3, 1)
        fit(network, *line(), F.mse_loss, how, **more)
    return network.weight.detach()[0]


@pytest.mark.parametrize(
    "how",
    [
        How(optimiser="sgd", batch="all", rate=0.2, epochs=25),
        How(optimiser="sgd", batch=1, rate=0.05, epochs=8, schedule="cosine"),
        How(optimiser="sgd", batch=16, rate=0.1, epochs=25, schedule="cosine"),
        How(optimiser="momentum", batch=16, rate=0.03, epochs=25, schedule="step"),
        How(optimiser="adam", batch=16, rate=0.1, epochs=25, schedule="cosine"),
    ],
    ids=lambda how: f"{how.optimiser}-{how.batch}",
)
def test_each_way_finds_the_least_squares(how: How) -> None:
    inputs, targets = (tensor.numpy() for tensor in line())
    best = np.linalg.lstsq(np.hstack([inputs, np.ones((ROWS, 1), np.float32)]), targets, rcond=None)[0][:3, 0]
    np.testing.assert_allclose(weights(how).numpy(), best, atol=0.02)


def test_l2_is_ridge_regression_and_spares_the_bias() -> None:
    inputs, targets = (tensor.numpy() for tensor in line())
    strength = 0.3
    best = np.linalg.solve(inputs.T @ inputs / ROWS + strength * np.eye(3), inputs.T @ (targets - targets.mean()) / ROWS)
    found = weights(How(optimiser="sgd", batch="all", rate=0.2, epochs=60, l2=strength))
    np.testing.assert_allclose(found.numpy(), best[:, 0], atol=1e-3)


def test_l1_has_weights_vanish_that_hardly_help() -> None:
    found = weights(How(optimiser="sgd", batch="all", rate=0.1, epochs=80, l1=0.5, schedule="cosine"))
    assert found[2].abs() < 0.01
    assert found[:2].abs().min() > 0.5


@pytest.mark.parametrize(("batch", "steps"), [("all", 1), (1, ROWS), (32, 3), (1000, 1)])
def test_an_epoch_sees_each_row_once_in_batches(batch: Any, steps: int) -> None:
    seen: list[Any] = []

    def loss(got: Any, wanted: Any) -> Any:
        seen.append(wanted)
        return got.mean()

    rows = torch.arange(float(ROWS))
    fit(Slope(), rows, rows, loss, How(batch=batch, epochs=1))
    assert len(seen) == steps
    assert sorted(torch.cat(seen).tolist()) == rows.tolist()


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (How(optimiser="sgd", rate=0.1, epochs=3), [1.0, 1.0, 1.0]),
        (How(optimiser="sgd", rate=0.1, epochs=6, schedule="step"), [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]),
        (How(optimiser="sgd", rate=0.1, epochs=4, schedule="cosine"), [1.0, 0.853553, 0.5, 0.146447]),
        (How(optimiser="momentum", rate=0.1, epochs=3), [1.0, 1.9, 2.71]),
        (How(optimiser="adam", rate=0.1, epochs=3), [1.0, 1.0, 1.0]),
    ],
)
def test_the_rate_follows_its_schedule_and_momentum_adds_up(how: How, expected: list[float]) -> None:
    slope = Slope()
    rows = torch.zeros(4)
    curves = fit(slope, rows, rows, descends, how, watch=lambda: {"weight": float(slope.weight.detach())})
    steps = -np.diff([0.0, *curves["weight"]]) / how.rate
    np.testing.assert_allclose(steps, expected, rtol=1e-4)


def test_it_ends_when_validation_gets_no_better_and_goes_back_to_the_best() -> None:
    """The weight descends for ever; validation wants it at -0.35."""
    slope = Slope()
    rows = torch.zeros(4)

    def loss(got: Any, wanted: Any) -> Any:
        return got.mean() if wanted[0] == 0 else (got - wanted).abs().mean()

    how = How(optimiser="sgd", rate=0.1, epochs=50, patience=3)
    curves = fit(slope, rows, rows, loss, how, validation=(rows, torch.full((4, 1), -0.33)))
    assert len(curves["training loss"]) == len(curves["validation loss"]) == 6
    assert float(slope.weight.detach()) == pytest.approx(-0.3)


def test_without_patience_validation_is_only_watched() -> None:
    slope = Slope()
    rows = torch.zeros(4)
    curves = fit(slope, rows, rows, descends, How(optimiser="sgd", rate=0.1, epochs=5), validation=(rows, rows))
    assert float(slope.weight.detach()) == pytest.approx(-0.5)
    assert len(curves["validation loss"]) == 5
    with pytest.raises(LearnError, match="patience needs examples to validate with"):
        fit(slope, rows, rows, descends, How(patience=1))


def test_examples_are_changed_in_training_alone_and_with_their_targets() -> None:
    given: list[tuple[float, float]] = []

    def change(inputs: Any, targets: Any) -> Any:
        given.extend(zip(inputs[:, 0].tolist(), targets.tolist(), strict=True))
        return inputs + 100.0

    network = nn.Linear(1, 1)
    rows = torch.arange(4.0)
    fit(network, rows[:, None], rows, lambda got, wanted: 0.0 * got.sum() + got.mean(), How(epochs=1, batch=2), augment=change)
    assert sorted(given) == [(row, row) for row in range(4)]
    assert not network.training
    assert answers(network, rows[:, None]).shape == (4, 1)


def test_the_same_seed_gives_the_same_weights() -> None:
    how = How(batch=8, epochs=2)
    assert torch.equal(weights(how), weights(how))


def test_a_loss_that_is_no_number_ends_it_with_what_to_do() -> None:
    with pytest.raises(LearnError, match="a rate of 1000 is too high"):
        weights(How(optimiser="sgd", rate=1000.0, epochs=50))
