"""An experiment of kind network: what its file says, learnt from one part of the data and measured on another.

Called by lab/learn/train.py; `learn` by other parts, too. Not aware of: how a loss is descended, seeds beside each other.
"""

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from msgspec import Meta, Struct, structs
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812 # as everybody calls it

from dlproxy.compress.recipes.torch.training import reproducible
from dlproxy.lab.learn.experiment import Experiment, LearnError, Place, Run, settings
from dlproxy.lab.learn.networks import data as sets
from dlproxy.lab.learn.networks.augment import Changes, augment
from dlproxy.lab.learn.networks.data import Data, Places
from dlproxy.lab.learn.networks.export import Served, export
from dlproxy.lab.learn.networks.fit import Curves, How, Loss, Whole, answers, fit
from dlproxy.lab.learn.networks.kinds import NETWORKS, Make

if TYPE_CHECKING:
    from dlproxy.lab.learn.parallel.workers import Workers

TAKES = MappingProxyType({"image": "image", "series": "series", "table": "features"})  # a model's input, by the kind of data


class Settings(How, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`data`: of ours, or a file. `sizes`: see kinds.py. `loss`: by the targets if empty. `examples`: so many are learnt from,
    0: all. `validation`: the share of them that is set aside to end by. `folds`: on each is measured in turn; 0: on what is
    always held out. `coarse`: epochs on images of half the height and width before the others (Tan and Le 2021, in two steps),
    which then are at half of the rate.
    """

    data: str
    network: str
    sizes: tuple[Whole, ...] = ()
    loss: Literal["", "cross-entropy", "mse"] = ""
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    augment: Changes = Changes()
    examples: Annotated[int, Meta(ge=0)] = 0
    validation: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    folds: Annotated[int, Meta(ge=0, le=20)] = 0
    coarse: Annotated[int, Meta(ge=0)] = 0


_USUAL = Settings(data="", network="")
_NOT_OF_GANS = ("optimiser", "patience", "schedule", "l1", "l2", "loss", "validation", "folds")


class Trained(Struct, frozen=True):
    """`served`: from raw inputs to answers. `takes`, `gives`: its input's and output's name."""

    served: Served
    curves: Curves
    takes: str
    gives: str


def train(experiment: Experiment, place: Place) -> Run:
    """One seed, on all folds. The first fold's network leaves, and what it was measured on beside it. Raises LearnError."""
    wanted = checked(settings(experiment, Settings), experiment.name)
    data = sets.load(wanted.data)
    if data.classes == 1 and wanted.network != "autoencoder":
        raise LearnError(f"{wanted.data} has one class: give it an array label")
    with reproducible(seed=place.seed, threads=place.threads):
        if wanted.network == "gan":
            from dlproxy.lab.learn.networks.gan import train as train_gan

            return train_gan(data, wanted, place)
        parts = sets.folds(data, wanted.folds, seed=place.seed) if wanted.folds else [sets.held_out(data)]
        found: list[NDArray[Any]] = []
        curves: list[Curves] = []
        for number, (learnt, held) in enumerate(parts, 1):
            one = learn(data, learnt, wanted, seed=place.seed, workers=place.workers)
            if place.workers is not None and not place.workers.leads:
                continue
            rows = torch.from_numpy(data.inputs[held])
            found.append(answers(one.served, rows).numpy())
            curves.append(one.curves)
            if number == 1:
                export(one.served, place.folder / "model.onnx", [rows], inputs=[one.takes], outputs=[one.gives])
                kept: dict[str, Any] = {one.takes: data.inputs[held], "label": data.targets[held]}
                np.savez_compressed(place.folder / "heldout.npz", **kept)
            if len(parts) > 1:
                place.tell(f"fold {number} of {len(parts)}")
    if not found:
        return Run(seed=place.seed, figures={})
    order = np.concatenate([held for _, held in parts])
    figures = measured(data, order, np.concatenate(found))
    if wanted.folds:  # of which none was looked at before
        never = np.isin(order, sets.held_out(data)[1])
        found_there = measured(data, order[never], np.concatenate(found)[never])
        figures |= {f"{name}, held-out fifth": figure for name, figure in found_there.items()}
    if place.workers is not None:
        figures |= place.workers.figures()
    return Run(seed=place.seed, figures=figures, curves=_mean(curves))


def checked(wanted: Settings, name: str) -> Settings:
    """Raises LearnError for what its types cannot say."""
    if wrong := sets.unknown(wanted.data):
        raise LearnError(f"{name}: settings: {wrong}")
    if wanted.network not in NETWORKS:
        raise LearnError(f"{name}: settings: there is no network '{wanted.network}'; there are {', '.join(NETWORKS)}")
    kind = NETWORKS[wanted.network]
    if len(wanted.sizes) < kind.least:
        wrong = f"a network '{wanted.network}' needs {kind.least} sizes or more: {kind.sizes}"
    elif wanted.coarse and wanted.network != "residual":
        wrong = "coarse is for a network that takes images of any size: residual"
    elif wanted.folds == 1:
        wrong = "folds = 1 leaves nothing to learn from: give 2 or more, or 0 for the fifth that is always held out"
    elif wanted.network == "gan" and (
        idle := [name for name in _NOT_OF_GANS if getattr(wanted, name) != getattr(_USUAL, name)]
    ):
        wrong = f"a network 'gan' is two that train each other, by Adam and a loss of their own: leave out {', '.join(idle)}"
    elif wanted.patience and not wanted.validation:
        wrong = "patience needs examples to end by: give validation, 0.1 for a tenth of them"
    if wrong:
        raise LearnError(f"{name}: settings: {wrong}")
    return wanted


def learn(data: Data, learnt: Places, wanted: Settings, *, seed: int, workers: "Workers | None" = None) -> Trained:
    """A network of these examples. Chance is torch's, but for which examples are set aside (`seed`). Raises LearnError."""
    learnt = sets.few(data, learnt, wanted.examples, seed=seed)
    kept: Places | None = None
    if wanted.validation:
        learnt, kept = sets.split(data, learnt, wanted.validation, seed=seed)
    same = wanted.network == "autoencoder"
    scale = sets.scale(data, learnt)
    back = scale if same else None if data.classes else sets.scale_of(data.targets[learnt])
    view = seen_as(data, wanted.network)
    made = Make(shape=view, sizes=wanted.sizes, outputs=data.classes or 1, dropout=wanted.dropout)
    shape = data.inputs.shape[1:] if same else (1,)
    served = Served(NETWORKS[wanted.network].make(made), scale, view=view, back=back, shape=shape)

    def tensors(places: Places) -> tuple[Any, Any]:
        inputs = served.seen(torch.from_numpy(data.inputs[places]))
        if same or back is None:
            return inputs, inputs if same else torch.from_numpy(data.targets[places])
        return inputs, torch.from_numpy((data.targets[places, np.newaxis] - back.mean) / back.deviation)

    curves: Curves = {}
    for halved in (True, False) if wanted.coarse else (False,):
        taught = _smaller(tensors(learnt), halved)
        found = fit(
            served.network,
            *taught,
            _loss(wanted.loss, values=back is not None),
            _how(wanted, halved),
            validation=None if kept is None else _smaller(tensors(kept), halved),
            augment=augment(wanted.augment, data.kind, taught[0].shape[1:] if halved else data.inputs.shape[1:]),
            workers=workers,
        )
        curves = {name: curves.get(name, []) + line for name, line in found.items()}
    gives = "reconstruction" if same else "probabilities" if data.classes else "value"
    return Trained(served.eval(), curves, TAKES[data.kind], gives)


def _how(wanted: Settings, halved: bool) -> How:
    if halved:
        return structs.replace(wanted, epochs=wanted.coarse)
    return structs.replace(wanted, rate=wanted.rate / 2) if wanted.coarse else wanted


def _smaller(rows: tuple[Any, Any], halved: bool) -> tuple[Any, Any]:
    return (F.avg_pool2d(rows[0], 2), rows[1]) if halved else rows


def seen_as(data: Data, network: str) -> tuple[int, ...]:
    """The shape in which this network sees one example; to a series an image is its rows, from the top. Raises LearnError."""
    shape = data.inputs.shape[1:]
    view = NETWORKS[network].view
    if view == "flat":
        return (prod(shape),)
    if view == "series" and data.kind == "image":
        return shape[-2:]
    if view != data.kind:
        raise LearnError(f"a network '{network}' takes {'images' if view == 'image' else 'series'}, and {data.name} has none")
    return shape


def measured(data: Data, places: Places, found: NDArray[Any]) -> dict[str, float]:
    """Of answers to these examples: accuracy and mean cross-entropy in nats, or the error in the unit of what was to be found
    and the share of its variance that is explained.
    """
    if data.classes and found.ndim == 2 and found.shape[1] == data.classes:
        right = found[np.arange(len(places)), data.targets[places]]
        accuracy = float((found.argmax(1) == data.targets[places]).mean())
        return {"accuracy": accuracy, "cross-entropy": float(-np.log(np.maximum(right, 1e-12)).mean())}
    wanted = data.inputs[places] if found.shape[1:] == data.inputs.shape[1:] else data.targets[places].reshape(found.shape)
    squared = float(np.square(found - wanted).mean())
    return {"rmse": squared**0.5, "explained": 1.0 - squared / float(np.square(wanted - wanted.mean(0)).mean())}


def _brier(scores: Any, targets: Any) -> Any:
    """Of classes: what mean squared error means there (Brier 1950)."""
    return F.mse_loss(scores.softmax(-1), F.one_hot(targets, scores.shape[-1]).float())


_OF_CLASSES: Mapping[str, Loss] = MappingProxyType({"": F.cross_entropy, "cross-entropy": F.cross_entropy, "mse": _brier})


def _loss(name: str, *, values: bool) -> Loss:
    if not values:
        return _OF_CLASSES[name]
    if name == "cross-entropy":
        raise LearnError("cross-entropy is a loss of classes, and values are to be found: leave out loss, or set it to mse")
    mse: Callable[[Any, Any], Any] = F.mse_loss
    return mse


def _mean(curves: list[Curves]) -> Curves:
    """Over folds, as far as all of them went."""
    return {name: np.mean(list(zip(*[one[name] for one in curves], strict=False)), 1).tolist() for name in curves[0]}
