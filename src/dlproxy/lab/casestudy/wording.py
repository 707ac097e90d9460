"""A study in words: the figures beside what the case asks for, the ablation, what did not help. As tables of text.

Called by page.py. Not aware of: terminals, HTML, Markdown.
"""

from collections.abc import Callable
from math import isnan

from msgspec import Struct, structs

from dlproxy.lab.casestudy.figures import Change, Figures, change
from dlproxy.lab.casestudy.record import Study
from dlproxy.lab.casestudy.steps import ALONE, FASTAPI, NAMES, WHOLE
from dlproxy.lab.report.wording import duration, number, rate, share

UNSURE, REACHED, MISSED = "reached, not surely", "reached", "missed"


class Measure(Struct, frozen=True):
    """One of the figures. `goal`: the change that the case asks for, None where it asks for none; `more`: more is better."""

    name: str
    of: Callable[[Figures], float]
    said: Callable[[float], str]
    more: bool
    goal: float | None = None


class Table(Struct):
    """Text."""

    headings: list[str]
    rows: list[list[str]]


def percent(part: float) -> str:
    """A share of 1."""
    return "-" if isnan(part) else share(round(part, 4), 1.0)


def _ms(value: float) -> str:
    return "-" if isnan(value) else duration(value)


THROUGHPUT = Measure("throughput: answers in time, in the sale", lambda one: one.sale_rps, rate, True, 0.30)
RESPONSE = Measure("response time: mean over the day", lambda one: one.day.mean, _ms, False, -0.40)
UTILISATION = Measure("utilisation: useful core-seconds of all", lambda one: one.useful, percent, True, 0.20)
ERRORS = Measure("error rate: wrong categories of what was answered", lambda one: one.wrong, percent, False, -0.15)
COST = Measure("resources: core-seconds for each answer in time", lambda one: one.cost_s, lambda value: _ms(value * 1e3), False)
AT_ONCE = Measure("parallelism: under way at once, and answered in time", lambda one: float(one.at_once), number, True)
ASKED = {
    "promotion": (THROUGHPUT, RESPONSE, UTILISATION, ERRORS),
    "advertisement": (
        structs.replace(RESPONSE, goal=-0.20),
        structs.replace(COST, goal=-0.20),
        structs.replace(UTILISATION, goal=0.30),
        structs.replace(AT_ONCE, goal=0.50),
    ),
}
MORE = (
    COST,
    AT_ONCE,
    Measure("answers in time, over the day", lambda one: one.day_rps, rate, True),
    Measure("response time before the sale: mean", lambda one: one.calm.mean, _ms, False),
    Measure("response time before the sale: p99", lambda one: one.calm.p99, _ms, False),
    Measure("response time over the day: median", lambda one: one.day.p50, _ms, False),
    Measure("response time over the day: p99", lambda one: one.day.p99, _ms, False),
    Measure("utilisation, each answer as the first model takes", lambda one: one.at_first, percent, True),
    Measure("cores busy", lambda one: one.busy, percent, False),
    Measure("answered in time, of all requests", lambda one: one.in_time, percent, True),
    Measure("answered in time, of checkouts", lambda one: one.urgent_in_time, percent, True),
    Measure("answered in time, of new pictures in the sale", lambda one: one.new_in_time, percent, True),
    Measure("refused at once", lambda one: one.refused, percent, False),
    Measure("without any answer", lambda one: one.lost, percent, False),
)


def asked_for(study: Study) -> tuple[Measure, ...]:
    """The figures of its case, with what that asks for."""
    return ASKED[study.day.case]


def verdict(measure: Measure, found: Change) -> str:
    """Whether what the case asks for is reached: surely, if all of the interval is beyond it."""
    assert measure.goal is not None
    sign = 1.0 if measure.goal > 0.0 else -1.0
    worst = found.low if measure.goal > 0.0 else found.high
    if sign * found.change < sign * measure.goal:
        return MISSED
    return REACHED if found.rounds > 1 and sign * worst >= sign * measure.goal else UNSURE


def signed(part: float) -> str:
    """A change: +31 %, -40 %, x 12."""
    return f"x {number(1.0 + part)}" if part >= 4.0 else f"{part * 100.0:+.0f} %"


def _between(found: Change) -> str:
    return f"{signed(found.low)} to {signed(found.high)}" if found.rounds > 1 else "one round: no interval"


