"""What an attack may do, it does and no more: by hand on a linear network, and as properties of a bent one."""

from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from dlproxy.compress.recipes.torch.training import reproducible  # noqa: E402
from dlproxy.lab.learn.robust.attacks import Budget, accuracy, fgsm, margins, noise, pgd  # noqa: E402 # torch is an extra

pytestmark = pytest.mark.extras


@pytest.fixture(autouse=True)
def chance() -> Iterator[None]:
    with reproducible(seed=1, threads=1):
        yield


@pytest.fixture
def bent() -> Any:
    """A network of two layers of random weights on [rows, 5], and rows with what it says of them as labels."""
    first, second = torch.randn(5, 16), torch.randn(16, 3)
    rows = torch.rand(200, 5) * 16

    def network(given: Any) -> Any:
        return torch.relu((given - 8) @ first) @ second

    return network, rows, network(rows).argmax(dim=1)


def test_a_linear_network_is_deceived_as_far_as_can_be() -> None:
    """The margin falls by epsilon times the sum of the weights' sizes, which no attack can exceed."""
    weights = torch.tensor([3.0, -2.0, 0.5])

    def network(given: Any) -> Any:
        scores = given @ weights
        return torch.stack([scores, -scores], dim=1)

    rows, labels = torch.tensor([[8.0, 8.0, 8.0]]), torch.tensor([0])
    budget = Budget(epsilon=2.0, steps=10, restarts=2)
    expected = [[6.0, 10.0, 6.0]]
    assert fgsm(network, rows, labels, budget).tolist() == expected
    torch.testing.assert_close(pgd(network, rows, labels, budget), torch.tensor(expected))
    fallen = margins(network(torch.tensor(expected)), labels) - margins(network(rows), labels)
    assert fallen.item() == pytest.approx(2 * 2.0 * 5.5)


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 20.0])
def test_nothing_leaves_what_is_allowed(epsilon: float, bent: Any) -> None:
    network, rows, labels = bent
    budget = Budget(epsilon=epsilon, steps=4, restarts=2, low=1.0, high=15.0)
    for found in (
        fgsm(network, rows.clamp(1, 15), labels, budget),
        pgd(network, rows.clamp(1, 15), labels, budget),
        noise(rows.clamp(1, 15), budget),
    ):
        assert (found - rows.clamp(1, 15)).abs().max() <= epsilon + 1e-5
        assert found.min() >= 1.0
        assert found.max() <= 15.0


def test_more_effort_is_more_harm(bent: Any) -> None:
    network, rows, labels = bent
    budget = Budget(epsilon=1.0)
    left = {
        "nothing": accuracy(network, rows, labels),
        "noise": accuracy(network, noise(rows, budget), labels),
        "fgsm": accuracy(network, fgsm(network, rows, labels, budget), labels),
        "pgd": accuracy(network, pgd(network, rows, labels, budget), labels),
        "without bounds": accuracy(network, pgd(network, rows, labels, Budget(epsilon=16.0)), labels),
    }
    assert left["nothing"] == 1.0
    assert list(left.values()) == sorted(left.values(), reverse=True)
    assert left["pgd"] < left["noise"]
    assert left["without bounds"] < 0.05


def test_a_guard_is_attacked_too(bent: Any) -> None:
    """One that refuses whatever has moved by more than a half in its first number."""
    network, rows, labels = bent

    def guard(given: Any) -> Any:
        return torch.relu((given[:, 0] - rows[:, 0]).abs() - 0.5)

    free = pgd(network, rows, labels, Budget(epsilon=2.0))
    aware = pgd(network, rows, labels, Budget(epsilon=2.0), guard)
    assert (guard(free) > 0).float().mean() > 0.3
    assert (guard(aware) > 0).sum() == 0
    assert accuracy(network, rows, labels) > accuracy(network, aware, labels) >= accuracy(network, free, labels)
