"""`dlproxy simulate` with --log, --what-if or --capacity: a load as it was and with other knobs, or how much it needs.

Called by cli/simulate.py. Not aware of: how time passes in a simulation, what the figures mean.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from dlproxy.cli.durations import seconds
from dlproxy.cli.terminal import INTERRUPTED, OK, say

if TYPE_CHECKING:
    from tqdm import tqdm

    from dlproxy.lab.report.result import Result
    from dlproxy.lab.simulate.recorded_run import RecordedRun
    from dlproxy.lab.simulate.what_if import Change, Today

OPTIONS = {"--log", "--what-if", "--capacity", "--parallel"}
OF_LOGS = OPTIONS | {"--objective", "--seed", "--json", "--html", "--loop"}
MOST_CHANGES = 20
PERCENT = 100.0
DISTURBED = 5.0  # times the median of a batch of its size; models whose requests differ in length reach less


def add_to(simulate: argparse.ArgumentParser) -> None:
    """Declare the options."""
    group = simulate.add_argument_group("what-if")
    group.add_argument(
        "--log",
        type=Path,
        action="append",
        default=[],
        metavar="EVENT.dlog",
        help="take requests and service times from a recorded live run; may be repeated for several models of one server, or "
        "name a folder of logs",
    )
    group.add_argument(
        "--what-if",
        action="append",
        default=[],
        metavar="instances=4,max_batch=32",
        help="simulate the same load with other knobs beside it: every knob of a lane, slo, instances, threads, cores, "
        "rate=2x or rate=1500/s, speed=2; NAME.max_batch=32 for one of several models; may be repeated",
    )
    group.add_argument(
        "--capacity",
        metavar="3x",
        help="how many instances it takes to meet the objective at so many times the load, or at 1500/s",
    )
    group.add_argument(
        "--parallel",
        type=float,
        metavar="SHARE",
        help="the share of a batch's work that threads divide, by Amdahl's law (default: as measured where the model is "
        "measured here with several threads, else 0.7)",
    )


def wanted(args: argparse.Namespace) -> bool:
    """Whether one of these options was given."""
    return bool(OPTIONS & args.given)


def run(args: argparse.Namespace, made_up: "Callable[[], Today]") -> int:
    """`made_up`: the load that the other options describe. Raises ConfigError, LogError and what that raises."""
    from dlproxy.config import ConfigError
    from dlproxy.lab.simulate.what_if import from_logs, parse_change, parse_load

    if args.parallel is not None and not 0.0 <= args.parallel <= 1.0:
        raise ConfigError(f"--parallel {args.parallel:g} is out of range: give 0 to 1")
    if len(args.what_if) > MOST_CHANGES:
        raise ConfigError(f"--what-if is given {len(args.what_if)} times; at most {MOST_CHANGES} stand side by side")
    load = None if args.capacity is None else parse_load(args.capacity, "--capacity")
    if args.log:
        unused = [*args.models, *sorted(args.given - OF_LOGS)]
        if unused:
            raise ConfigError(f"--log takes requests, models and knobs from the recording; omit {', '.join(unused)}")
        if args.loop not in (None, "recorded"):
            raise ConfigError("with --log, --loop is either recorded or left out")
        objective_s = seconds(args.objective, "--objective")
        today = from_logs(args.log, objective_s=objective_s, parallel=args.parallel, with_loop=args.loop is not None)
    else:
        if not args.what_if and args.capacity is None:
            raise ConfigError("--parallel only has a meaning with --log, --what-if or --capacity")
        today = made_up()
    changes = [parse_change(text, list(today.base.models)) for text in args.what_if]
    if load is None:
        return _compare(args, today, changes)
    return _capacity(args, today, changes)


def _compare(args: argparse.Namespace, today: "Today", changes: "Sequence[Change]") -> int:
    from dlproxy.lab.report.compare import Columns, side_by_side
    from dlproxy.lab.report.result import save
    from dlproxy.lab.simulate.what_if import columns

    with _bar("{l_bar}{bar}| {remaining} left") as progress:
        found = list(
            columns(today, changes, seed=args.seed, on_progress=lambda share: progress.update(share - progress.n) and None)
        )
    remarks = _remarks(today, changes, found)
    say(side_by_side(found))
    for remark in remarks:
        say(f"\n{_wrapped(remark)}")
    if args.json is not None:
        save(Columns(columns=dict(found), remarks=remarks), args.json)
    if args.html is not None:
        from dlproxy.lab.report.html import save_columns_html

        save_columns_html(found, remarks, args.html)
    return INTERRUPTED if any(result.interrupted for _, result in found) else OK


def _bar(form: str) -> "AbstractContextManager[tqdm[None]]":
    from tqdm import tqdm

    bar: AbstractContextManager[tqdm[None]] = tqdm(total=1.0, bar_format=form, disable=None, leave=False, delay=1.0)
    return bar


def _wrapped(text: str) -> str:
    import re
    import textwrap

    kept = re.sub(r"(?<=\d) (?=(?:[µm]?s|%|/s)(?:\W|$))", "\u00a0", text)  # numbers with their units
    return textwrap.fill(kept, 100, break_on_hyphens=False).replace("\u00a0", " ")


def _remarks(today: "Today", changes: "Sequence[Change]", found: "Sequence[tuple[str, Result]]") -> list[str]:
    """How far it can be trusted."""
    from dlproxy.lab.simulate.what_if import BANDS, off_by

    said = []
    results = dict(found)
    if "recorded" in results and "simulated" in results:
        errors = off_by(results["recorded"], results["simulated"])
        if errors:
            each = ", ".join(f"{name} {error * PERCENT:+.1f} %" for name, error in errors.items())
            said.append(f"The simulator's own error, simulated over recorded: {each}.")
            if any(abs(error) > BANDS[name] for name, error in errors.items()):
                said.append(
                    "Warning: that is more than the 5 % of rate and 15 % of p50 and p99 that are aimed at. Compare what-ifs "
                    "with the simulated column, and take no smaller difference for real."
                )
    scenario = today.base
    said += _about_cores(today, changes)
    if today.recorded is not None:
        said += [f"Left out: {note}." for run in today.recorded.runs.values() for note in run.notes]
        said += _about_disturbances(today.recorded.runs)
        for name, model in scenario.models.items():
            largest = today.recorded.runs[name].largest
            sizes = [size for _, result in found[2:] for size in result.batch_sizes if size > largest]
            if sizes and len(scenario.models) == 1:
                said.append(
                    f"Batches of up to {max(sizes)} rows ran in what-ifs, and of {largest} in the recording ({model.service}): "
                    "times of larger ones are those of the calibration, or extrapolated."
                )
    if any(result.interrupted for _, result in found):
        name, result = found[-1]
        said.append(f"Stopped early: {name} covers {result.duration_s:.3g} virtual seconds, and what follows it is missing.")
    return said


def _about_disturbances(runs: "Mapping[str, RecordedRun]") -> list[str]:
    return [
        f"Warning: of the recorded batches of {name}, one in a hundred took {run.disturbance:.3g} times as long as usual for "
        "its size. If others had the machine meanwhile, record again without them: what-ifs draw from these times."
        for name, run in runs.items()
        if run.disturbance > DISTURBED
    ]


def _about_cores(today: "Today", changes: "Sequence[Change]") -> list[str]:
    from dlproxy.lab.report import wording

    names = {name for change in changes for values in (change.knobs, *change.models.values()) for name in values}
    scenario = today.base
    said = []
    if {"instances", "threads"} & names:
        said.append(
            f"Assumed: {wording.count(scenario.cores, 'core')}, as there were, unless cores=… says otherwise. Threads beyond "
            "them slow each other."
            if scenario.cores
            else "Assumed: as many cores as the threads need, unless cores=… says otherwise."
        )
    if "threads" in names:
        said.append(
            f"Assumed: threads divide {wording.share(scenario.parallel, 1.0)} of a batch's work, by Amdahl's law (--parallel)."
        )
    return said


def _capacity(args: argparse.Namespace, today: "Today", changes: "Sequence[Change]") -> int:
    from dlproxy.config import ConfigError
    from dlproxy.lab.report.compare import aligned
    from dlproxy.lab.report.result import save
    from dlproxy.lab.simulate.capacity import find_capacity, steps_table
    from dlproxy.lab.simulate.what_if import Change

    if len(changes) > 1:
        raise ConfigError("--capacity takes one --what-if at most: the knobs to plan with")
    if args.html is not None:
        raise ConfigError("--capacity has no HTML report; --json writes what it found")
    with _bar("{desc}") as progress:
        capacity = find_capacity(
            today,
            changes[0] if changes else Change(""),
            args.capacity,
            seed=args.seed,
            on_step=lambda instances: progress.set_description_str(f"simulating {instances} instances"),
        )
    say(_wrapped(capacity.sentence[0].upper() + capacity.sentence[1:]))
    if capacity.steps:
        say("\n" + "\n".join(aligned(steps_table(capacity))))
    remarks = ["Assumed: each instance has cores of its own for its threads, and is as quick as now."]
    if any("threads" in change.knobs for change in changes):
        remarks += _about_cores(today, changes)[1:]
    for remark in remarks:
        say(f"\n{_wrapped(remark)}")
    if args.json is not None:
        save(capacity, args.json)
    return INTERRUPTED if capacity.interrupted else OK
