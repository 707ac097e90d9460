"""Inputs made to deceive a network, none of whose numbers differs by more than epsilon from the true ones (L-infinity).

Called by the trainings beside it. A network gives logits [rows, classes], not probabilities, whose gradients vanish where it is
sure. Chance is torch's own. Not aware of: data sets, what a network is for.
"""

from collections.abc import Callable

import torch
from msgspec import Struct
from torch.nn import functional

Network = Callable[[torch.Tensor], torch.Tensor]
Watched = Callable[[torch.Tensor], torch.Tensor]
REFUSED = 1e6  # how much less an input is worth that is refused: more than any difference of logits


class Budget(Struct, frozen=True, kw_only=True):
    """What the attacker may do. `epsilon`, `low` and `high` in units of the inputs: 0 to 16 for the pixels of the digits."""

    epsilon: float
    steps: int = 20
    restarts: int = 3
    low: float = 0.0
    high: float = 16.0

    def within(self, rows: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """The nearest that is allowed."""
        return torch.clamp(torch.clamp(rows, true - self.epsilon, true + self.epsilon), self.low, self.high)


def fgsm(network: Network, rows: torch.Tensor, labels: torch.Tensor, budget: Budget) -> torch.Tensor:
    """One step as far as allowed along the sign of the loss's gradient (Goodfellow et al., 2015)."""
    varied = rows.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(functional.cross_entropy(network(varied), labels, reduction="sum"), varied)
    return budget.within(rows + budget.epsilon * slope.sign(), rows)


def noise(rows: torch.Tensor, budget: Budget) -> torch.Tensor:
    """Steps of the same length as FGSM's in a random direction: what an attack must beat."""
    signs = torch.randint(0, 2, rows.shape).float() * 2.0 - 1.0
    return budget.within(rows + budget.epsilon * signs, rows)


def pgd(
    network: Network,
    rows: torch.Tensor,
    labels: torch.Tensor,
    budget: Budget,
    guard: Watched | None = None,
) -> torch.Tensor:
    """Projected gradient steps from random starts (Madry et al., 2018): of all places seen, for each row the one where the
    largest wrong logit is farthest above the right one.

    `guard`: above 0 where a guard would refuse, [rows]. It is attacked as well, from the row itself on: first accepted, then
    wrong (Bryniarski et al., 2022).
    """
    best, worth = rows.clone(), torch.full((len(rows),), -float("inf"))
    stride = 2.5 * budget.epsilon / budget.steps
    for restart in range(budget.restarts):
        spread = (torch.rand(rows.shape) * 2.0 - 1.0) * budget.epsilon
        at = rows if restart == 0 and guard is not None else budget.within(rows + spread, rows)
        for step in range(budget.steps + 1):
            at = at.detach().requires_grad_(True)
            logits = network(at)
            loss, value = functional.cross_entropy(logits, labels, reduction="none"), margins(logits, labels).detach()
            if guard is not None:
                refused = guard(at)
                loss = torch.where(refused > 0.0, -refused, loss)
                value = value - REFUSED * (refused.detach() > 0.0)
            better = value > worth
            worth = torch.where(better, value, worth)
            best[better] = at.detach()[better]
            if step < budget.steps:
                (slope,) = torch.autograd.grad(loss.sum(), at)
                at = budget.within(at.detach() + stride * slope.sign(), rows)
    return best


def margins(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """By how much the largest wrong logit is above the right one, [rows]: above 0 where the network is wrong."""
    right = logits.gather(1, labels[:, None])[:, 0]
    return logits.scatter(1, labels[:, None], -float("inf")).max(dim=1).values - right


def accuracy(network: Network, rows: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of rows in which no wrong logit is as high as the right one."""
    with torch.no_grad():
        return float((margins(network(rows), labels) < 0.0).float().mean())
