"""An experiment of kind multitask: heads of several tasks on one trunk, beside a trunk of the same size for each task.

Called by lab/learn/train.py. Not aware of: how a loss is descended.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import torch
from msgspec import Meta, Struct
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F  # noqa: N812 # as everybody calls it

from dlproxy.compress.recipes.torch.training import reproducible
from dlproxy.lab.learn.experiment import Experiment, LearnError, Place, Run, settings
from dlproxy.lab.learn.networks import data as sets
from dlproxy.lab.learn.networks.data import Data, Places, Scale
from dlproxy.lab.learn.networks.export import export
from dlproxy.lab.learn.networks.fit import How, Whole, fit
from dlproxy.lab.learn.networks.kinds import NETWORKS, Make
from dlproxy.lab.learn.networks.training import TAKES

MEASURES = 10  # columns of breast cancer: the means; the next ten are their errors, and then come the largest values
LARGEST_AREA = 23


class Task(Struct, frozen=True):
    """`targets`: whole numbers below `classes`, [n]; or, if that is 0, values [n, width]."""

    targets: NDArray[Any]
    classes: int = 0

    @property
    def width(self) -> int:
        """Of the head's answer."""
        return self.classes or int(self.targets.shape[1])


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tasks`: of TASKS of the data, learnt together, with the weights of their losses. `examples`: so many are learnt from, 0:
    all. `width`: of what the trunk gives the heads; `how`: the training, of all alike.
    """

    data: Literal["digits", "cancer"]
    network: Literal["cnn", "mlp"]
    sizes: tuple[Whole, ...]
    width: Whole
    tasks: dict[str, Annotated[float, Meta(gt=0)]]
    how: How
    examples: Annotated[int, Meta(ge=0)] = 0


class Branched(nn.Module):  # type: ignore[misc]
    """[n, ...] to the answers of all heads beside each other, [n, the sum of their widths]."""

    def __init__(self, trunk: nn.Module, width: int, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        self.trunk = nn.Sequential(trunk, nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(width, task.width) for name, task in tasks.items()})

    def forward(self, given: Any) -> Any:
        known = self.trunk(given)
        return torch.cat([head(known) for head in self.heads.values()], 1)


class Served(nn.Module):  # type: ignore[misc]
    """From raw inputs to an answer for each task: probabilities of classes, or values in their own unit."""

    def __init__(self, network: Branched, scale: Scale, tasks: Mapping[str, Task], scales: Mapping[str, Scale]) -> None:
        super().__init__()
        self.network, self.tasks = network, tasks
        self.register_buffer("mean", torch.from_numpy(scale.mean))
        self.register_buffer("deviation", torch.from_numpy(scale.deviation))
        self.back = {name: (torch.from_numpy(one.mean), torch.from_numpy(one.deviation)) for name, one in scales.items()}

    def forward(self, given: Any) -> tuple[Any, ...]:
        found = parted(self.network((given - self.mean) / self.deviation), self.tasks)
        return tuple(
            answer.softmax(1) if task.classes else answer * self.back[name][1] + self.back[name][0]
            for (name, task), answer in zip(self.tasks.items(), found, strict=True)
        )


def _of_digits(data: Data) -> tuple[Data, dict[str, Task]]:
    digit = data.targets
    flat = data.inputs.reshape(len(data), -1)
    return data, {
        "digit": Task(digit, 10),
        "odd": Task(digit % 2, 2),
        "above four": Task((digit > 4).astype(np.int64), 2),
        "reconstruction": Task(flat),
    }


def _of_cancer(data: Data) -> tuple[Data, dict[str, Task]]:
    """The means alone are seen: what the largest nucleus measures has to be found."""
    seen = Data(
        name=data.name, kind=data.kind, inputs=data.inputs[:, :MEASURES].copy(), targets=data.targets, classes=data.classes
    )
    return seen, {"benign": Task(data.targets, 2), "largest area": Task(data.inputs[:, LARGEST_AREA : LARGEST_AREA + 1])}


TASKS: Mapping[str, Callable[[Data], tuple[Data, dict[str, Task]]]] = MappingProxyType(
    {"digits": _of_digits, "cancer": _of_cancer}
)


def parted(found: Any, tasks: Mapping[str, Task]) -> list[Any]:
    """Answers, or targets, of all tasks beside each other, one by one."""
    parts: list[Any] = list(found.split([task.width for task in tasks.values()], 1))
    return parts


def train(experiment: Experiment, place: Place) -> Run:
    """One seed, which says which fifth is held out: all tasks on one trunk (model.onnx, an output for each), then each alone.

    Raises LearnError.
    """
    wanted: Settings = settings(experiment, Settings)
    data, known = TASKS[wanted.data](sets.load(wanted.data))
    if unknown := [name for name in wanted.tasks if name not in known]:
        raise LearnError(f"{experiment.name}: settings: there is no task {', '.join(unknown)}; there are {', '.join(known)}")
    tasks = {name: known[name] for name in wanted.tasks}
    figures: dict[str, float] = {}
    with reproducible(seed=place.seed, threads=place.threads):
        learnt, held_out = sets.fold(data, place.seed)
        if 0 < wanted.examples < len(learnt):
            learnt = sets.split(data, learnt, wanted.examples / len(learnt), seed=place.seed)[1]
        rows = torch.from_numpy(data.inputs[held_out])
        together = taught(data, learnt, tasks, wanted)
        for name, task in tasks.items():
            alone = taught(data, learnt, {name: task}, wanted)
            for way, network in (("together", together), ("alone", alone)):
                answer = dict(zip(network.tasks, _asked(network, rows), strict=True))[name]
                figures[f"{name}, {way}"] = measured(task, held_out, answer)
            place.tell(name)
    takes = TAKES[data.kind]
    export(together, place.folder / "model.onnx", [rows], inputs=[takes], outputs=[name.replace(" ", "_") for name in tasks])
    kept: dict[str, Any] = {takes: data.inputs[held_out], "label": data.targets[held_out]}
    np.savez_compressed(place.folder / "heldout.npz", **kept)
    return Run(seed=place.seed, figures=figures)


def taught(data: Data, learnt: Places, tasks: Mapping[str, Task], wanted: Settings) -> Served:
    """A trunk with these heads. The loss is the sum of theirs, by their weights: cross-entropy, or squared error of values that
    have a deviation of 1.
    """
    scale = sets.scale(data, learnt)
    scales = {name: sets.scale_of(task.targets[learnt]) for name, task in tasks.items() if not task.classes}
    trunk = NETWORKS[wanted.network].make(Make(shape=data.inputs.shape[1:], sizes=wanted.sizes, outputs=wanted.width))
    served = Served(Branched(trunk, wanted.width, tasks), scale, tasks, scales)
    columns = [_column(task, scales.get(name), learnt) for name, task in tasks.items()]

    def loss(found: Any, targets: Any) -> Any:
        return sum(
            wanted.tasks[name] * (F.cross_entropy if task.classes else F.mse_loss)(answer, target)
            for (name, task), answer, target in zip(tasks.items(), parted(found, tasks), parted(targets, tasks), strict=True)
        )

    inputs = (torch.from_numpy(data.inputs[learnt]) - served.mean) / served.deviation
    fit(served.network, inputs, torch.cat(columns, 1), loss, wanted.how)
    served.eval()
    return served


def measured(task: Task, places: Places, answer: NDArray[np.float32]) -> float:
    """Accuracy, or the share of the values' variance that is explained."""
    if task.classes:
        return float((answer.argmax(1) == task.targets[places]).mean())
    true = task.targets[places]
    return 1.0 - float(np.square(answer - true).sum() / np.square(true - true.mean(0)).sum())


def _column(task: Task, scale: Scale | None, places: Places) -> Any:
    """Targets as the loss wants them: classes as shares, as cross-entropy takes them, too."""
    if scale is None:
        return F.one_hot(torch.from_numpy(task.targets[places]), task.classes).float()
    return torch.from_numpy((task.targets[places] - scale.mean) / scale.deviation)


def _asked(network: Served, rows: Any) -> list[NDArray[np.float32]]:
    network.eval()
    with torch.no_grad():
        return [answer.numpy() for answer in network(rows)]
