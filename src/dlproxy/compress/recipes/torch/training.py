"""One trainer for all recipes: AdamW or SGD, a cosine schedule, and an early end by a part of the training data.

Called by the recipes here. Not aware of: what is trained, what is done to it between epochs.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from msgspec import Struct
from torch.nn import functional as F  # noqa: N812 # as everybody calls it

from dlproxy.compress.recipe import Context, RecipeError
from dlproxy.compress.recipes.torch.modules import Trainable, first, number

_AT_ONCE = 64  # examples, where nothing is learnt
_SORTED = 16  # batches that are filled by length together
_SMALLEST = 1e-12  # below it a probability's logarithm says nothing


class Plan(Struct, frozen=True):
    """`soft`: the weight of the original's answers in the loss, the labels have the rest. `temperature`: Hinton et al. 2015.
    `patience`: epochs without a better validation loss after which it ends. `held`: share of the examples for validation.
    """

    epochs: int
    lr: float
    batch: int = 32
    optimizer: str = "adamw"
    soft: float = 0.5
    temperature: float = 2.0
    patience: int = 5
    held: float = 0.1

    def settings(self) -> dict[str, Any]:
        """For the record."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


def planned(context: Context, *, epochs: int, lr: float, soft: float = 0.5) -> Plan:
    """What the user's options say, and else these. Raises RecipeError."""
    options = context.options
    optimizer = options.get("optimizer", "adamw")
    if optimizer not in ("adamw", "sgd"):
        raise RecipeError(f"option optimizer = {optimizer!r} is not understood; it is adamw or sgd")
    return Plan(
        epochs=int(number(options, "epochs", epochs, low=1, high=10_000)),
        lr=number(options, "lr", lr, low=1e-8, high=10),
        batch=int(number(options, "batch", 32, low=2, high=65_536)),
        optimizer=optimizer,
        soft=number(options, "soft", soft, low=0, high=1),
        temperature=number(options, "temperature", 2.0, low=0.1, high=100),
    )


def labels_of(context: Context) -> Any:
    """As a tensor: int64 for classes, float32 for values. Raises RecipeError."""
    labels = context.training.labels
    if labels is None:
        raise RecipeError("it learns from labels, and the data has none; add an array named labels")
    if labels.dtype.kind not in "biuf":
        raise RecipeError(f"labels of type {labels.dtype} cannot be learnt; whole numbers are classes, floats are values")
    return torch.tensor(labels.astype("float32" if labels.dtype.kind == "f" else "int64"))


