"""COMBINE.md: what several networks, one that learnt before, and several tasks on one trunk give beyond what is simpler."""

import argparse
from typing import Any

from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.options import minute, utc_now
from benchmarks.harness.page import table
from benchmarks.harness.processes import choose_cores
from benchmarks.learn.gains import gain, seconds, share, trained, value
from dlproxy.lab.learn.combine.transfer import WAYS
from dlproxy.lab.learn.experiment import find
from dlproxy.lab.learn.train import Result

EVERYTHING = 0  # examples: all of the training part
FEW = 100
OF_FEW = {"batch": 16, "epochs": 40}  # so few examples make few steps an epoch
TASKS = {"digits-multitask": (100, 400), "cancer-multitask": (50, EVERYTHING)}
COMBINED = ("average", "vote", "stack")


def measure(options: argparse.Namespace) -> str:
    ensembles = {
        FEW: trained("digits-ensemble", options.folder, options.seeds, examples=FEW, also=_of_few()),
        EVERYTHING: trained("digits-ensemble", options.folder, options.seeds, examples=EVERYTHING),
    }
    transfer = trained("digits-transfer", options.folder, options.seeds)
    tasks = {
        name: {size: trained(name, options.folder, options.seeds, examples=size) for size in sizes}
        for name, sizes in TASKS.items()
    }
    every = [result for of_sizes in (ensembles, *tasks.values()) for result in of_sizes.values()]
    return f"""# Combining

`python -m benchmarks.learn --only combine --seeds {options.seeds}` on {minute(utc_now())}, \
{summary(describe_machine(choose_cores()))}; trainings of {seconds(*every, transfer)} in all. Written by `--write`.

Mean over {options.seeds} seeds, with half of the 95 % interval (Student's t). Each seed holds out another fifth of the data,
so that all of it is held out once; a gain is of the seeds' own differences, and "none" where its interval reaches 0. Rates of
learning for transfer were chosen by parts of the training data; those of the others are the same for all that are compared.
What is compared: `docs/learning.md`.

## Ensembles

{_ensembles(ensembles)}

## Transfer

{_transfer(transfer)}

## Several tasks on one trunk

{_tasks(tasks)}
"""


def _of_few() -> dict[str, Any]:
    """The members and the one that stands alone, with as many steps as few examples need."""
    settings = find("digits-ensemble").settings
    members = {name: {**member, **OF_FEW} for name, member in settings["members"].items()}
    return {"members": members, "alone": {**settings["alone"], **OF_FEW}}


def _of(size: int) -> str:
    return f"{size} examples" if size else "all examples"


def _ensembles(found: dict[int, Result]) -> str:
    """Of accuracy; cross-entropy beside it."""
    parts = []
    for size, result in found.items():
        runs = result.runs
        rows = []
        for way in ("mean member", "best member", "alone", *COMBINED):
            row = [way, share(runs, f"accuracy, {way}")]
            row.append("" if way == "vote" else value(runs, f"cross-entropy, {way}"))
            against = ("mean member", "best member", "alone")
            row += [gain(runs, f"accuracy, {way}", f"accuracy, {one}") if way in COMBINED else "" for one in against]
            rows.append(row)
        heads = ["", "accuracy, %", "cross-entropy, nats", "beyond the mean member", "beyond the best", "beyond one alone"]
        weights = [runs[0].figures[f"weights, {who}"] for who in ("members", "alone")]
        said = f"The members have {weights[0]:,.0f} weights together; `alone` is one network of {weights[1]:,.0f}."
        parts.append(f"### {_of(size).capitalize()} of handwritten digits\n\n{table(heads, rows)}\n\n{said}")
    return "\n\n".join(parts)


def _transfer(result: Result) -> str:
    counts = result.experiment.settings["examples"]
    rows = []
    for count in counts:
        row = [str(count), *(share(result.runs, f"{way}, {count}") for way in WAYS)]
        pairs = (("tuned", "scratch"), ("frozen", "scratch"), ("tuned", "pixels"))
        rows.append([*row, *(gain(result.runs, f"{way}, {count}", f"{other}, {count}") for way, other in pairs)])
    heads = ["examples of each new digit", "frozen, %", "tuned, %", "from scratch, %", "pixels alone, %"]
    heads += ["tuned beyond scratch", "frozen beyond scratch", "tuned beyond pixels"]
    known = share(result.runs, "accuracy, known")
    return f"{table(heads, rows)}\n\nThe backbone reads the digits that it was taught, 0 to 4, with {known} %."


def _tasks(found: dict[str, dict[int, Result]]) -> str:
    rows = []
    for name, of_sizes in found.items():
        for size, result in of_sizes.items():
            for task in result.experiment.settings["tasks"]:
                ways = [f"{task}, {way}" for way in ("alone", "together")]
                row = [name.removesuffix("-multitask"), _of(size), task, *(share(result.runs, way) for way in ways)]
                rows.append([*row, gain(result.runs, ways[1], ways[0])])
    head = ["data", "learnt from", "task", "a trunk of its own, %", "one trunk for all, %", "gain"]
    said = "Accuracy of classes; of values (reconstruction, largest area) the share of their variance that is explained."
    return f"{table(head, rows)}\n\n{said}"
