"""What a guard notices of attacks on the network behind it, those that know of the guard among them; beside a guard that asks
the network itself how sure it is.

Called by guarded.py. Not aware of: how a guard is fitted.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dlproxy.compress.recipes.torch.training import reproducible
from dlproxy.lab.learn.experiment import LearnError, Place, find, settings
from dlproxy.lab.learn.networks.data import Data, Places
from dlproxy.lab.learn.networks.export import Served, export
from dlproxy.lab.learn.networks.fit import answers
from dlproxy.lab.learn.networks.training import TAKES
from dlproxy.lab.learn.robust.attacks import accuracy, fgsm, margins, pgd
from dlproxy.lab.learn.robust.guarded import strangers
from dlproxy.lab.learn.robust.hardened import Settings, logits_of, taught
from dlproxy.steps.guard import Profile

CONFIGURATION = """\
[models.network]
path = "model.onnx"

[pipelines.guarded]
inputs = {{ {takes} = "FP32[-1,{row}]" }}
outputs = {{ probabilities = "network.probabilities", score = "guard.score" }}

[pipelines.guarded.steps.guard]
call = "guard"
inputs = {{ x = "{takes}" }}
options = {{ file = "guard.npz" }}

[pipelines.guarded.steps.network]
model = "network"
inputs = {{ {takes} = "guard.x" }}
"""


def deceived(
    name: str, data: Data, learnt: Places, kept: Places, held_out: Places, profile: Profile, place: Place
) -> dict[str, float]:
    """Trains the network too, and writes it with a pipeline. Raises LearnError."""
    wanted: Settings = settings(find(name), Settings)
    if wanted.data != data.name:
        raise LearnError(f"settings: model: {name} is of {wanted.data}, and the guard of {data.name}")
    with reproducible(seed=place.seed, threads=place.threads):
        served, _ = taught(data, learnt, wanted)
        rows, labels = torch.from_numpy(data.inputs[held_out]), torch.from_numpy(data.targets[held_out])
        figures = _unsure(served, data, kept, held_out, profile.rate, place.seed)
        figures["wrong"] = 1.0 - accuracy(logits_of(served), rows, labels)
        for epsilon in wanted.epsilons:
            figures |= _attacked(served, profile, rows, labels, epsilon, wanted)
        place.tell("attacked")
    takes = TAKES[data.kind]
    export(served, place.folder / "model.onnx", [rows], inputs=[takes], outputs=["probabilities"])
    configuration = CONFIGURATION.format(takes=takes, row=",".join(map(str, profile.row)))
    (place.folder / "dlproxy.toml").write_text(configuration, "utf-8")
    inputs: dict[str, Any] = {takes: data.inputs[held_out], "label": data.targets[held_out]}
    np.savez_compressed(place.folder / "heldout.npz", **inputs)
    return figures


def _attacked(served: Served, profile: Profile, rows: Any, labels: Any, epsilon: float, wanted: Settings) -> dict[str, float]:
    """How often each attack has the network wrong, and how often it is then not refused."""
    network, watched = logits_of(served), excess(profile)
    budget = wanted.budget(epsilon)
    found: dict[str, float] = {}
    for attack, moved in (
        ("fgsm", fgsm(network, rows, labels, budget)),
        ("pgd", pgd(network, rows, labels, budget)),
        ("pgd that knows", pgd(network, rows, labels, budget, watched)),
    ):
        with torch.no_grad():
            wrong = (margins(network(moved), labels) >= 0.0).numpy()
        passed = profile.scores(moved.numpy()) <= profile.threshold
        found |= {
            f"finds {attack} {epsilon:g}": float((~passed).mean()),
            f"wrong by {attack} {epsilon:g}": float(wrong.mean()),
            f"wrong and passed, {attack} {epsilon:g}": float((wrong & passed).mean()),
        }
    return found


def excess(profile: Profile) -> Any:
    """The guard as torch has it, to be attacked: by how much a row's score is above the threshold, and 0 if it is not."""
    means, axes, variances = (torch.from_numpy(one).float() for one in (profile.means, profile.axes, profile.variances))

    def watched(rows: Any) -> Any:
        centred = rows.reshape(len(rows), 1, -1) - means
        within = centred @ axes
        beside = centred - within @ axes.T
        squares = (within**2 / variances).sum(-1) + (beside**2).sum(-1) / profile.noise
        nearest = squares.min(dim=1).values / means.shape[1]
        return torch.relu(nearest.sqrt() - profile.threshold * 0.999)  # as float32 rounds

    return watched


def _unsure(served: Served, data: Data, kept: Places, held_out: Places, rate: float, seed: int) -> dict[str, float]:
    """A guard that refuses what the network is least sure of (Hendrycks and Gimpel, 2017), at the same rate of false alarms."""

    def doubts(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = 1.0 - answers(served, torch.from_numpy(rows)).max(1).values.numpy()
        return found

    usual = np.sort(doubts(data.inputs[kept]))
    threshold = usual[min(int(np.ceil((len(usual) + 1) * (1.0 - rate))), len(usual)) - 1]
    found = {"unsure, false alarms": float((doubts(data.inputs[held_out]) > threshold).mean())}
    for name, strange in strangers(data.inputs[held_out], np.random.default_rng(seed)).items():
        found[f"unsure, finds {name}"] = float((doubts(strange) > threshold).mean())
    return found