@contextmanager
def reproducible(*, seed: int, threads: int) -> Iterator[None]:
    """Seeds torch, and has it compute with so many threads, within this block."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def fit(
    module: Any, of: Trainable, labels: Any, plan: Plan, context: Context, *, after_step: Callable[[], None] = lambda: None
) -> float:
    """Train in place; the weights of the epoch with the least validation loss stay, or those of the start. Gives that loss.

    `after_step` is called whenever weights have changed. Raises RecipeError.
    """
    loss_of = _loss(of.answers, labels, plan)
    order = torch.randperm(len(labels))
    held = max(1, int(len(order) * plan.held))
    checked, learnt = order[:held], order[held:]
    if len(learnt) < 2:
        raise RecipeError(f"{len(labels)} examples are too few to learn from")
    weights = [one for one in module.parameters() if one.requires_grad]
    optimizer = _optimizer(weights, plan)
    steps = plan.epochs * len(_batches(learnt, plan.batch))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    best, kept, since = _validate(module, of, loss_of, checked), copy.deepcopy(module.state_dict()), 0
    for epoch in range(1, plan.epochs + 1):
        module.train()
        for chosen in _shuffled(learnt, plan.batch, of.lengths):
            loss = loss_of(first(module(*of.rows(chosen))), chosen)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            after_step()
        now = _validate(module, of, loss_of, checked)
        context.tell(f"epoch {epoch} of {plan.epochs}: validation loss {now:.4f}")
        if now < best:
            best, kept, since = now, copy.deepcopy(module.state_dict()), 0
        elif (since := since + 1) >= plan.patience:
            break
    module.load_state_dict(kept)
    module.eval()
    return best


def loss_on(module: Any, of: Trainable, labels: Any, plan: Plan, rows: Any) -> float:
    """Of these examples, as `fit` computes it; infinite if it is no number."""
    return _validate(module, of, _loss(of.answers, labels, plan), rows)


def _optimizer(weights: list[Any], plan: Plan) -> Any:
    if plan.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=plan.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(weights, lr=plan.lr)


def _batches(order: Any, size: int) -> list[Any]:
    """Without a last one of a single row, of which batch normalisation has no variance."""
    return [part for part in torch.split(order, size) if len(part) > 1]


def _shuffled(learnt: Any, size: int, lengths: Any) -> list[Any]:
    """Batches at random; with `lengths`, of examples that are about as long, so that little of them is padding."""
    order = learnt[torch.randperm(len(learnt))]
    if lengths is None:
        return _batches(order, size)
    alike = [part[torch.argsort(lengths[part], stable=True)] for part in torch.split(order, size * _SORTED)]
    batches = _batches(torch.cat(alike), size)
    return [batches[place] for place in torch.randperm(len(batches))]


def _validate(module: Any, of: Trainable, loss_of: Callable[[Any, Any], Any], checked: Any) -> float:
    module.eval()
    with torch.no_grad():
        parts = [
            loss_of(first(module(*of.rows(part))), part) * len(part)
            for part in torch.split(checked if of.lengths is None else checked[torch.argsort(of.lengths[checked])], _AT_ONCE)
        ]
    total = float(sum(parts)) / len(checked)
    return total if total == total else float("inf")


def _loss(answers: Any, labels: Any, plan: Plan) -> Callable[[Any, Any], Any]:
    """By what labels are: cross-entropy for classes, squared error for values. Of answers that are probabilities, the
    logarithms are the scores.
    """
    if labels.is_floating_point():
        if labels.numel() != answers.numel():
            raise RecipeError(f"labels of shape {tuple(labels.shape)} do not fit answers of shape {tuple(answers.shape)}")
        return lambda got, rows: _squared(got, labels[rows].reshape(got.shape), answers[rows], plan.soft)
    if labels.numel() == answers.numel():
        return _of_two(answers, labels, plan)
    classes = answers.shape[-1]
    if labels.numel() * classes != answers.numel():
        raise RecipeError(f"labels of shape {tuple(labels.shape)} do not fit answers of shape {tuple(answers.shape)}")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise RecipeError(f"labels go from {int(labels.min())} to {int(labels.max())}; the model tells {classes} classes apart")
    scores = _scores if _are_probabilities(answers) else _as_they_are
    taught = torch.log_softmax(scores(answers).reshape(len(answers), -1, classes) / plan.temperature, -1)

    def loss(got: Any, rows: Any) -> Any:
        given = scores(got).reshape(-1, classes)
        hard = F.cross_entropy(given, labels[rows].reshape(-1))
        soft = F.kl_div(
            torch.log_softmax(given / plan.temperature, -1),
            taught[rows].reshape(-1, classes),
            log_target=True,
            reduction="batchmean",
        )
        return (1 - plan.soft) * hard + plan.soft * plan.temperature**2 * soft

    return loss


def _of_two(answers: Any, labels: Any, plan: Plan) -> Callable[[Any, Any], Any]:
    """One answer for each label, which is 0 or 1."""
    if int(labels.min()) < 0 or int(labels.max()) > 1:
        raise RecipeError("the model gives one number for each label, so labels must be 0 and 1, or floats")
    sure = bool(((answers >= 0) & (answers <= 1)).all())
    wanted = (1 - plan.soft) * labels.reshape(answers.shape) + plan.soft * (answers if sure else torch.sigmoid(answers))
    function = F.binary_cross_entropy if sure else F.binary_cross_entropy_with_logits
    return lambda got, rows: function(got, wanted[rows])


def _squared(got: Any, wanted: Any, taught: Any, soft: float) -> Any:
    return (1 - soft) * F.mse_loss(got, wanted) + soft * F.mse_loss(got, taught)


def _are_probabilities(answers: Any) -> bool:
    return bool((answers >= 0).all() and torch.allclose(answers.sum(-1), torch.ones(()), atol=1e-3))


def _scores(probabilities: Any) -> Any:
    return probabilities.clamp_min(_SMALLEST).log()


def _as_they_are(scores: Any) -> Any:
    return scores
