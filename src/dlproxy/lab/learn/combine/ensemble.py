"""An experiment of kind ensemble: networks side by side, averaged, voting, and with a head that knows whom to believe.

Called by lab/learn/train.py. What is measured is computed by the steps that pipelines call. Not aware of: how one is trained.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from msgspec import Meta, Struct, structs
from numpy.typing import NDArray
from torch import nn

from dlproxy.compress.recipes.torch.training import reproducible
from dlproxy.lab.learn.experiment import Experiment, LearnError, Place, Run, settings
from dlproxy.lab.learn.networks import data as sets
from dlproxy.lab.learn.networks import training
from dlproxy.lab.learn.networks.data import Data, Places
from dlproxy.lab.learn.networks.export import export
from dlproxy.lab.learn.networks.fit import How, Whole, answers
from dlproxy.steps.combine import Average, Stack, Vote
from dlproxy.steps.stacking import fit as fit_head

Answers = Mapping[str, NDArray[np.float32]]


class Member(How, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As in an experiment of kind network."""

    network: str
    sizes: tuple[Whole, ...] = ()
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`members`: by name. `alone`: what they must beat, one network that learns from all that members and head together do.
    `examples`: so many are learnt from, 0: all. `held`: the share of them that the head is fitted to, and no member sees.
    """

    data: Literal["digits", "cancer", "wine"]
    members: dict[str, Member]
    alone: Member
    examples: Annotated[int, Meta(ge=0)] = 0
    held: Annotated[float, Meta(gt=0, lt=1)] = 0.2


class Mean(nn.Module):  # type: ignore[misc] # torch is not read
    """Of several networks' answers to the same input."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, given: Any) -> Any:
        return torch.stack([network(given) for network in self.networks]).mean(0)


def train(experiment: Experiment, place: Place) -> Run:
    """One seed, which says which fifth is held out. model.onnx is the average in one file, dlproxy.toml has all three ways.

    Raises LearnError.
    """
    wanted: Settings = settings(experiment, Settings)
    if len(wanted.members) < 2:
        raise LearnError(f"{experiment.name}: settings: an ensemble has two members or more")
    data = sets.load(wanted.data)
    with reproducible(seed=place.seed, threads=place.threads):
        learnt, held_out = sets.fold(data, place.seed)
        if 0 < wanted.examples < len(learnt):
            learnt = sets.split(data, learnt, wanted.examples / len(learnt), seed=place.seed)[1]
        taught, kept = sets.split(data, learnt, wanted.held, seed=place.seed)
        trained = {name: _learnt(data, taught, member, place) for name, member in wanted.members.items()}
        alone = _learnt(data, learnt, wanted.alone, place)
    heads, found = ({name: _asked(data, at, one) for name, one in trained.items()} for at in (kept, held_out))
    fit_head(heads, data.targets[kept]).save(place.folder / "head.npz")
    _write(data, held_out, trained, place.folder)
    combined = together(found, place.folder / "head.npz")
    best = max(heads, key=lambda name: (heads[name].argmax(1) == data.targets[kept]).mean())
    ways = {"alone": _asked(data, held_out, alone), "best member": found[best], **combined}
    figures = {f"{what}, mean member": sum(values) / len(values) for what, values in _of_members(data, held_out, found)}
    for way, shares in ways.items():
        figures |= {f"{what}, {way}": value for what, value in _measured(data, held_out, shares).items()}
    return Run(seed=place.seed, figures=figures | _sizes(trained, alone))


def together(found: Answers, head: Path) -> dict[str, NDArray[Any]]:
    """What the three ways make of members' probabilities: probabilities, or classes [rows] where they vote."""
    return {
        "average": Average()(**found)["scores"],
        "vote": Vote()(**found)["index"],
        "stack": Stack(file=str(head))(**found)["probabilities"],
    }


def _learnt(data: Data, places: Places, member: Member, place: Place) -> training.Trained:
    wanted = training.Settings(data=data.name, **structs.asdict(member))
    return training.learn(data, places, training.checked(wanted, "members"), seed=place.seed)


def _asked(data: Data, places: Places, one: training.Trained) -> NDArray[np.float32]:
    found: NDArray[np.float32] = answers(one.served, torch.from_numpy(data.inputs[places])).numpy()
    return found


def _of_members(data: Data, places: Places, found: Answers) -> list[tuple[str, list[float]]]:
    each = [_measured(data, places, shares) for shares in found.values()]
    return [(what, [figures[what] for figures in each]) for what in each[0]]


def _measured(data: Data, places: Places, found: NDArray[Any]) -> dict[str, float]:
    if found.ndim == 1:
        return {"accuracy": float((found == data.targets[places]).mean())}
    return training.measured(data, places, found)


def _sizes(trained: Mapping[str, training.Trained], alone: training.Trained) -> dict[str, float]:
    def weights(one: training.Trained) -> float:
        return float(sum(weight.numel() for weight in one.served.parameters()))

    return {"weights, members": sum(map(weights, trained.values())), "weights, alone": weights(alone)}


def _write(data: Data, held_out: Places, trained: Mapping[str, training.Trained], folder: Path) -> None:
    rows = torch.from_numpy(data.inputs[held_out])
    one = next(iter(trained.values()))
    names = {"inputs": [one.takes], "outputs": [one.gives]}
    for name, each in trained.items():
        export(each.served, folder / f"{name}.onnx", [rows], **names)
    export(Mean([each.served for each in trained.values()]), folder / "model.onnx", [rows], **names)
    (folder / "dlproxy.toml").write_text(_configuration(one.takes, one.gives, list(trained)), "utf-8")
    kept: dict[str, Any] = {one.takes: data.inputs[held_out], "label": data.targets[held_out]}
    np.savez_compressed(folder / "heldout.npz", **kept)


def _configuration(takes: str, gives: str, members: list[str]) -> str:
    lines = [f'[models.{name}]\npath = "{name}.onnx"\n' for name in members]
    sources = ", ".join(f'{name} = "{name}.{gives}"' for name in members)
    for way, outputs, options in (
        ("average", 'probabilities = "combined.scores"', ""),
        ("vote", 'class = "combined.index", votes = "combined.votes"', ""),
        ("stack", 'probabilities = "combined.probabilities"', 'options = { file = "head.npz" }\n'),
    ):
        lines.append(f'[pipelines.{way}]\ninputs = {{ {takes} = "" }}\noutputs = {{ {outputs} }}\n')
        lines += [f'[pipelines.{way}.steps.{name}]\nmodel = "{name}"\ninputs = {{ {takes} = "{takes}" }}\n' for name in members]
        lines.append(f'[pipelines.{way}.steps.combined]\ncall = "combine.{way}"\ninputs = {{ {sources} }}\n{options}')
    return "\n".join(lines)
