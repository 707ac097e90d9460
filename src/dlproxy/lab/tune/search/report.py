"""What a tuning says: the table of the front with a reason for each point, and tuned.toml with a reason for each knob.

Called by cli/tune.py and page.py. Not aware of: files, terminals.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from dlproxy.lab.report import wording
from dlproxy.lab.tune.search.evolve import front
from dlproxy.lab.tune.search.problem import NEVER_S, Outcome, Point
from dlproxy.lab.tune.search.state import Lived
from dlproxy.lab.tune.search.toml import model_table
from dlproxy.lab.tune.search.tune import ALIKE, Tuned, in_words

WIDTH = 100
MOST_SHOWN = 10
ALWAYS = ("run", "instances", "threads", "max_batch", "max_wait_s", "codel_target_s", "hedge")  # in tuned.toml


class Row(Struct):
    """One point of the front as the table has it. `number`: on the page's picture."""

    number: int
    point: Point
    outcome: Outcome
    lived: Lived | None
    reason: str

    def cells(self) -> list[str]:
        point, layout = self.point, self.point.layout
        memory = wording.number(self.lived.memory_bytes / 2**20) + " MiB" if self.lived and self.lived.memory_bytes else "-"
        return [
            str(self.number),
            str(layout),
            str(point.max_batch),
            _wait(point.max_wait_s),
            _wait(point.codel_target_s),
            "on" if point.hedge else "-",
            wording.rate(self.outcome.goodput),
            latency(self.outcome),
            str(layout.cores),
            memory,
            "measured" if self.lived else "simulated",
        ]


HEADINGS = ("", "runs", "max_batch", "max_wait", "codel", "hedge", "goodput", "p99", "cores", "memory", "")


def latency(outcome: Outcome) -> str:
    return "-" if outcome.p99_s >= NEVER_S else wording.duration(outcome.p99_s * 1e3)


def _wait(seconds: float) -> str:
    return wording.duration(seconds * 1e3) if seconds else "-"


def rows(tuned: Tuned) -> list[Row]:
    """The front, the chosen point first: what was measured before what was only simulated, most goodput first."""
    points = front(tuned.known)
    points.sort(key=lambda point: (point != tuned.chosen, point not in tuned.measured))
    if tuned.chosen not in points:
        points.insert(0, tuned.chosen)
    return [
        Row(number, point, tuned.known[point], tuned.measured.get(point), reason(tuned, point))
        for number, point in enumerate(points[:MOST_SHOWN], start=1)
    ]


def reason(tuned: Tuned, point: Point) -> str:
    """Why it is the choice, or what it does better and worse than that."""
    outcome, chosen = tuned.known[point], tuned.outcome
    objective_s = tuned.problem.objective_s
    asked = f"p99 = {wording.duration(objective_s * 1e3)}"
    if point == tuned.chosen:
        among = "of what was measured" if tuned.measured else "of what was simulated"
        if not chosen.meets(objective_s):
            return f"chosen: nothing {among} meets {asked}; it has the most goodput"
        return f"chosen: {among} and meets {asked} with the most goodput, it takes the fewest cores, then has the lowest p99"
    parts = []
    if not outcome.meets(objective_s):
        parts.append(f"misses {asked} ({wording.share(outcome.good, 1.0)} in time)")
    if abs(outcome.goodput / max(chosen.goodput, 1e-9) - 1.0) > ALIKE:
        parts.append(f"goodput {wording.rate(outcome.goodput)} instead of {wording.rate(chosen.goodput)}")
    if abs(outcome.p99_s / chosen.p99_s - 1.0) > ALIKE:
        parts.append(f"p99 {latency(outcome)} instead of {latency(chosen)}")
    cores = point.layout.cores - tuned.chosen.layout.cores
    if cores:
        parts.append(f"{wording.count(abs(cores), 'core')} {'more' if cores > 0 else 'fewer'}")
    if point not in tuned.measured:
        parts.append("not tried live")
    return "; ".join(parts) or "no different in what counts"


