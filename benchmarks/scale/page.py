"""RESULTS.md and its pictures, from what the scenarios found.

Called by __main__.py. Not aware of: how anything is simulated.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.harness.checks import Findings, as_page
from benchmarks.harness.page import table
from benchmarks.scale.fidelity import Pair
from benchmarks.scale.scenarios import MOST_TRIES, ONE_FRONT, PER_FRONT, SHIPPED_SHARE, SUBSETS, Outcome
from benchmarks.scale.state import ANSWERED, HITS, IN_TIME, SENT
from dlproxy.lab.report.chart import Axis, Chart, linear, logarithmic, seconds, standalone

NOT_STALE_S = 0.001  # where reports of age 0 stand on a logarithmic axis
LEAST_S = 3.0  # second tries that a front may make in any second, whatever its budget
BUDGET_WINDOW = 11  # seconds: a retry budget's window and its tenth

Point = tuple[float, float | None]


def fidelity(found: Findings, pairs: Sequence[Pair]) -> None:
    head = ["balancer, load", "p50", "p99", "p99.9", "batch", "missed"]
    rows = []
    for pair in pairs:
        off = pair.off_by()
        rows.append([f"{pair.balancer}, {pair.load:.0%}", *(f"{value:+.1%}" for value in off.values())])
    worst = {name: max((abs(pair.off_by()[name]) for pair in pairs), default=0.0) for name in ("p50", "p99", "p99.9", "missed")}
    for name, value in worst.items():
        found.at_most(f"error of {name}, worst", 5.0, value * 100.0, unit=" %", digits=1)
    found.details += table(head, rows).splitlines()


def sizes(found: Findings, outcomes: Sequence[Outcome]) -> None:
    least, most = min(one.rules.nodes for one in outcomes), max(one.rules.nodes for one in outcomes)
    base = _of(outcomes, ONE_FRONT, least).p999
    for name in (ONE_FRONT, SUBSETS, "10 nodes each"):
        grown = _of(outcomes, name, most).p999 / base
        found.at_most(f"p99.9 at {most:,} nodes over one front's at {least}, {name}", 1.1, grown, digits=3)
    for name in (ONE_FRONT, SUBSETS):
        spread = _of(outcomes, name, most).spread
        found.at_most(f"busiest of {most:,} nodes over the mean, {name}", 10.0, spread * 100.0, unit=" %", digits=1)
    found.details += _rows(outcomes)


def policies(found: Findings, outcomes: Sequence[Outcome]) -> None:
    found.details += _rows(outcomes)


def staleness(found: Findings, outcomes: Sequence[Outcome]) -> None:
    part = min(one.rules.nodes for one in outcomes)
    for one in outcomes:
        if one.rules.nodes > part:
            same = next(o for o in outcomes if (o.name, o.rules.age_s) == (one.name, one.rules.age_s) and o is not one)
            what = f"slice of {part}, {one.name}, {one.rules.age_s:g} s: error of p99.9"
            found.at_most(what, 10.0, abs(same.p999 / one.p999 - 1.0) * 100.0, unit=" %", digits=1)
    names = list(dict.fromkeys(one.name for one in outcomes))
    ages = sorted({one.rules.age_s for one in outcomes})
    rows = []
    for name in names:
        of_age = {one.rules.age_s: one for one in outcomes if one.name == name and one.rules.nodes == part}
        cells = [f"{of_age[age].p999:.1f} ms, {_share(_missed(of_age[age]))}" if age in of_age else "" for age in ages]
        rows.append([name, *cells])
    found.details += table(["p99.9, not answered", *(f"{age * 1e3:g} ms" for age in ages)], rows).splitlines()


def caches(found: Findings, outcomes: Sequence[Outcome]) -> None:
    found.details += _rows(outcomes, {"hits": lambda one: f"{one.share(HITS):.1%}"})


def region(found: Findings, outcomes: Sequence[Outcome]) -> None:
    shipped = outcomes[0]
    found.at_most("65 %: not answered, of all requests", 0.1, _missed(shipped) * 100.0, unit=" %", digits=4)
    found.at_most("65 %: tries over requests, worst 11 s", 1.0 + SHIPPED_SHARE, shipped.amplification(BUDGET_WINDOW), digits=3)
    found.details += _rows(outcomes, {"worst second's p99": lambda one: f"{max(one.p99_by_second):.1f} ms"})


def storm(found: Findings, outcomes: Sequence[Outcome]) -> None:
    for one in outcomes:
        worst = one.amplification(min(BUDGET_WINDOW, len(one.seconds)))
        if "no budget" not in one.name:
            least = 0.0 if "refuses" in one.name else LEAST_S * one.rules.fronts / one.rules.rate
            limit = 1.0 + SHIPPED_SHARE + least
            found.at_most(f"{one.name}: tries over requests, worst 11 s", limit, worst, digits=4)
    columns: dict[str, Callable[[Outcome], str]] = {
        "tries, worst 11 s": lambda one: f"{one.amplification(min(BUDGET_WINDOW, len(one.seconds))):.2f}",
        "worst second": lambda one: f"{one.amplification(1):.2f}",
        "in time, worst second": lambda one: f"{min(_in_time(one)):.1%}",
        "in time, last 5 s": lambda one: f"{one.share(IN_TIME, -5):.1%}",
    }
    found.details += _rows(outcomes, columns)


PARTS: Mapping[str, tuple[str, str, Callable[[Findings, Sequence[Outcome]], None]]] = {
    "sizes": (
        "Equal load per node, more nodes",
        f"The shipped policy: two nodes drawn, the better by peak-EWMA of latency times what is in flight. *{ONE_FRONT}* sees "
        f"all requests; otherwise there is a front for each {PER_FRONT} nodes, which knows only what it has sent itself, and "
        "sends to so many nodes.",
        sizes,
    ),
    "policies": ("Other policies", "As many fronts, each sending to all nodes.", policies),
    "staleness": (
        "Choices and stale reports",
        "The least loaded of d drawn nodes, by what each node reported last to all fronts; reports come at intervals as given, "
        "each node at moments of its own. *own added*: with what the front has sent there since.",
        staleness,
    ),
    "caches": (
        "Caches and affinity",
        "100,000 keys by Zipf's law (1/k), 1,024 answers in each node's cache, a hit takes 50 us of its node's loop. Bounds "
        "of consistent hashing by what the front has sent itself, or by what all have.",
        caches,
    ),
    "region": (
        "A region is lost",
        "A quarter of the nodes vanishes and comes back 10 s later; whoever sends there hears of it after 1 ms. Fronts eject a "
        "node after five failures in a row and try again elsewhere within the retry budget.",
        region,
    ),
    "storm": (
        "A storm of retries",
        f"For five seconds all batches take twice as long. Clients try up to {MOST_TRIES} times with the shipped pauses, "
        "within the shipped budget or without one. Nodes refuse what would be late, as the lane does, or queue until full. "
        "The budget lets a fifth of the requests of the last "
        "ten to eleven seconds through, and three a second besides for each front.",
        storm,
    ),
}


def text(found: Iterable[Findings], abouts: Mapping[str, str], *, command: str, date: str, summary: str) -> str:
    """The page as Markdown."""
    lead = [
        "# A thousand nodes, simulated",
        "",
        f"`{command}` on {date}. Written by `--write`; what is modelled and what is not: ",
    ]
    lead[-1] += "[scaling](../../docs/scaling.md)."
    lead += ["", summary]
    return as_page(lead, ((one.title, abouts[one.title], one.checks, one.details) for one in found))


def _of(outcomes: Sequence[Outcome], name: str, nodes: int) -> Outcome:
    return next(one for one in outcomes if one.name == name and one.rules.nodes == nodes)


def _missed(one: Outcome) -> float:
    return 1.0 - one.share(ANSWERED, 0)


def _share(value: float) -> str:
    return "0" if value <= 0.0 else f"{value:.2g}" if value < 1e-4 else f"{value:.2%}"


def _in_time(one: Outcome) -> list[float]:
    return [float(row[IN_TIME] / max(row[SENT], 1)) for row in one.seconds]


def _rows(outcomes: Sequence[Outcome], more: Mapping[str, Callable[[Outcome], str]] | None = None) -> list[str]:
    head = ["", "nodes", "fronts", "requests", "p50", "p99", "p99.9", "busiest node", "not answered", *(more or {})]
    rows = [
        [
            one.name,
            f"{one.rules.nodes:,}",
            f"{one.rules.fronts}",
            f"{one.requests / 1e6:,.1f} M",
            *(f"{value:.1f} ms" for value in (one.p50, one.p99, one.p999)),
            f"{one.spread:+.1%}",
            _share(_missed(one)),
            *(column(one) for column in (more or {}).values()),
        ]
        for one in outcomes
    ]
    return table(head, rows).splitlines()


# Pictures


def pictures(found: Mapping[str, Sequence[Outcome]], folder: Path) -> None:
    """Those of the parts that were run, as files."""
    drawn = {"sizes": _sizes, "staleness": _staleness, "caches": _caches, "region": _region, "storm": _storm}
    for name, draw in drawn.items():
        if found.get(name):
            (folder / f"scale-{name}.svg").write_text(standalone(draw(found[name])), "utf-8")


def _lines(x: Axis, y: Axis, lines: Mapping[str, Sequence[Point]], title: str, about: str) -> str:
    chart = Chart(x, y, names=True, longest=max(map(len, lines)) + 2)
    for number, (name, points) in enumerate(lines.items(), 1):
        chart.line(points, name, f"s{number}")
    return chart.svg(title.split()[0].lower(), title, about)


def _sizes(outcomes: Sequence[Outcome]) -> str:
    names = list(dict.fromkeys(one.name for one in outcomes))
    lines = {name: [(float(one.rules.nodes), one.p999) for one in outcomes if one.name == name] for name in names}
    x = logarithmic(min(one.rules.nodes for one in outcomes), max(one.rules.nodes for one in outcomes), "nodes", _plain)
    y = linear(0.0, max(one.p999 for one in outcomes), "p99.9 in ms", _plain)
    return _lines(x, y, lines, "Sizes: tail latency by number of nodes", "p99.9 at equal load for each node")


def _staleness(outcomes: Sequence[Outcome]) -> str:
    part = min(one.rules.nodes for one in outcomes)
    lines: dict[str, list[Point]] = {}
    for one in outcomes:
        if one.rules.nodes == part:
            lines.setdefault(one.name, []).append((max(one.rules.age_s, NOT_STALE_S) * 1e3, one.p999))
    ages = [age for points in lines.values() for age, _ in points]
    x = logarithmic(min(ages), max(ages), "time between reports in ms; 1: always up to date", _plain)
    y = linear(0.0, max(one.p999 for one in outcomes), "p99.9 in ms", _plain)
    return _lines(x, y, lines, "Staleness: choices and the age of reports", "p99.9 by the time between two reports of a node")


def _caches(outcomes: Sequence[Outcome]) -> str:
    shown = [one for one in outcomes if one.name in ("two drawn", "no bound", "1.25, own counts", "1.25, all counts")]
    x = linear(0.0, max(one.spread for one in shown) * 1.3, "busiest node above the mean", _percent)
    chart = Chart(x, linear(0.4, 1.0, "share of hits", _percent))
    for number, one in enumerate(shown, 1):
        chart.dot(one.spread, one.share(HITS), one.name.removesuffix(" counts"), f"s{number}")
    return chart.svg("caches", "Caches: hits against uneven load", "Above and left is better: many hits, and no node busier")


def _region(outcomes: Sequence[Outcome]) -> str:
    lines = {one.name: _by_second(one.p99_by_second) for one in outcomes if one.name != "65 %, slice"}
    highest = max(y for points in lines.values() for _, y in points if y is not None)
    x = seconds(0.0, max(len(one.p99_by_second) for one in outcomes), "time")
    return _lines(
        x, linear(0.0, highest, "p99 in ms", _plain), lines, "Region: a quarter of the nodes is lost", "p99 by second"
    )


def _storm(outcomes: Sequence[Outcome]) -> str:
    lines = {one.name: _by_second(_in_time(one)) for one in outcomes if "slice" not in one.name}
    x = seconds(0.0, max(len(one.seconds) for one in outcomes), "time")
    y = linear(0.0, 1.0, "share answered within 50 ms of the first try", _percent)
    return _lines(x, y, lines, "Storm: goodput while clients try again", "Share in time by the second of the first try")


def _by_second(values: Sequence[float]) -> list[Point]:
    return [(second + 0.5, value) for second, value in enumerate(values)]


def _percent(value: float) -> str:
    return f"{value:.0%}"


def _plain(value: float) -> str:
    return f"{value:g}"
