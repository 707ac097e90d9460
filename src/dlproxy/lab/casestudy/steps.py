"""dlproxy's configuration for the shop: each step of the study is a change of it with a name, alone or on top of others.

Called by run.py and page.py. Not aware of: servers, load, what came of it.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from dlproxy.lab.tune.search.toml import toml_value

FASTAPI, ALONE, WHOLE = "FastAPI", "dlproxy", "all steps"  # sides: the shop's own server, no step, every step
NAME = "upload"  # of the pipeline that clients ask
LIGHT = "upload-light"
SIZE = 64
SCORES, TAKES = "probabilities", "image"

Tables = dict[str, dict[str, Any]]


class Step(Struct, frozen=True):
    """`does`: in the configuration, in a sentence."""

    name: str
    does: str


STEPS = (
    Step("batching", "requests that wait share a batch: max_batch, which is 1 before"),
    Step("scheduling", "an objective; urgent requests first, what would be late is refused at once: slo, discipline"),
    Step("cache", "answers are remembered, equal requests share one run: cache"),
    Step("compression", "the classifier as `dlproxy compress` made it"),
    Step("variants", "a lighter model answers when there is no time for all, the least urgent first: variants"),
    Step("ensemble", "a cascade: where the classifier is unsure, partners are asked as well, and the mean of all counts"),
    Step("autoscaling", "one instance to one a core, ahead of the load: autoscale, forecast"),
    Step("autopilot", "batches, waits, instances and threads are tuned while it serves: [autopilot] mode"),
    Step("agent", "a trained agent proposes what the autopilot changes: [autopilot] policy"),
)
NAMES = tuple(step.name for step in STEPS)
ELSEWHERE = {
    "pruning, quantisation, fusion, precision": "tried by `dlproxy compress`, a recipe each, and judged by its gate: what it "
    "took is the step compression",
    "GPU": "none is assumed: every side runs on the same cores; `device` is the knob",
    "network": "all sides are asked over the same loopback, a connection for each request under way; the bytes are the same",
    "data-parallel training": "of no effect on serving: benchmarks/learn/PARALLEL.md",
    "model split": "the classifier is too small to be cut: benchmarks/SPLIT.md",
}


class Goods(Struct, frozen=True, kw_only=True):
    """The shop's models. `accuracy`: of each file by its name, on pictures that none was trained on.

    `threshold`: the lead of the likeliest category over the next from which the classifier's answer stands.
    """

    classifier: Path
    compressed: Path
    light: Path
    partners: tuple[Path, ...]
    accuracy: Mapping[str, float]
    threshold: float

    @property
    def files(self) -> dict[str, Path]:
        """All of them, by the names of the models."""
        return {path.stem: path for path in (self.classifier, self.compressed, self.light, *self.partners)}


def ladder(agent: bool) -> list[tuple[str, frozenset[str]]]:
    """The sides of the ablation, with the steps of each: dlproxy alone, each step by itself, and each on top of those before.

    `agent`: whether there is one.
    """
    names = [name for name in NAMES if agent or name != "agent"]
    alone = [(f"only {name}", _with_needed({name})) for name in names]
    added = [(f"+ {name}", frozenset(names[: number + 1])) for number, name in enumerate(names) if number]
    return [(ALONE, frozenset()), *alone, *added]


def everything(agent: bool) -> frozenset[str]:
    """All steps together."""
    return frozenset(name for name in NAMES if agent or name != "agent")


def _with_needed(steps: set[str]) -> frozenset[str]:
    """An agent is a policy of the autopilot."""
    return frozenset(steps | ({"autopilot"} if "agent" in steps else set()))


def configuration(steps: Collection[str], goods: Goods, *, objective_ms: float, agent: Path | None = None) -> Tables:
    """The tables of dlproxy.toml, by their headings."""
    slo = f"p99={objective_ms:g}ms"
    main = goods.compressed if "compression" in steps else goods.classifier
    light = goods.light if "compression" in steps else goods.compressed
    tables: Tables = {"models.classifier": _model(main, goods, steps, slo)}
    if "variants" in steps:
        tables["models.classifier"]["variants"] = ["light"]
        tables["models.light"] = _model(light, goods, steps, slo)
    if "ensemble" in steps:
        tables |= {f"models.{path.stem}": _model(path, goods, steps, slo) for path in goods.partners}
    tables |= _pipeline(NAME, goods if "ensemble" in steps else None)
    whole = tables[f"pipelines.{NAME}"]
    whole |= {"slo": slo} if "scheduling" in steps else {}
    whole |= {"cache": "on"} if "cache" in steps else {}
    if {"ensemble", "variants"} <= set(steps):
        tables |= _pipeline(LIGHT, None)
        tables[f"pipelines.{LIGHT}"] |= {"slo": slo} if "scheduling" in steps else {}
        whole["variants"] = [LIGHT]
    if "autopilot" in steps:
        tables["autopilot"] = {"mode": "on"}
        if "agent" in steps and agent is not None:
            tables["autopilot"]["policy"] = str(agent)
    return tables


def _model(path: Path, goods: Goods, steps: Collection[str], slo: str) -> dict[str, Any]:
    table: dict[str, Any] = {"path": str(path)}
    if path.stem in goods.accuracy:
        table["accuracy"] = goods.accuracy[path.stem]
    if "batching" not in steps:
        table["max_batch"] = 1
    if "scheduling" not in steps:
        table["discipline"] = "fcfs"
    if {"scheduling", "autopilot"} & set(steps):
        table["slo"] = slo
    if "autoscaling" in steps:
        table |= {"threads": 1, "autoscale": "in-flight", "forecast": "trend"}
    return table


def _pipeline(name: str, goods: Goods | None) -> Tables:
    """JPEG in, category out; with goods: partners of the classifier where it is unsure."""
    step = f"pipelines.{name}.steps"
    tables: Tables = {
        f"pipelines.{name}": {"inputs": {"jpeg": "BYTES[1]"}, "outputs": {"category": "best.index"}},
        f"{step}.decode": {"call": "image.decode", "inputs": {"image": "jpeg"}},
        f"{step}.resize": {"call": "image.resize", "inputs": {"image": "decode.image"}, "options": {"size": SIZE}},
        f"{step}.pixels": {"call": "image.normalise", "inputs": {"image": "resize.image"}},
        f"{step}.classify": {"model": "classifier", "inputs": {TAKES: "pixels.image"}},
    }
    scores = f"classify.{SCORES}"
    if goods is not None:
        asked = {"when": "sure.unsure"}
        options = {"threshold": goods.threshold, "by": "margin"}
        tables[f"{step}.sure"] = {"call": "combine.confidence", "inputs": {"own": scores}, "options": options}
        partners = {path.stem.replace("-", "_"): path.stem for path in goods.partners}
        tables |= {
            f"{step}.{name}": {"model": model, "inputs": {TAKES: "pixels.image"}, **asked} for name, model in partners.items()
        }
        answers = {"own": scores, **{name: f"{name}.{SCORES}" for name in partners}}
        tables[f"{step}.mean"] = {"call": "combine.average", "inputs": answers, **asked}
        scores = f"mean.scores | {scores}"
    tables[f"{step}.best"] = {"call": "argmax", "inputs": {"scores": scores}}
    return tables


def as_toml(tables: Tables) -> str:
    """The text of dlproxy.toml."""
    return "\n".join(
        "\n".join([f"[{heading}]", *(f"{_key(name)} = {toml_value(value)}" for name, value in table.items()), ""])
        for heading, table in tables.items()
    )


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
