"""RESULTS.md and what is printed: medians, the worst, and every scenario that fails. Called by __main__.py."""

from collections.abc import Sequence
from statistics import median

from benchmarks.autopilot.compare import (
    ENOUGH,
    HARMLESS,
    LEAST,
    MORE,
    MOST_CHANGES,
    SETTLING_S,
    SPAN_S,
    STEADY_S,
    Comparison,
    Sharing,
    Steadiness,
)
from benchmarks.autopilot.scenarios import MEASURED_S, PHASE_S, SETTLED_S

HEAD = (
    "| scenarios | number | settled, of the best static: median | worst | misses allowed | on / off: median | worst "
    "| changes kept: median | most | without a failure |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)
ABOUT = f"""Each scenario is a random model on two or four cores with a random objective. It starts badly configured and \
runs for {PHASE_S:g} s; then its load or its machine changes, and it runs for as long again. All drive the production lane and \
the production autopilot in virtual time; a start of instances takes half a second.

*Settled, of the best static*: answers in time from {SETTLED_S:g} to {MEASURED_S:g} s of each phase, to those of the best of \
all static configurations of that phase, found by exhaustive search; {ENOUGH:.0%} is enough. *Misses allowed*: the share of \
phases that, search included, miss no more than {MORE:g} times what that configuration misses once settled, and {LEAST:.0%} \
of all requests. *On / off*: answers in time over both phases, with the autopilot and with the configuration that it started \
from; less than {HARMLESS:.0%} is a failure."""
SHARED = f"""Models of unequal weight and objective take turns on two cores, equal shares at first; a third comes after \
{PHASE_S:g} s. The sum of the weights of answers in time, from {SETTLED_S:g} to {MEASURED_S:g} s of each phase, to that of the \
best static split, of 11 for two models and 19 for three; {ENOUGH:.0%} is enough."""
STEADY = f"""Constant load for {STEADY_S / 60:g} minutes after {SETTLING_S / 60:g} minutes to settle: at most {MOST_CHANGES} \
changes may be kept in any {SPAN_S / 60:g} minutes."""


def as_table(found: Sequence[Comparison]) -> str:
    """All together, and by what shifts."""
    by_shift = [_row(shift, [one for one in found if one.shift == shift]) for shift in sorted({one.shift for one in found})]
    return "\n".join([HEAD, _row("all", found), *by_shift])


def _row(name: str, found: Sequence[Comparison]) -> str:
    halves = [half for one in found for half in one.halves]
    ratios, on_off, kept = [half.ratio for half in halves], [one.on_off for one in found], [one.kept for one in found]
    within = sum([half.missed <= half.most_missed for half in halves]) / len(halves)
    well = sum([not one.failures() for one in found])
    cells = [name, str(len(found)), f"{median(ratios):.1%}", f"{min(ratios):.1%}", f"{within:.1%}"]
    cells += [f"{median(on_off):.2f}", f"{min(on_off):.2f}", f"{median(kept):g}", str(max(kept)), f"{well} of {len(found)}"]
    return "| " + " | ".join(cells) + " |"


def as_steady_table(found: Sequence[Steadiness]) -> str:
    head = "| scenario | changes kept while settling | most in ten minutes afterwards | tried |\n|---|---:|---:|---:|"
    return "\n".join([head, *(f"| {one.words} | {one.settling} | {one.most} | {one.tried} |" for one in found)])


def as_shared_table(found: Sequence[Sharing]) -> str:
    head = "| models | two, of the best split | three | changes kept |\n|---|---:|---:|---:|"
    rows = [f"| {one.words} | {one.ratios[0]:.1%} | {one.ratios[1]:.1%} | {one.kept} |" for one in found]
    ratios = [ratio for one in found for ratio in one.ratios]
    return "\n".join([head, *rows, f"| median, worst | {median(ratios):.1%}, {min(ratios):.1%} | | |"])


def failures(found: Sequence[Comparison | Steadiness | Sharing]) -> str:
    """One by one."""
    lines = [f"- {one.words}: {'; '.join(one.failures())}" for one in found if one.failures()]
    return "\n".join(lines) or "No scenario fails."


def line(one: Comparison | Steadiness | Sharing) -> str:
    """As it is printed when it is known."""
    verdict = "FAILS" if one.failures() else "ok"
    if isinstance(one, Steadiness):
        return f"#{one.number} {verdict}: {one.most} changes in ten minutes, {one.settling} while settling, {one.tried} tried"
    if isinstance(one, Sharing):
        first, second = one.ratios
        kept = f"{one.kept} of {one.tried} kept"
        return f"#{one.number} {verdict}: two models {first:.1%} of the best split, three {second:.1%}; {kept}"
    halves = ", ".join([f"{half.ratio:.1%} of {half.best}, misses {half.missed:.2%}" for half in one.halves])
    return f"#{one.number} {verdict} ({one.shift}): {halves}; on/off {one.on_off:.2f}; {one.kept} of {one.tried} kept"


def page(found: Sequence[Comparison], *, policy: str, date: str, command: str) -> str:
    head = [
        "# The autopilot beside the best static configuration",
        "",
        f"`{command}` on {date}. Written by `--write`.",
        "",
        ABOUT,
    ]
    body = ["", f"Policy: {policy}.", "", as_table(found), "", "## Scenarios that fail", "", failures(found)]
    return "\n".join([*head, *body]) + "\n"


def steady_page(found: Sequence[Steadiness], *, policy: str, date: str, command: str) -> str:
    head = ["# The autopilot under a steady load", "", f"`{command}` on {date}. Written by `--write`.", "", STEADY]
    return "\n".join([*head, "", f"Policy: {policy}.", "", as_steady_table(found), "", failures(found)]) + "\n"


def shared_page(found: Sequence[Sharing], *, policy: str, date: str, command: str) -> str:
    head = ["# Shares of two cores", "", f"`{command}` on {date}. Written by `--write`.", "", SHARED]
    return "\n".join([*head, "", as_shared_table(found), "", failures(found)]) + "\n"
