"""RESULTS.md, its table and its picture: instances against what missed the objective. Called by __main__.py."""

from benchmarks.autoscaling.days import BURST, BURSTS, MOST, OBJECTIVE, RATE, SERVICE, START_S, Outcome
from dlproxy.lab.report.chart import Chart, linear, logarithmic, standalone

HEAD = "| policy | instances on average | at most | missed the objective | p99 | changes |\n|---|---:|---:|---:|---:|---:|"
ABOUT = f"""A day of {RATE:g} requests a second on average, {0.5 * RATE:g} at the trough and {1.5 * RATE:g} at the peak, with \
{2 * BURSTS} bursts of {BURST:g} times as much for 20 to 120 s, of which {BURSTS} come at the same times every day. \
`{SERVICE}`, objective {OBJECTIVE}, 1 to {MOST} instances, of which each takes {START_S:g} s to start and is paid for \
meanwhile. The day before is simulated too where a policy learns from it, else an hour.

*Knative* and *Ray Serve* have their published defaults; *target fitted* is what their documentation asks the operator to \
find: here 0.7 of the batch that suits the objective. *in-flight* is `autoscale = "in-flight"` as it is."""
STYLES = {"in-flight": "main", "utilisation": "main"}


def as_table(outcomes: list[Outcome]) -> str:
    rows = []
    for one in outcomes:
        cells = [one.name, f"{one.instances:.2f}", str(one.most), f"{one.missed:.3%}", f"{one.p99_ms:.0f} ms", str(one.changes)]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join([HEAD, *rows])


def picture(outcomes: list[Outcome]) -> str:
    """As a file that stands alone. Left and below is better; the line joins the fixed numbers. None missed: at 1e-5."""
    missed = [max(one.missed, 1e-5) for one in outcomes]
    x = linear(0.0, max(one.instances for one in outcomes) + 3.0, "instances on average", lambda value: f"{value:g}")
    y = logarithmic(min(missed), max(missed), "share that missed the objective", lambda value: f"{value:g}")
    chart = Chart(x, y)
    fixed = [one for one in outcomes if "always" in one.name]
    chart.line([(one.instances, max(one.missed, 1e-5)) for one in fixed], "", "under")
    for one in outcomes:
        style = "under" if one in fixed else STYLES.get(one.name.split(" ")[0], "second")
        chart.dot(one.instances, max(one.missed, 1e-5), one.name, style)
    svg = chart.svg("pareto", "Autoscalers on one day", "Instances on average against the share that missed the objective")
    return standalone(svg)


def page(outcomes: list[Outcome], *, date: str, command: str) -> str:
    head = ["# Autoscalers on one simulated day", "", f"`{command}` on {date}. Written by `--write`.", "", ABOUT]
    return "\n".join([*head, "", as_table(outcomes), "", "![instances against misses](pareto.svg)"]) + "\n"
