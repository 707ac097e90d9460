"""A cheap model in front of a dear one, which answers only where the cheap one is unsure: whether that pays, and from when on.

Called by cli/cascade.py with what a user asks for. Not aware of: how pipelines run, where results are written.
"""

import json
import os
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from dlproxy import __version__
from dlproxy.compress import CompressError, data, metrics
from dlproxy.compress.child import Limits, Tell, run
from dlproxy.compress.data import Array
from dlproxy.compress.gate import Accuracy, Bar, Finding, Speed, Verdict, on_loss
from dlproxy.compress.manifest import Machine, this_machine
from dlproxy.compress.measure import Answers, Served, Task, answers, drawn_batches, race
from dlproxy.compress.metrics import SUMS_TO_1, Metric
from dlproxy.compress.publish import toml_key
from dlproxy.compress.statistics import Floats
from dlproxy.compress.thresholds import Gain, Validated, best_gain, cross_validated, examples_needed, gain
from dlproxy.instance.runtime.declared import described, written
from dlproxy.message import Signature, TensorSpec
from dlproxy.steps.combine import Confidence
from dlproxy.steps.scores import softmax

FORMAT = "dlproxy cascade report 1"
METRICS = ("accuracy", "agreement")  # of which each example loses a part of its own
By = Literal["margin", "probability", "entropy"]


class Asked(Struct, frozen=True, kw_only=True):
    """`cheap`, `dear`: (name, path) of each. `by`: what the cheap model's confidence is, as combine.confidence has it. `rows`:
    of the larger of two batches. `race_s`: about, for each batch size.
    """

    cheap: tuple[str, Path]
    dear: tuple[str, Path]
    data: Path
    labels: str = ""
    metric: str = ""
    output: str = ""
    bar: Bar = Bar(most_loss=0.005)
    by: By = "margin"
    rows: int = 32
    threads: int = 1
    race_s: float = 5.0
    seed: int = 0


class Report(Struct, frozen=True, kw_only=True):
    """What was found. `cascade`: its answers to examples of which its threshold knew nothing, beside the dear model's;
    `alone`: the cheap model's. `escalated`: the share of examples that the dear one answers, too, by `threshold`, which is
    None where no answer of the cheap one may stand. `folds`: thresholds that were learned without a fold. `speeds`: the cheap
    model's beside the dear one's. `notes`: what one should know who serves it.
    """

    format: str = FORMAT
    cheap: str
    dear: str
    data: str
    sha256: str
    metric: Metric
    by: By
    most_loss: float
    threshold: float | None
    folds: list[float | None]
    escalated: float
    cascade: Accuracy
    alone: Accuracy
    speeds: tuple[Speed, ...]
    gains: tuple[Gain, ...]
    verdict: Verdict
    notes: list[str]
    seed: int
    machine: Machine
    dlproxy: str = __version__


class Found(Struct, frozen=True):
    """`outputs`: the cheap model's output, and the dear one's, of the same meaning. `probabilities`: whether the cheap one's
    are such, as they are.
    """

    asked: Asked
    report: Report
    signatures: tuple[Signature, Signature]
    outputs: tuple[str, str]
    probabilities: bool


class _Measured(Struct):
    """In a process of its own. `labels`: of the examples."""

    labels: Array | None
    cheap: Answers
    dear: Answers
    apart: tuple[str, str]
    speeds: tuple[Speed, ...]


def find(asked: Asked, *, folder: Path, tell: Tell) -> Found:
    """Ask both models all examples, learn and judge. `folder`: for what is temporary. Raises CompressError."""
    metrics.check(asked.metric)
    measured = run(_measure, Limits(folder=folder, threads=asked.threads), tell, asked)
    metric = metrics.choose(asked.metric, labels=measured.labels, outputs=measured.dear.outputs, output=asked.output)
    if metric.name not in METRICS:
        chosen = f" ({metric.why})" if metric.why else ""
        raise CompressError(f"a cascade is of classes and judged by {' or '.join(METRICS)}, not by {metric.name}{chosen}")
    tell(f"judged by {metric.name} of '{metric.output}'" + (f": {metric.why}" if metric.why else ""))
    cheap_output, scores = _scores(measured.cheap, measured.dear.outputs[metric.output], metric.output)
    return _judged(asked, measured, metric, cheap_output, scores)


