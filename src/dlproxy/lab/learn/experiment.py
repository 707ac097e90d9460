"""What can be trained: one TOML file each, ours in experiments/, users' anywhere. Called by cli/learn.py and benchmarks/learn.

Not aware of: torch, what the kinds do.
"""

import tomllib
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from dlproxy.lab.learn.parallel.workers import Workers

OURS = Path(__file__).parent / "experiments"


class LearnError(Exception):
    """The user can mend it; the text says how."""


class Experiment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file. `about`: in a sentence. `kind`: of KINDS, which reads `settings`. It is trained with the seeds 1 to `seeds`."""

    kind: str
    about: str
    seeds: int = 5
    settings: dict[str, Any] = {}
    name: str = ""


class Run(Struct, kw_only=True):
    """What one seed gave. `figures`: measured on data that it was not trained on; `curves`: a value for each epoch or step."""

    seed: int
    figures: dict[str, float]
    curves: dict[str, list[float]] = {}
    seconds: float = 0.0


class Place(Struct, frozen=True, kw_only=True):
    """Where a seed is trained. Its model goes to `folder`/model.onnx; what a run that is interrupted needs again, beside it.
    `workers`: who compute its gradients, where this process does not alone.
    """

    folder: Path
    seed: int
    threads: int
    tell: Callable[[str], None]
    workers: "Workers | None" = None


Train = Callable[[Experiment, Place], Run]


_TORCH = ("torch", "onnx", "onnxscript")


class Kind(Struct, frozen=True):
    """`at`: module:function below this package, a Train, of which nothing is imported before it is needed."""

    what: str
    at: str
    needs: tuple[str, ...] = _TORCH

    def train(self) -> Train:
        """Raises LearnError."""
        if missing := [package for package in self.needs if find_spec(package) is None]:
            raise LearnError(f"this needs {', '.join(missing)}: pip install 'dlproxy[learn]'")
        module, _, function = self.at.partition(":")
        train: Train = getattr(import_module(f"dlproxy.lab.learn.{module}"), function)
        return train


_SETS = (*_TORCH, "sklearn")  # whose data sets are learnt from
_AGENT = (*_TORCH, "gymnasium", "stable_baselines3")
KINDS = MappingProxyType(
    {
        "network": Kind("a network on a data set that ships with a package", "networks.training:train", _SETS),
        "ensemble": Kind("several networks, combined in three ways", "combine.ensemble:train", _SETS),
        "transfer": Kind("a network that goes on from what it learnt of other classes", "combine.transfer:train", _SETS),
        "multitask": Kind("several tasks on one trunk", "combine.multitask:train", _SETS),
        "robust": Kind("a network trained against inputs that are made to deceive it", "robust.hardened:train", _SETS),
        "guard": Kind("what tells inputs unlike those that a network was trained on", "robust.guarded:train", (*_SETS, "PIL")),
        "forecast": Kind("forecasts of arrivals, for autoscaling", "forecast.training:train"),
        "anomaly": Kind("a detector of faults in telemetry, on scenarios of the simulator", "anomalies.training:train", _SETS),
        "synthesis": Kind("load like a recorded one, by a network", "synthesis.training:network"),
        "fit": Kind("load like a recorded one, by a fitted process", "synthesis.training:fit", ()),
        "service": Kind("service times by what a request is", "service.training:train"),
        "agent": Kind("an agent that turns the autopilot's knobs", "agent.training:train", _AGENT),
        "batching": Kind("an agent on the batching problem, whose optimum is known", "agent.batching:train", _AGENT),
    }
)


def ours() -> Iterator[Experiment]:
    """Those that come with dlproxy, by name."""
    for path in sorted(OURS.glob("*.toml")):
        yield read(path)


def find(name: str) -> Experiment:
    """One of ours, or a file. Raises LearnError."""
    path = OURS / f"{name}.toml"
    if path.is_file():
        return read(path)
    if not name.endswith(".toml"):
        known = sorted(path.stem for path in OURS.glob("*.toml"))
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}, and files that end in .toml"
        raise LearnError(f"there is no experiment '{name}'; {hint}")
    return read(Path(name))


def read(path: Path) -> Experiment:
    """Raises LearnError."""
    try:
        found = msgspec.convert({"name": path.stem, **tomllib.loads(path.read_text("utf-8"))}, Experiment)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise LearnError(f"{path}: {error}") from error
    if found.kind not in KINDS:
        raise LearnError(f"{path}: there is no kind '{found.kind}'; there are {', '.join(KINDS)}")
    if found.seeds < 1:
        raise LearnError(f"{path}: seeds must be 1 or more")
    return found


def settings(experiment: Experiment, type_: type[Any]) -> Any:
    """Of the kind's own type. Raises LearnError."""
    try:
        return msgspec.convert(experiment.settings, type_)
    except msgspec.ValidationError as error:
        raise LearnError(f"{experiment.name}: settings: {error}") from error
