"""An experiment of kind robust: a network before and after adversarial training, and how right both are under attack.

Called by lab/learn/train.py; `hardened` by whoever trains a network so. Not aware of: how an attack works.
"""

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
import torch
from msgspec import Meta, Struct
from torch import nn
from torch.nn import functional as F  # noqa: N812 # as everybody calls it

from dlproxy.compress.recipes.torch.training import reproducible
from dlproxy.lab.learn.experiment import Experiment, Place, Run, settings
from dlproxy.lab.learn.networks import data as sets
from dlproxy.lab.learn.networks.data import Data, Places
from dlproxy.lab.learn.networks.export import Served, export
from dlproxy.lab.learn.networks.fit import Curves, How, Whole, fit
from dlproxy.lab.learn.networks.kinds import NETWORKS, Make
from dlproxy.lab.learn.networks.training import TAKES
from dlproxy.lab.learn.robust.attacks import Budget, accuracy, fgsm, noise, pgd

Positive = Annotated[float, Meta(gt=0)]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`epsilon`: what is trained against, by PGD of `train_steps`; `epsilons`, `steps`, `restarts`: what is measured under.
    Epsilon is in units of the pixels, 0 to `high`. `examples`: so many are learnt from and measured by, 0: all.
    """

    network: Literal["cnn", "mlp"]
    sizes: tuple[Whole, ...]
    how: How
    hardened: How
    epsilon: Positive = 2.0
    train_steps: Whole = 5
    epsilons: tuple[Positive, ...] = (1.0, 2.0, 3.0)
    steps: Whole = 20
    restarts: Whole = 2
    high: Positive = 16.0
    examples: Annotated[int, Meta(ge=0)] = 0
    data: Literal["digits"] = "digits"

    def budget(self, epsilon: float, *, restarts: int = 0) -> Budget:
        """Of what is measured, with `restarts` in place of its own unless 0."""
        return Budget(epsilon=epsilon, steps=self.steps, restarts=restarts or self.restarts, high=self.high)


def train(experiment: Experiment, place: Place) -> Run:
    """One seed, which says which fifth is held out. model.onnx is the hardened network, plain.onnx the other."""
    wanted: Settings = settings(experiment, Settings)
    data = sets.load(wanted.data)
    with reproducible(seed=place.seed, threads=place.threads):
        learnt, held_out = sets.fold(data, place.seed)
        if 0 < wanted.examples < len(learnt):
            learnt = sets.split(data, learnt, wanted.examples / len(learnt), seed=place.seed)[1]
            held_out = held_out[: wanted.examples]
        plain, other = (taught(data, learnt, wanted)[0] for _ in range(2))
        hardened, curves = taught(data, learnt, wanted, against=wanted.epsilon)
        rows, labels = torch.from_numpy(data.inputs[held_out]), torch.from_numpy(data.targets[held_out])
        figures: dict[str, float] = {}
        foreign = {
            epsilon: pgd(logits_of(other), rows, labels, wanted.budget(epsilon, restarts=1)) for epsilon in wanted.epsilons
        }
        for name, served in (("plain", plain), ("hardened", hardened)):
            figures |= {f"{name}, {what}": value for what, value in attacked(served, foreign, rows, labels, wanted).items()}
            place.tell(f"{name}: attacked")
    takes = TAKES[data.kind]
    for name, served in (("model", hardened), ("plain", plain)):
        export(served, place.folder / f"{name}.onnx", [rows], inputs=[takes], outputs=["probabilities"])
    kept: dict[str, Any] = {takes: data.inputs[held_out], "label": data.targets[held_out]}
    np.savez_compressed(place.folder / "heldout.npz", **kept)
    return Run(seed=place.seed, figures=figures, curves={"hardened, training loss": curves["training loss"]})


def taught(data: Data, learnt: Places, wanted: Settings, *, against: float = 0.0) -> tuple[Served, Curves]:
    """`against`: the epsilon of adversarial training (Madry et al., 2018): it learns from what deceives it most just then."""
    view = data.inputs.shape[1:] if NETWORKS[wanted.network].view == "image" else (prod(data.inputs.shape[1:]),)
    network = NETWORKS[wanted.network].make(Make(shape=view, sizes=wanted.sizes, outputs=data.classes))
    served = Served(network, sets.scale(data, learnt), view=view)
    inputs = served.seen(torch.from_numpy(data.inputs[learnt]))
    seen = float(served.seen(torch.full((1, *data.inputs.shape[1:]), wanted.high)).max())  # of the highest pixel
    budget = Budget(epsilon=against / wanted.high * seen, steps=wanted.train_steps, restarts=1, high=seen)

    def deceive(rows: Any, labels: Any) -> Any:
        network.eval()
        found = pgd(network, rows, labels, budget)
        network.train()
        return found

    how = wanted.hardened if against else wanted.how
    curves = fit(
        network, inputs, torch.from_numpy(data.targets[learnt]), F.cross_entropy, how, augment=deceive if against else None
    )
    served.eval()
    return served, curves


def attacked(served: Served, foreign: Mapping[float, Any], rows: Any, labels: Any, wanted: Settings) -> dict[str, float]:
    """Accuracy as it is and under each attack. `foreign`: by epsilon, what deceives another network that was trained alike."""
    network = logits_of(served)
    figures = {"clean": accuracy(network, rows, labels)}
    for epsilon in wanted.epsilons:
        budget = wanted.budget(epsilon)
        figures |= {
            f"noise {epsilon:g}": accuracy(network, noise(rows, budget), labels),
            f"fgsm {epsilon:g}": accuracy(network, fgsm(network, rows, labels, budget), labels),
            f"pgd {epsilon:g}": accuracy(network, pgd(network, rows, labels, budget), labels),
            f"transfer {epsilon:g}": accuracy(network, foreign[epsilon], labels),
        }
    anything = pgd(network, rows, labels, wanted.budget(wanted.high, restarts=1))
    return figures | {f"pgd {wanted.high:g}": accuracy(network, anything, labels)}


def logits_of(served: Served) -> Any:
    """Of raw rows, whose pixels are as clients send them."""
    network: nn.Module = served.network
    return lambda rows: network(served.seen(rows))
