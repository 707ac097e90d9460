"""Descends a loss: by all examples, by one or by some at a time, with momentum or Adam, penalties, schedules, an early end.

Called by training.py, and by every other part that trains a network. Not aware of: what is learnt, and from what.
"""

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from msgspec import Meta, Struct
from torch import nn

from dlproxy.lab.learn.experiment import LearnError

if TYPE_CHECKING:
    from dlproxy.lab.learn.parallel.workers import Workers

_AT_ONCE = 512  # examples, where nothing is learnt
_MOMENTUM = 0.9

Loss = Callable[[Any, Any], Any]  # answers and targets to the mean over them
Augment = Callable[[Any, Any], Any]  # a batch's inputs and targets to other inputs
Curves = dict[str, list[float]]  # a value for each epoch
Whole = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]


class How(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`batch`: examples a step; "all" descends the gradient itself. `patience`: epochs without a better validation loss after
    which it ends and goes back to the best; 0: it never does. `l1`, `l2`: times the sum of the weights' magnitudes, or of their
    squares, is added to the loss; biases are spared. `schedule`: of the rate; step is a tenth after each third.
    """

    optimiser: Literal["sgd", "momentum", "adam"] = "adam"
    batch: Whole | Literal["all"] = 32
    rate: Positive = 1e-3
    epochs: Whole = 30
    patience: Annotated[int, Meta(ge=0)] = 0
    schedule: Literal["constant", "step", "cosine"] = "constant"
    l1: NotNegative = 0.0
    l2: NotNegative = 0.0


def fit(
    network: nn.Module,
    inputs: Any,
    targets: Any,
    loss: Loss,
    how: How,
    *,
    validation: tuple[Any, Any] | None = None,
    augment: Augment | None = None,
    watch: Callable[[], dict[str, float]] = dict,
    workers: "Workers | None" = None,
) -> Curves:
    """Train in place, and leave it in evaluation mode. Chance is torch's own: see `reproducible` of the recipes.

    `inputs`, `targets`: tensors of as many rows; so is `validation`. `watch`: what else shall be in the curves, asked
    after each epoch. `workers`: who compute the gradients; else this process. Gives "training loss" (without penalties)
    and, with `validation`, "validation loss". Raises LearnError.
    """
    if how.patience and validation is None:
        raise LearnError("patience needs examples to validate with: set validation, 0.1 for a tenth of them")
    epoch = (alone if workers is None else workers.epochs)(network, inputs, targets, loss, how, augment)
    curves: Curves = {name: [] for name in ("training loss", "validation loss")[: 1 if validation is None else 2]}
    best, kept, since = math.inf, None, 0
    for _ in range(how.epochs):
        curves["training loss"].append(epoch())
        network.eval()
        for name, figure in watch().items():
            curves.setdefault(name, []).append(figure)
        if validation is None:
            continue
        curves["validation loss"].append(float(loss(answers(network, validation[0]), validation[1])))
        if curves["validation loss"][-1] < best:
            best, since = curves["validation loss"][-1], 0
            kept = copy.deepcopy(network.state_dict()) if how.patience else None
        elif (since := since + 1) >= how.patience > 0:
            break
    if kept is not None:
        network.load_state_dict(kept)
    return curves


def alone(network: nn.Module, inputs: Any, targets: Any, loss: Loss, how: How, augment: Augment | None) -> Callable[[], float]:
    """What trains an epoch and returns its mean loss. Raises LearnError."""
    size = len(targets) if how.batch == "all" else how.batch
    optimiser, schedule = schedule_of(optimiser_of(network, how), how, len(targets))

    def epoch() -> float:
        network.train()
        lost = 0.0
        for chosen in torch.randperm(len(targets)).split(size):
            given = inputs[chosen] if augment is None else augment(inputs[chosen], targets[chosen])
            value = loss(network(given), targets[chosen])
            optimiser.zero_grad()
            (value + penalty(network, how)).backward()
            optimiser.step()
            schedule.step()
            lost += float(value.detach()) * len(chosen)
        return finite(lost, how) / len(targets)

    return epoch


def finite(lost: float, how: How) -> float:
    """The same, or LearnError."""
    if not math.isfinite(lost):
        raise LearnError(f"the loss is no number any more: a rate of {how.rate:g} is too high, or the data has holes")
    return lost


def answers(network: nn.Module, inputs: Any) -> Any:
    """Of all rows, in evaluation mode and without gradients."""
    network.eval()
    with torch.no_grad():
        return torch.cat([network(part) for part in inputs.split(_AT_ONCE)])


def optimiser_of(network: nn.Module, how: How) -> Any:
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if how.optimiser == "adam":
        return torch.optim.Adam(weights, how.rate)
    return torch.optim.SGD(weights, how.rate, momentum=_MOMENTUM if how.optimiser == "momentum" else 0.0)


def schedule_of(optimiser: Any, how: How, examples: int) -> tuple[Any, Any]:
    """With what changes its rate after each step."""
    steps = how.epochs * math.ceil(examples / (examples if how.batch == "all" else how.batch))
    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _share(how.schedule, step / steps))


def _share(schedule: str, progress: float) -> float:
    """Of the rate, after this share of all steps."""
    if schedule == "cosine":
        return (1.0 + math.cos(math.pi * progress)) / 2.0
    return 0.1 ** int(progress * 3.0) if schedule == "step" else 1.0


def penalty(network: nn.Module, how: How) -> Any:
    """What is added to the loss; 0.0 of nothing."""
    if not (how.l1 or how.l2):
        return 0.0
    weights = [weight for weight in network.parameters() if weight.requires_grad and weight.ndim > 1]
    return sum(how.l1 * weight.abs().sum() + how.l2 * weight.square().sum() for weight in weights)