def error_lines(tuned: Tuned) -> list[str]:
    """How far the simulator was off at the chosen point, before it was measured for the last time."""
    run = tuned.measured.get(tuned.chosen)
    if run is None:
        return ["nothing was measured live: all figures are the simulator's"]
    lines = []
    for name, predicted, measured, shown in (
        ("p99", run.predicted.p99_s * 1e3, run.outcome.p99_s * 1e3, wording.duration),
        ("goodput", run.predicted.goodput, run.outcome.goodput, wording.rate),
    ):
        off = f"{(predicted / measured - 1.0) * 100:+.0f} %" if measured else "-"
        lines.append(f"{name:<8} predicted {shown(predicted)}, measured {shown(measured)} over {run.seconds:.0f} s: {off}")
    return lines


def table(tuned: Tuned) -> str:
    """All of it as text."""
    problem = tuned.problem
    shown = rows(tuned)
    lines = [
        wording.plain(
            f"tuning of {problem.name} for p99 = {wording.duration(problem.objective_s * 1e3)}, {problem.load}", WIDTH
        ),
        f"  {tuned.simulated:,} simulations, of {tuned.total:,} configurations; {wording.count(tuned.runs, 'live run')}; "
        f"{wording.duration(tuned.seconds * 1e3)}",
        "",
        *_grid([HEADINGS, *(row.cells() for row in shown)], [row.reason for row in shown]),
        "",
        *error_lines(tuned),
    ]
    if tuned.highest is not None:
        lines.append(_highest(tuned))
    lines += [line for note in tuned.notes for line in textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent="  ")]
    return "\n".join(lines)


def _highest(tuned: Tuned) -> str:
    if not tuned.highest:
        return "no rate at which it was tried live met the objective"
    return f"highest rate that met the objective live: {wording.rate(tuned.highest)}"


def _grid(cells: Sequence[Sequence[str]], reasons: Sequence[str]) -> list[str]:
    """Columns that are as wide as needed; those in which nothing differs from the usual are left out."""
    kept = [n for n in range(len(HEADINGS)) if n not in (3, 4, 5) or any(row[n] != "-" for row in cells[1:])]
    widths = {n: max(len(row[n]) for row in cells) for n in kept}
    lines = []
    for number, row in enumerate(cells):
        lines.append("  ".join(row[n].ljust(widths[n]) if n in (1, 10) else row[n].rjust(widths[n]) for n in kept).rstrip())
        if number:
            lines += textwrap.wrap(reasons[number - 1], WIDTH, initial_indent="     ", subsequent_indent="     ")
    return lines


def tuned_file(tuned: Tuned, said: Mapping[str, str], folder: Path, started: str) -> str:
    """A dlproxy.toml with the chosen configuration. `said`: by `why`; `folder`: where the file will lie."""
    point, problem = tuned.chosen, tuned.problem
    measured = tuned.measured.get(point)
    how = f"measured live over {measured.seconds:.0f} s" if measured else "simulated only"
    rate = wording.rate(tuned.highest or tuned.rate)
    head = [
        f"Written by dlproxy tune, {started}, on {wording.count(problem.cores, 'core')}, for {problem.load}.",
        f"At {wording.rate(tuned.rate)}: {in_words(tuned.outcome)} ({how}).",
        *([f"Highest rate that met the objective: {rate}."] if tuned.highest else []),
        *error_lines(tuned),
        *(["It was interrupted: this is the best that had been found."] if tuned.interrupted else []),
        "Figures beside knobs are the simulator's, corrected by the live runs; every one says what another value would give.",
    ]
    comments = {
        **{name: "\n".join(textwrap.wrap(text, 110)) for name, text in said.items() if name != "run"},
        "run": "\n".join(["The best of the other ways to run:", *said["run"].splitlines()]) if said["run"] else "",
        "slo": "The objective that it was tuned for.",
    }
    table_ = model_table(problem.name, point.on(problem.config), folder, comments=comments, always=ALWAYS)
    return "\n".join([*(f"# {wording.plain(line, 200)}" for line in head), "", table_])