def _judged(asked: Asked, measured: _Measured, metric: Metric, cheap_output: str, scores: Array) -> Found:
    dear = measured.dear.outputs[metric.output]
    probabilities = _are_probabilities(scores)
    confidence = _confidence(scores if probabilities else softmax(np.asarray(scores, np.float32)), asked.by)
    both: dict[str, Any] = {"labels": measured.labels, "original": {metric.output: dear}}
    lost = metrics.losses(metric, **both, candidate={metric.output: scores})
    validated = cross_validated(confidence, lost, most_loss=asked.bar.most_loss, seed=asked.seed)
    together = np.where(validated.sure[:, None], scores, dear)
    cascade, alone = (
        metrics.compare(metric, **both, candidate={metric.output: outputs}, seed=asked.seed) for outputs in (together, scores)
    )
    escalated = max(int((~validated.sure).sum()), int((~(confidence >= validated.threshold)).sum()))
    gains = tuple(gain(speed, escalated, len(lost)) for speed in measured.speeds)
    report = Report(
        cheap=asked.cheap[0],
        dear=asked.dear[0],
        data=asked.data.name,
        sha256=data.digest(asked.data),
        metric=metric,
        by=asked.by,
        most_loss=asked.bar.most_loss,
        threshold=_finite(validated.threshold),
        folds=[_finite(one) for one in validated.thresholds],
        escalated=escalated / len(lost),
        cascade=cascade,
        alone=alone,
        speeds=measured.speeds,
        gains=gains,
        verdict=_verdict(asked, validated, (confidence, lost), (cascade, alone), measured.speeds, gains),
        notes=_notes(asked, measured, probabilities, dear),
        seed=asked.seed,
        machine=this_machine(asked.threads),
    )
    signatures = measured.cheap.signature, measured.dear.signature
    return Found(asked, report, signatures, (cheap_output, metric.output), probabilities)


def _verdict(
    asked: Asked,
    validated: Validated,
    examples: tuple[Floats, Floats],
    accuracies: tuple[Accuracy, Accuracy],
    speeds: Sequence[Speed],
    gains: Sequence[Gain],
) -> Verdict:
    """What is not known counts against it, and so does a cheap model that needs no other."""
    bar, (cascade, alone) = asked.bar, accuracies
    if on_loss(alone, bar.most_loss)[0]:
        return Verdict("refused", [f"{asked.cheap[0]} alone {on_loss(alone, bar.most_loss)[1]}: serve it without the other"])
    if not isfinite(validated.threshold):
        return Verdict("refused", [_out_of_reach(asked, *examples, speeds)])
    findings = [on_loss(cascade, bar.most_loss), *(_pays(one, bar.least_ratio) for one in gains)]
    against = [why for met, why in findings if not met]
    return Verdict("refused", against) if against else Verdict("accepted", [why for _, why in findings])


def _out_of_reach(asked: Asked, confidence: Floats, lost: Floats, speeds: Sequence[Speed]) -> str:
    """Whether more examples could show what these cannot."""
    slowest, bar = min(speeds, key=lambda speed: speed.ratio), asked.bar
    best = best_gain(confidence, lost, most_loss=bar.most_loss, speed=slowest)
    if best < bar.least_ratio:
        return (
            f"no threshold loses less and pays: on these {len(lost):,} examples themselves the best one makes {best:.2f} times "
            f"the throughput, and {bar.least_ratio:.2f} times is asked for"
        )
    needed = examples_needed(
        confidence, lost, most_loss=bar.most_loss, speed=slowest, least_gain=bar.least_ratio, seed=asked.seed
    )
    would = "and too much is lost already where it is surest" if needed is None else f"about {needed:,} would"
    return f"{len(lost):,} examples cannot show that so little is lost by any threshold: {would}"


def _pays(one: Gain, least: float) -> Finding:
    said = f"{one.ratio:.2f} times the throughput at batch {one.rows} ({one.low:.2f} to {one.high:.2f})"
    if one.ratio < least:
        return False, f"{said}, {least:.2f} times is asked for"
    if one.low <= 1.0:
        return False, f"{said}, which may be chance"
    return True, said


def _notes(asked: Asked, measured: _Measured, probabilities: bool, dear: Array) -> list[str]:
    names = asked.cheap[0], asked.dear[0]
    notes = [
        f"{name} was measured row by row, as dlproxy serves it: {why}"
        for name, why in zip(names, measured.apart, strict=True)
        if why
    ]
    if probabilities != _are_probabilities(dear):
        one, other = names if probabilities else names[::-1]
        notes.append(
            f"{one} gives probabilities and {other} does not: of the cascade's answers only the order of classes counts"
        )
    return notes


def _measure(tell: Tell, asked: Asked) -> _Measured:
    pair = asked.cheap, asked.dear
    task = Task(inputs={}, rows=asked.rows, threads=asked.threads, race_s=asked.race_s, seed=asked.seed)
    tell("loading")
    cheap, dear = (Served(path, task) for _, path in pair)
    dataset = data.read(asked.data, inputs=_inputs(asked, cheap.signature, dear.signature), labels=asked.labels, tell=tell)
    if len(dataset) < data.LEAST_HELD_OUT:
        raise CompressError(f"{len(dataset)} examples are too few to learn and judge by: give {data.LEAST_HELD_OUT} at least")
    found = []
    for (name, _), served in zip(pair, (cheap, dear), strict=True):
        own = {spec.name: dataset.inputs[spec.name] for spec in served.signature.inputs if spec.name in dataset.inputs}
        tell(f"{name}: answering {len(dataset):,} examples")
        try:
            served.look(replace(task, inputs=own))
            found.append(answers(served, replace(task, inputs=own)))
        except CompressError as error:
            raise CompressError(f"{name} {error}") from error
    speeds = []
    for rows in sorted({1, asked.rows}):
        tell(f"racing both, {rows} a batch")
        batches = drawn_batches(replace(task, inputs=dataset.inputs), rows)
        speeds.append(race(dear, cheap, batches, seconds=asked.race_s, seed=asked.seed))
    return _Measured(dataset.labels, found[0], found[1], (cheap.apart, dear.apart), tuple(speeds))


