"""A study as one HTML page, as Markdown, and as text for the terminal.

Called by cli/casestudy.py. Not aware of: how anything was measured, how charts are drawn.
"""

from collections.abc import Iterator
from pathlib import Path

from dlproxy.lab.casestudy import wording as words
from dlproxy.lab.casestudy.charts import pictures
from dlproxy.lab.casestudy.day import LOAD
from dlproxy.lab.casestudy.record import Study
from dlproxy.lab.casestudy.steps import ELSEWHERE, FASTAPI, STEPS, WHOLE
from dlproxy.lab.casestudy.wording import Table
from dlproxy.lab.report import wording
from dlproxy.lab.report.page import bullets, charts, header, page, section, table, text, write
from dlproxy.lab.report.result import ResultError

TITLES = {"promotion": "A promotion day", "advertisement": "A day of advertisements"}
GENERATOR_BUSY, LATE_MS, OTHERS = 0.6, 10.0, 0.1
LACKED = dict.fromkeys((step.name for step in STEPS), "there is no model for it") | {"agent": "no --agent was given"}
REFUSALS = ("503", "504", "429")  # of a server that knows what it has no time for; all else is a mistake


def save(study: Study, folder: Path) -> list[Path]:
    """Write report.html and RESULTS.md. Raises ResultError."""
    paths = [folder / "report.html", folder / "RESULTS.md"]
    write(html(study), paths[0])
    try:
        paths[1].write_text(markdown(study), "utf-8")
    except OSError as error:
        raise ResultError(f"cannot write {paths[1]}: {error.strerror}") from None
    return paths


def html(study: Study) -> str:
    """The page as text."""
    said = doubts(study)
    last = {side: study.of(side)[max(study.of(side))] for side in (FASTAPI, WHOLE) if study.of(side)}
    decisions = [turn.decisions for side, turn in last.items() if side == WHOLE]
    return page(
        TITLES[study.day.case],
        [
            header(_what(study), words.headline(study)),
            section("Warnings", bullets(said), style="warnings") if said else "",
            section("What the case asks for", _html(words.goals(study))),
            charts(pictures(study.day, last)) if len(last) == 2 else "",
            section("The same days otherwise", _html(words.more(study))),
            section("What each step does", _html(words.ablation(study))),
            *(section(title, bullets(lines)) for title, lines in _remarks(study) if lines),
            *(section("What dlproxy decided", _html(_decisions(one)), style="words") for one in decisions if one),
            section("The steps, and what else the case names", _html(steps(study)), style="words"),
            section("How it was measured", bullets(how(study))),
        ],
    )


def markdown(study: Study) -> str:
    """RESULTS.md."""
    parts = [
        f"# {TITLES[study.day.case]}",
        _what(study) + ".",
        f"**{words.headline(study)}**",
        *(f"Warning: {said}." for said in doubts(study)),
    ]
    parts += ["## What the case asks for", _markdown(words.goals(study))]
    parts += ["## The same days otherwise", _markdown(words.more(study))]
    parts += ["## What each step does", _markdown(words.ablation(study))]
    for title, lines in _remarks(study):
        parts += [f"## {title}", "\n".join(f"- {line}" for line in lines)] if lines else []
    parts += ["## The steps, and what else the case names", _markdown(steps(study))]
    parts += ["## How it was measured", "\n".join(f"- {line}" for line in how(study))]
    return "\n\n".join(parts) + "\n"


def lines(study: Study) -> Iterator[str]:
    """For a terminal."""
    yield words.headline(study)
    yield ""
    yield from _text(words.goals(study))
    for said in doubts(study):
        yield f"warning: {said}"


def steps(study: Study) -> Table:
    """Every step of the case, and where those are that are none of this study."""
    had = {name for turn in study.turns for name in turn.steps}
    rows = [[step.name, step.does if step.name in had else f"{step.does}. Left out: {LACKED[step.name]}"] for step in STEPS]
    return Table(["step", "what it changes"], [*rows, *([name, why] for name, why in ELSEWHERE.items())])