def goals(study: Study) -> Table:
    """The figures of the case: FastAPI beside all steps."""
    table = Table(["", FASTAPI, WHOLE, "change", "95 %", "asked for", ""], [])
    for measure in asked_for(study):
        found = change(study, FASTAPI, WHOLE, measure.of)
        if found is not None and measure.goal is not None:
            values = [measure.said(found.before), measure.said(found.after), signed(found.change), _between(found)]
            table.rows.append([measure.name, *values, signed(measure.goal), verdict(measure, found)])
    return table


def more(study: Study) -> Table:
    """Other figures of the same days, with dlproxy before any step between them."""
    sides = [side for side in (FASTAPI, ALONE, WHOLE) if study.of(side)]
    table = Table(["", *sides, f"{WHOLE} beside {FASTAPI}"], [])
    asked = asked_for(study)
    known = {measure.name for measure in asked}
    for measure in (*asked, *(measure for measure in MORE if measure.name not in known)):
        values = []
        for side in sides:
            own = change(study, side, side, measure.of)
            values.append("-" if own is None else measure.said(own.after))
        found = change(study, FASTAPI, WHOLE, measure.of)
        shown = "" if found is None or not found.before or isnan(found.change) else signed(found.change)
        table.rows.append([measure.name, *values, shown])
    return table


def ablation(study: Study) -> Table:
    """Each step by itself beside dlproxy alone, and on top of those before beside the rung below."""
    table = Table(["step", "", *(measure.name.partition(":")[0] for measure in asked_for(study))], [])
    table.rows += _rows(study, "dlproxy alone", f"beside {FASTAPI}", FASTAPI, ALONE)
    whole = next(iter(study.of(WHOLE).values()), None)
    last = [name for name in NAMES if whole is not None and name in whole.steps][-1:]
    below = ALONE
    for name in NAMES:
        alone = f"only {name}"
        table.rows += _rows(study, name, "by itself", ALONE, alone)
        here = alone if name == NAMES[0] else WHOLE if [name] == last else f"+ {name}"
        if here != alone:
            table.rows += _rows(study, name, "on top of those before", below, here)
        below = here if study.of(here) else below
    table.rows += _rows(study, WHOLE, "beside dlproxy alone", ALONE, WHOLE)
    return table


def _rows(study: Study, name: str, how: str, before: str, after: str) -> list[list[str]]:
    found = [change(study, before, after, measure.of) for measure in asked_for(study)]
    ends = [f" ({_between(one)})" if one is not None and one.rounds > 1 else "" for one in found]
    cells = [
        "-" if one is None or isnan(one.change) else f"{signed(one.change)}{end}" for one, end in zip(found, ends, strict=True)
    ]
    return [[name, how, *cells]] if any(one is not None for one in found) else []


def sums(study: Study) -> list[str]:
    """Whether the steps' gains by themselves make the gain of all of them."""
    said = []
    for measure in asked_for(study):
        alone = [change(study, ALONE, f"only {name}", measure.of) for name in NAMES]
        whole = change(study, ALONE, WHOLE, measure.of)
        if whole is None or len([one for one in alone if one is not None]) < 2:
            continue
        product = 1.0
        for one in alone:
            product *= 1.0 if one is None else 1.0 + one.change
        said.append(
            f"{measure.name.partition(':')[0]}: the steps by themselves would multiply to {signed(product - 1.0)}, together "
            f"they make {signed(whole.change)}"
        )
    return said


def without_effect(study: Study) -> list[str]:
    """Steps that by themselves changed none of the figures for the better by more than noise, with what they did."""
    said = []
    for name in NAMES:
        found = [(measure, change(study, ALONE, f"only {name}", measure.of)) for measure in asked_for(study)]
        known = [(measure, one) for measure, one in found if one is not None and not isnan(one.change)]
        better = [one for measure, one in known if (one.low > 0.0 if measure.more else one.high < 0.0)]
        if known and not better and known[0][1].rounds > 1:
            what = ", ".join(f"{measure.name.partition(':')[0]} {signed(one.change)}" for measure, one in known)
            said.append(f"{name} by itself: {what}; no more than noise in {known[0][1].rounds} rounds")
    return said


def headline(study: Study) -> str:
    """In a sentence."""
    rows = goals(study).rows
    if not rows:
        return f"Too little was measured: no round has both {FASTAPI} and {WHOLE}."
    verdicts = [row[-1] for row in rows]
    said = ", ".join(f"{row[0].partition(':')[0]} {row[3]}" for row in rows)
    more = f", {verdicts.count(UNSURE)} more on average but not surely" if UNSURE in verdicts else ""
    return f"{verdicts.count(REACHED)} of {len(rows)} figures reach what the case asks for{more}: {said}."