def _inputs(asked: Asked, cheap: Signature, dear: Signature) -> list[TensorSpec]:
    """What the examples hold: all that either model takes. Raises CompressError."""
    specs = {spec.name: spec for spec in dear.inputs}
    for spec in cheap.inputs:
        other = specs.setdefault(spec.name, spec)
        if (spec.dtype, len(spec.shape)) != (other.dtype, len(other.shape)):
            raise CompressError(
                f"input '{spec.name}' is {written(spec)} of {asked.cheap[0]} and {written(other)} of {asked.dear[0]}: "
                "both are asked the same"
            )
    return list(specs.values())


def _scores(cheap: Answers, dear: Array, name: str) -> tuple[str, Array]:
    """The cheap model's output that means the same: of the same name, or its only one."""
    if name not in cheap.outputs and len(cheap.outputs) > 1:
        raise CompressError(f"the cheap model has no output '{name}', and more than one: {', '.join(cheap.outputs)}")
    output = name if name in cheap.outputs else next(iter(cheap.outputs))
    scores = cheap.outputs[output]
    if scores.shape != dear.shape or dear.ndim != 2 or dear.shape[1] < 2 or {scores.dtype.kind, dear.dtype.kind} != {"f"}:
        raise CompressError(
            f"the cheap model's '{output}' is {described(scores)}, the dear one's '{name}' is {described(dear)}: a cascade "
            "takes scores of the same classes from both, two classes or more"
        )
    return output, scores


def _are_probabilities(scores: Array) -> bool:
    rows = np.asarray(scores, np.float64)
    return bool((rows >= 0.0).all() and (np.abs(rows.sum(-1) - 1.0) < SUMS_TO_1).all())


def _confidence(probabilities: Array, by: By) -> Floats:
    """By the step that the pipeline calls, so that what was learned is what is served."""
    found = Confidence(threshold=0.0, by=by)(cheap=np.asarray(probabilities, np.float32))
    return np.asarray(found["confidence"], np.float64)


def _finite(threshold: float) -> float | None:
    return threshold if isfinite(threshold) else None


def configuration(found: Found, folder: Path, name: str) -> str:
    """dlproxy.toml in `folder`, which serves both models and the cascade under this name."""
    asked, report = found.asked, found.report
    cheap, dear = found.signatures
    inputs = {spec.name: written(spec) for signature in (dear, cheap) for spec in signature.inputs}
    lines = [_head(report)]
    for each, path in (asked.cheap, asked.dear):
        place = os.path.relpath(path.resolve(), folder.resolve()) if path.exists() else str(path)
        lines += [f"[models.{toml_key(each)}]", f"path = {_text(place)}", ""]
    steps: dict[str, dict[str, Any]] = {
        "cheap": {"model": asked.cheap[0], "inputs": {one.name: one.name for one in cheap.inputs}}
    }
    probabilities = f"cheap.{found.outputs[0]}"
    if not found.probabilities:
        steps["probabilities"] = {"call": "softmax", "inputs": {"scores": probabilities}}
        probabilities = "probabilities.probabilities"
    options = {"threshold": report.threshold, "by": report.by}
    steps["sure"] = {"call": "combine.confidence", "inputs": {"cheap": probabilities}, "options": options}
    own = {one.name: one.name for one in dear.inputs}
    steps["dear"] = {"model": asked.dear[0], "inputs": own, "each": True, "when": "sure.unsure"}
    answer = {found.outputs[1]: f"dear.{found.outputs[1]} | cheap.{found.outputs[0]}"}
    lines += [f"[pipelines.{toml_key(name)}]", f"inputs = {_table(inputs)}", f"outputs = {_table(answer)}", ""]
    for step, knobs in steps.items():
        lines += [f"[pipelines.{toml_key(name)}.steps.{step}]"]
        lines += [f"{knob} = {_table(value) if isinstance(value, dict) else _text(value)}" for knob, value in knobs.items()]
        lines.append("")
    return "\n".join(lines)


def _head(report: Report) -> str:
    kept = f"{1.0 - report.escalated:.0%} of {report.cascade.examples:,} examples"
    return f"# {report.cheap} answers {kept} alone; {report.dear} answers where it is unsure.\n"


def _table(values: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{toml_key(name)} = {_text(value)}" for name, value in values.items()) + "}"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