def doubts(study: Study) -> list[str]:
    """What makes the figures less sure."""
    said = []
    rounds = [len(study.of(side)) for side in study.sides()]
    if rounds and min(rounds) < max(rounds):
        said.append("the study was stopped early: not every side has had every round")
    if rounds and max(rounds) < 3:
        said.append(f"{wording.count(max(rounds), 'round')} only: intervals are wide, or there are none")
    busy = [turn for turn in study.turns if turn.generator_share > GENERATOR_BUSY]
    late = [turn for turn in study.turns if turn.side != FASTAPI and turn.late_p99_ms > LATE_MS]
    if busy:
        said.append(
            f"in {len(busy)} of {len(study.turns)} turns the load generator used more than {GENERATOR_BUSY:.0%} of a core"
        )
    if disturbed := [turn.others for turn in study.turns if turn.others > OTHERS]:
        said.append(
            f"in {len(disturbed)} of {len(study.turns)} turns other programs had more than {OTHERS:g} of the cores, up to "
            f"{wording.number(max(disturbed))}: no figure here is to be relied on"
        )
    for side in study.sides():
        said += _failed(study, side)
    if late:
        worst = max(turn.late_p99_ms for turn in late)
        said.append(
            f"in {len(late)} of {len(study.turns)} turns requests left late, up to {wording.duration(worst)} at p99, which is "
            "in their response time: the machine was busy"
        )
    return said


def _failed(study: Study, side: str) -> list[str]:
    """What went wrong with a side but for what it refused."""
    found: dict[str, int] = {}
    words_of: dict[str, str] = {}
    for turn in study.of(side).values():
        for kind, times in turn.errors.items():
            found[kind] = found.get(kind, 0) + times
        words_of |= turn.said
    return [
        f"{side}: {wording.count(times, 'request')} failed ({kind}{': ' * bool(words_of.get(kind))}{words_of.get(kind, '')})"
        for kind, times in found.items()
        if not kind.startswith(REFUSALS)
    ]


def how(study: Study) -> list[str]:
    """The method, with this run's numbers."""
    day = study.day
    service = ", ".join(f"{name} {wording.duration(ms)}" for name, ms in day.service_ms.items())
    return [
        f"{len(day.at_s):,} requests in {wording.duration(day.length_s * 1e3)}, JPEG in and category out, sent when they are "
        "due, whatever the answers do; every side gets the same bytes at the same times, in turns, another side first in "
        "each round",
        f"the shop's server answered {wording.rate(day.busiest_rps)} at most; the day's mean is {LOAD:g} of that "
        f"({wording.rate(day.mean_rps)}), three times as much in its busiest hour as in its quietest, six "
        "times as much in the sale",
        f"the objective is {wording.duration(day.objective_ms)}; a response time counts from when a request was due",
        f"useful core-seconds: an answer in time counts with what its models take alone on one core ({service}), a remembered "
        f"answer with nothing; available are {day.cores} cores, of which the load generator has its part, too",
        "of wrong categories each picture counts once, however often it was sent",
        "changes are geometric means of the ratios within a round, intervals are Student's t over the rounds",
        f"machine: {', '.join(f'{name} {value}' for name, value in day.machine.items() if value)}; started {day.started}",
    ]


def _what(study: Study) -> str:
    sides = wording.count(len(study.sides()), "side")
    title = TITLES[study.day.case]
    return f"{title}: {sides}, {len(study.turns)} days of {wording.duration(study.day.length_s * 1e3)} each"


def _remarks(study: Study) -> list[tuple[str, list[str]]]:
    return [("Do they add up?", words.sums(study)), ("What did not help", words.without_effect(study))]


def _decisions(decisions: list[tuple[float, str, str]]) -> Table:
    return Table(["time", "model", "what"], [[f"{at_s:.1f} s", model, said] for at_s, model, said in decisions])


def _html(shown: Table) -> str:
    return table(map(text, shown.headings), ([text(cell) for cell in row] for row in shown.rows))


def _markdown(shown: Table) -> str:
    rows = [shown.headings, ["---"] * len(shown.headings), *shown.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def _text(shown: Table) -> Iterator[str]:
    rows = [shown.headings, *shown.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(shown.headings))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
