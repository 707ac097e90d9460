"""An experiment of kind transfer: a network that has learnt some classes goes on to others, of which there are few examples.

Called by lab/learn/train.py. Not aware of: how a loss is descended.
"""

import copy
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import torch
from msgspec import Meta, Struct, structs
from torch import nn
from torch.nn import functional as F  # noqa: N812 # as everybody calls it

from dlproxy.compress.recipes.torch.training import reproducible
from dlproxy.lab.learn.experiment import Experiment, LearnError, Place, Run, settings
from dlproxy.lab.learn.networks import data as sets
from dlproxy.lab.learn.networks import training
from dlproxy.lab.learn.networks.data import Data, Places
from dlproxy.lab.learn.networks.export import Served, export
from dlproxy.lab.learn.networks.fit import How, Whole, answers, fit

Way = Literal["frozen", "tuned", "scratch", "pixels"]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`known`: the classes that the backbone learns; the others are new. `examples`: of each new class, as many as are tried.
    `draws`: how often they are drawn anew. `rates` and `steps`: of what is learnt of the new classes, by the way it is learnt.
    """

    known: list[Annotated[int, Meta(ge=0)]]
    backbone: How
    sizes: tuple[Whole, ...]
    examples: list[Whole]
    rates: dict[Way, float]
    steps: Whole = 150
    draws: Whole = 2
    data: Literal["digits"] = "digits"


def frozen(backbone: nn.Module, inputs: Any, labels: Any, how: How, classes: int) -> nn.Module:
    """A new last layer on what the backbone makes of the inputs; nothing else learns."""
    body = copy.deepcopy(backbone[:-1]).eval()
    head = nn.Linear(backbone[-1].in_features, classes)
    fit(head, answers(body, inputs), labels, F.cross_entropy, how)
    return nn.Sequential(*body, head)


def tuned(backbone: nn.Module, inputs: Any, labels: Any, how: How, classes: int) -> nn.Module:
    """A new last layer, and everything below goes on from where the backbone is (Yosinski et al., 2014)."""
    network = nn.Sequential(*copy.deepcopy(backbone[:-1]), nn.Linear(backbone[-1].in_features, classes))
    fit(network, inputs, labels, F.cross_entropy, how)
    return network


def scratch(backbone: nn.Module, inputs: Any, labels: Any, how: How, classes: int) -> nn.Module:
    """The same network, which has learnt nothing before."""
    fresh = copy.deepcopy(backbone)
    for layer in fresh.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return tuned(fresh, inputs, labels, how, classes)


def pixels(_backbone: nn.Module, inputs: Any, labels: Any, how: How, classes: int) -> nn.Module:
    """Softmax regression on the pixels."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(inputs.shape[1:]), classes))
    fit(network, inputs, labels, F.cross_entropy, how)
    return network


WAYS: Mapping[Way, Callable[..., nn.Module]] = MappingProxyType(
    {"frozen": frozen, "tuned": tuned, "scratch": scratch, "pixels": pixels}
)


def train(experiment: Experiment, place: Place) -> Run:
    """One seed, which says which fifth is held out. model.onnx is tuned on the most examples; backbone.onnx knows the others.

    Raises LearnError.
    """
    wanted: Settings = settings(experiment, Settings)
    data = sets.load(wanted.data)
    if missing := [way for way in WAYS if way not in wanted.rates]:
        raise LearnError(f"{experiment.name}: settings: rates has none for {', '.join(missing)}")
    if not 2 <= len(set(wanted.known)) <= data.classes - 2 or max(wanted.known) >= data.classes:
        raise LearnError(
            f"{experiment.name}: settings: known has 2 to {data.classes - 2} of the classes 0 to {data.classes - 1}"
        )
    old, new = only(data, wanted.known), only(data, [label for label in range(data.classes) if label not in wanted.known])
    with reproducible(seed=place.seed, threads=place.threads):
        learnt, held_out = sets.fold(old, place.seed)
        asked = training.Settings(data=data.name, network="cnn", sizes=wanted.sizes, **structs.asdict(wanted.backbone))
        backbone = training.learn(old, learnt, asked, seed=place.seed)
        known = answers(backbone.served, torch.from_numpy(old.inputs[held_out])).numpy()
        figures = {"accuracy, known": training.measured(old, held_out, known)["accuracy"]}
        learnt, held_out = sets.fold(new, place.seed)
        for count in wanted.examples:
            found, network = _tried(new, learnt, held_out, backbone.served, wanted, count)
            figures |= {f"{way}, {count}": value for way, value in found.items()}
            place.tell(f"{count} examples of each class")
    rows = torch.from_numpy(new.inputs[held_out])
    names = {"inputs": [backbone.takes], "outputs": [backbone.gives]}
    export(backbone.served, place.folder / "backbone.onnx", [rows], **names)
    export(_serving(network, backbone.served), place.folder / "model.onnx", [rows], **names)
    kept: dict[str, Any] = {backbone.takes: new.inputs[held_out], "label": new.targets[held_out]}
    np.savez_compressed(place.folder / "heldout.npz", **kept)
    return Run(seed=place.seed, figures=figures)


def only(data: Data, classes: list[int]) -> Data:
    """The examples of these classes, which become 0, 1 and so on in this order."""
    places = np.flatnonzero(np.isin(data.targets, classes))
    numbers = {label: number for number, label in enumerate(classes)}
    targets = np.array([numbers[label] for label in data.targets[places].tolist()], np.int64)
    return structs.replace(data, inputs=data.inputs[places], targets=targets, classes=len(classes))


def few(data: Data, places: Places, count: int) -> Places:
    """So many of each class, by torch's chance."""
    of_class = [places[data.targets[places] == label] for label in range(data.classes)]
    if min(map(len, of_class)) < count:
        raise LearnError(f"settings: examples: there are {min(map(len, of_class))} of a class to learn from, and not {count}")
    return np.concatenate([one[torch.randperm(len(one))[:count].numpy()] for one in of_class])


def _tried(
    new: Data, learnt: Places, held_out: Places, backbone: Served, wanted: Settings, count: int
) -> tuple[dict[str, float], nn.Module]:
    """Accuracy by way, the mean over draws; and the network that was tuned last."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    networks: dict[str, nn.Module] = {}
    rows = backbone.seen(torch.from_numpy(new.inputs[held_out]))
    for _ in range(wanted.draws):
        places = few(new, learnt, count)
        inputs, labels = backbone.seen(torch.from_numpy(new.inputs[places])), torch.from_numpy(new.targets[places])
        for way, taught in WAYS.items():
            epochs = math.ceil(wanted.steps / math.ceil(len(places) / 32))
            how = How(rate=wanted.rates[way], epochs=epochs, schedule="cosine")
            networks[way] = taught(backbone.network, inputs, labels, how, new.classes)
            right = answers(networks[way], rows).argmax(1).numpy() == new.targets[held_out]
            found[way].append(float(right.mean()))
    return {way: sum(each) / len(each) for way, each in found.items()}, networks["tuned"]


def _serving(network: nn.Module, like: Served) -> Served:
    served: Served = copy.deepcopy(like)
    served.network = network
    served.eval()
    return served
