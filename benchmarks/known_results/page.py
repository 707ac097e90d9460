"""RESULTS.md and the JSON of a run: date, command, what each result is, its table, and what differs and why.

Called by __main__.py. Not aware of: how anything is simulated.
"""

from math import isinf
from typing import Any

import msgspec
from msgspec import Struct, field

from benchmarks.harness.checks import Check, as_page
from benchmarks.known_results import closed_loops, early_drop, prequal, slow_backend, two_choices, waits

ABOUT = {
    waits.TITLE: waits.ABOUT,
    two_choices.TITLE: two_choices.ABOUT,
    slow_backend.TITLE: slow_backend.ABOUT,
    slow_backend.FAILING_TITLE: slow_backend.FAILING_ABOUT,
    prequal.TITLE: prequal.ABOUT,
    early_drop.TITLE: early_drop.ABOUT,
    early_drop.TABLE_TITLE: early_drop.TABLE_ABOUT,
    closed_loops.TRITON_TITLE: closed_loops.TRITON_ABOUT,
    closed_loops.TORCHSERVE_TITLE: closed_loops.TORCHSERVE_ABOUT,
}


class Run(Struct):
    """One run of the command."""

    date: str
    command: str
    python: str
    seed: int
    checks: list[Check] = field(default_factory=list)
    requests: int = 0
    seconds: float = 0.0

    def summary(self) -> str:
        verdicts = [check.verdict for check in self.checks]
        rate = self.requests / self.seconds if self.seconds else 0.0
        return (
            f"{verdicts.count('pass')} pass, {verdicts.count('differs')} differ for the reason given, "
            f"{verdicts.count('MISS')} miss; "
            f"{self.requests:,} simulated requests in {self.seconds:.0f} s, {rate:,.0f} per second"
        )

    def with_verdicts(self) -> dict[str, Any]:
        """For the JSON file: each check with its verdict; a side that has no bound is null."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        for check, values in zip(self.checks, built["checks"], strict=True):
            values["verdict"] = check.verdict
            for side in ("low", "high"):
                if isinf(values[side]):
                    values[side] = None
        return built


def page(run: Run) -> str:
    """The page as Markdown."""
    lead = [
        "# Known results, measured again",
        "",
        f"`{run.command}` on {run.date}, {run.python}. Written by `--write`; what a verdict means: "
        "[README](../README.md#known-results).",
        "",
        f"{run.summary()}.",
    ]
    groups = {title: [check for check in run.checks if check.group == title] for title in ABOUT}
    text = as_page(lead, ((title, about, groups[title], ()) for title, about in ABOUT.items()))
    differing = [f"- {check.group}, {check.result}: {check.differs}." for check in run.checks if check.verdict == "differs"]
    return text + "\n".join(["", "## What differs, and why", "", *(differing or ["Nothing."])]) + "\n"
