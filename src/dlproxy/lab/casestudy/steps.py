"""dlproxy's configuration for the shop: each step of the study is a change of it with a name, alone or on top of others.

Called by run.py and page.py. Not aware of: servers, load, what came of it.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from dlproxy.lab.tune.search.toml import toml_value

FASTAPI, ALONE, WHOLE = "FastAPI", "dlproxy", "all steps"  # sides: the shop's own server, no step, every step
NAME = "upload"  # of the pipeline that clients ask
LIGHT = "upload-light"
SIZE = 64
WORDS = 12  # of a text, filled up
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
    """The shop's models; a step for which there is none is left out. `accuracy`: of each of `files`, where it is known, on
    pictures that none was trained on. `threshold`: the lead of the likeliest category over the next from which the
    classifier's answer stands. `tokenizer`: of a classifier that takes words, too.
    """

    classifier: Path
    compressed: Path | None = None
    light: Path | None = None
    partners: tuple[Path, ...] = ()
    accuracy: Mapping[str, float] = {}
    threshold: float = 0.5
    tokenizer: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """All of them, by names that differ."""
        known = {"classifier": self.classifier, "compressed": self.compressed, "light": self.light}
        return {name: path for name, path in known.items() if path is not None} | {path.stem: path for path in self.partners}

    def lighter(self, steps: Collection[str]) -> Path | None:
        """Than the classifier that these steps serve."""
        return self.light if "compression" in steps else self.compressed or self.light


def possible(goods: Goods, agent: Path | None) -> tuple[str, ...]:
    """The steps for which there is what they need, in their order."""
    without = set() if agent is not None else {"agent"}
    without |= set() if goods.compressed is not None else {"compression"}
    without |= set() if goods.lighter({"compression"} - without) is not None else {"variants"}
    without |= set() if goods.partners else {"ensemble"}
    return tuple(name for name in NAMES if name not in without)


def ladder(names: Sequence[str]) -> list[tuple[str, frozenset[str]]]:
    """The sides of the ablation, with the steps of each: dlproxy alone, each by itself, and each on top of those before."""
    alone = [(f"only {name}", _with_needed({name})) for name in names]
    added = [(f"+ {name}", frozenset(names[: number + 1])) for number, name in enumerate(names) if number]
    return [(ALONE, frozenset()), *alone, *added]


def _with_needed(steps: set[str]) -> frozenset[str]:
    """An agent is a policy of the autopilot."""
    return frozenset(steps | ({"autopilot"} if "agent" in steps else set()))


def configuration(steps: Collection[str], goods: Goods, *, objective_ms: float, agent: Path | None = None) -> Tables:
    """The tables of dlproxy.toml, by their headings."""
    slo = f"p99={objective_ms:g}ms"
    main = (goods.compressed if "compression" in steps else None) or goods.classifier
    light = goods.lighter(steps)
    tables: Tables = {"models.classifier": _model(main, goods, steps, slo)}
    if "variants" in steps and light is not None:
        tables["models.classifier"]["variants"] = ["light"]
        tables["models.light"] = _model(light, goods, steps, slo)
    if "ensemble" in steps:
        tables |= {f"models.{path.stem}": _model(path, goods, steps, slo) for path in goods.partners}
    tables |= _pipeline(NAME, goods, partners="ensemble" in steps)
    whole = tables[f"pipelines.{NAME}"]
    whole |= {"slo": slo} if "scheduling" in steps else {}
    whole |= {"cache": "on"} if "cache" in steps else {}
    if {"ensemble", "variants"} <= set(steps):
        tables |= _pipeline(LIGHT, goods, partners=False)
        tables[f"pipelines.{LIGHT}"] |= {"slo": slo} if "scheduling" in steps else {}
        whole["variants"] = [LIGHT]
    if "autopilot" in steps:
        tables["autopilot"] = {"mode": "on"}
        if "agent" in steps and agent is not None:
            tables["autopilot"]["policy"] = str(agent)
    return tables


def _model(path: Path, goods: Goods, steps: Collection[str], slo: str) -> dict[str, Any]:
    table: dict[str, Any] = {"path": str(path)}
    known = [goods.accuracy[name] for name, file in goods.files.items() if file == path and name in goods.accuracy]
    if known:
        table["accuracy"] = round(known[0], 4)
    if "batching" not in steps:
        table["max_batch"] = 1
    if "scheduling" not in steps:
        table["discipline"] = "fcfs"
    if {"scheduling", "autopilot"} & set(steps):
        table["slo"] = slo
    if "autoscaling" in steps:
        table |= {"threads": 1, "autoscale": "in-flight", "forecast": "trend"}
    return table


def _pipeline(name: str, goods: Goods, *, partners: bool) -> Tables:
    """JPEG in, maybe with a text, category out; with partners of the classifier where it is unsure."""
    step = f"pipelines.{name}.steps"
    tables: Tables = {
        f"pipelines.{name}": {"inputs": {"jpeg": "BYTES[1]"}, "outputs": {"category": "best.index"}},
        f"{step}.decode": {"call": "image.decode", "inputs": {"image": "jpeg"}},
        f"{step}.resize": {"call": "image.resize", "inputs": {"image": "decode.image"}, "options": {"size": SIZE}},
        f"{step}.pixels": {"call": "image.normalise", "inputs": {"image": "resize.image"}},
        f"{step}.classify": {"model": "classifier", "inputs": {TAKES: "pixels.image"}},
    }
    if goods.tokenizer is not None:
        tables[f"pipelines.{name}"]["inputs"]["text"] = "BYTES[1]"
        options = {"file": str(goods.tokenizer), "max_length": WORDS, "multiple_of": WORDS}
        tables[f"{step}.tokens"] = {"call": "text.tokenize", "inputs": {"text": "text"}, "options": options}
        tables[f"{step}.classify"]["inputs"]["words"] = "tokens.input_ids"
    scores = f"classify.{SCORES}"
    if partners:
        asked = {"when": "sure.unsure"}
        options = {"threshold": goods.threshold, "by": "margin"}
        tables[f"{step}.sure"] = {"call": "combine.confidence", "inputs": {"own": scores}, "options": options}
        others = {path.stem.replace("-", "_"): path.stem for path in goods.partners}
        tables |= {
            f"{step}.{name}": {"model": model, "inputs": {TAKES: "pixels.image"}, **asked} for name, model in others.items()
        }
        answers = {"own": scores, **{name: f"{name}.{SCORES}" for name in others}}
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
