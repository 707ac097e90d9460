"""An evaluation as five groups of tables, each figure with its unit and how it was measured, and what they mean in a sentence.

Called by table.py and page.py, which show the same. Not aware of: terminals, HTML.
"""

from msgspec import Struct

from dlproxy.lab.evaluate.evaluation import FAULTS, Evaluation, FaultReport, Moment, Series
from dlproxy.lab.evaluate.recovery import BACK
from dlproxy.lab.evaluate.usl import LEAST_POINTS
from dlproxy.lab.report.wording import count, duration, number, rate, share

NONE = "-"
PHASES = (
    ("queue", ("queue",), "waiting in the server's queue"),
    ("inference", ("compute_input", "compute_infer"), "its batch was gathered and computed"),
    ("result", ("compute_output",), "its part was cut out of the batch"),
)
_MUCH_WAITING = 0.25
_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


class Table(Struct, kw_only=True):
    """Cells as text; the last one of each row says how the figure was measured."""

    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]


class Group(Struct, kw_only=True):
    """One of the five metrics. `remarks`: what could not be measured, and why."""

    title: str
    meaning: str
    tables: list[Table]
    remarks: list[str] = []


def groups(found: Evaluation) -> list[Group]:
    """All five; those of which nothing was measured say so."""
    return [_response(found), _throughput(found), _utilisation(found), _scalability(found), _robustness(found)]


def headline(found: Evaluation) -> str:
    """The evaluation in one sentence."""
    if found.peak_rps is not None and found.objective_ms is not None:
        sure = "" if found.confirmed else " (short runs only)"
        said = f"{number(found.peak_rps)} requests/s with 99 % of the answers within {duration(found.objective_ms)}{sure}"
    elif found.full is not None:
        said = f"{number(found.full.rate_rps)} requests/s in a closed loop of {count(found.full_clients, 'client')}"
    else:
        return "Nothing was measured."
    kept = [report for report in found.faults if report.kept is not None]
    if kept:
        worst = min(kept, key=lambda report: report.kept or 0.0)
        said += f"; under the worst fault ({worst.name}) {share(min(worst.kept or 0.0, 1.0), 1.0)} of the goodput was kept"
    return f"{said}."


# Response time


def _response(found: Evaluation) -> Group:
    once = Table(headings=("", "time", "how it was measured"), rows=[])
    if found.ready_s is not None:
        once.rows.append(("until ready", duration(found.ready_s * 1e3), "from the start of the process until it served"))
    if found.load_s is not None:
        once.rows.append(("load", duration(found.load_s * 1e3), "the same model once more, into the server that ran"))
    tables = [once] if once.rows else []
    remarks = [f"{what}: {found.missing[name]}" for name, what in _MISSING if name in found.missing]
    moments = [("calm", found.calm), ("busy", found.busy)]
    known = [(name, moment) for name, moment in moments if moment is not None]
    if known:
        tables.append(_split(known))
    return Group(title="Response time", meaning=_response_means(found), tables=tables, remarks=remarks)


_MISSING = (("ready", "until ready"), ("load", "load"), ("calm", "calm"), ("busy", "busy"))


def _split(known: list[tuple[str, Moment]]) -> Table:
    def row(name: str, cells: list[str], how: str) -> tuple[str, ...]:
        return (name, *cells, how)

    moments = [moment for _, moment in known]
    rows = [row("offered", [rate(one.offered_rps) for one in moments], "Poisson arrivals: 10 % and 70 % of the highest rate")]
    for key in ("p50", "p90", "p99"):
        cells = [duration(one.latency_ms[key]) if key in one.latency_ms else NONE for one in moments]
        rows.append(row(key, cells, "end to end, as clients see it, from when a request was due"))
    for name, keys, how in PHASES:
        cells = [_phase(one, keys) for one in moments]
        rows.append(row(name, cells, f"mean per request, by the server's counters: {how}"))
    cells = [_rest(one) for one in moments]
    rows.append(row("rest", cells, "mean end to end less the three above: decode, encode, network, client"))
    rows.append(row("failed", [f"{one.failed:,}" for one in moments], "requests without a good answer"))
    return Table(headings=("", *(name for name, _ in known), "how it was measured"), rows=rows)


def _phase(moment: Moment, keys: tuple[str, ...]) -> str:
    found = [moment.phases_ms[key] for key in keys if key in moment.phases_ms]
    return duration(sum(found)) if found else NONE


def _rest(moment: Moment) -> str:
    if "mean" not in moment.latency_ms or not moment.phases_ms:
        return NONE
    spent = sum(moment.phases_ms.get(key, 0.0) for _, keys, _ in PHASES for key in keys)
    return duration(max(moment.latency_ms["mean"] - spent, 0.0))


def _response_means(found: Evaluation) -> str:
    calm, busy = found.calm, found.busy
    if calm is None or busy is None or "p99" not in calm.latency_ms or "p99" not in busy.latency_ms:
        return "Too little was measured to say how load changes the response time."
    grown = busy.latency_ms["p99"] / max(calm.latency_ms["p99"], 1e-9)
    queue, whole = busy.phases_ms.get("queue", 0.0), busy.latency_ms.get("mean", 0.0)
    waits = f"; {share(min(queue / whole, 1.0), 1.0)} of a request's time is waiting then" if whole and queue else ""
    times = f"{number(grown)} times as long as" if grown > 1.1 else "no longer than"
    return f"At 70 % of the highest rate the slowest percent takes {times} when it is calm{waits}."


# Throughput


def _throughput(found: Evaluation) -> Group:
    rows: list[tuple[str, ...]] = []
    if found.peak_rps is not None and found.objective_ms is not None:
        objective = f"p99 = {duration(found.objective_ms)} ({found.objective_from})"
        how = "held for a whole run" if found.confirmed else "passed short runs, no whole one: there was no time, or none held"
        rows.append(("within objective", rate(found.peak_rps), f"highest Poisson rate with {objective}; {how}"))
    if found.full is not None:
        rows.append(("closed loop", rate(found.full.rate_rps), _levels(found)))
    base = found.peak_rps or (found.full.rate_rps if found.full is not None else 0.0)
    if base and found.answer_bytes:
        what = "bodies of requests and answers, at the highest rate" if found.peak_rps else "bodies, at the closed loop's rate"
        rows.append(("in", f"{_bytes(base * found.request_bytes)}/s", f"{what}; {_bytes(found.request_bytes)} a request"))
        rows.append(("out", f"{_bytes(base * found.answer_bytes)}/s", what))
        rows.append(("an answer", _bytes(found.answer_bytes), "body of the first answer"))
    tables = [Table(headings=("", "throughput", "how it was measured"), rows=rows)] if rows else []
    remarks = [f"{name}: {found.missing[name]}" for name in ("peak", "clients") if name in found.missing]
    return Group(title="Throughput", meaning=_throughput_means(found), tables=tables, remarks=remarks)


def _levels(found: Evaluation) -> str:
    tried = [point.n for point in found.clients.points]
    return f"{count(found.full_clients, 'client')}: the best of {tried[0]} to {tried[-1]}"


def _throughput_means(found: Evaluation) -> str:
    if found.full is None:
        return "Nothing was measured."
    if found.peak_rps is None and "peak" not in found.missing:
        return "The highest rate within the objective was not measured."
    if found.peak_rps is None:
        return "No rate met the objective: either it is too strict for this model, or the machine was disturbed."
    part = found.peak_rps / max(found.full.rate_rps, 1e-9)
    if part > 1.0:
        return "The objective costs no throughput: it held at a rate above what waiting clients reach."
    return f"The objective can be promised up to {share(part, 1.0)} of what the server does when clients wait for it."


def _bytes(value: float) -> str:
    for size, unit in _SIZES:
        if value >= size:
            return f"{number(value / size)} {unit}"
    return f"{number(value)} B"


# Utilisation


def _utilisation(found: Evaluation) -> Group:
    known = [
        (name, moment)
        for name, moment in (("calm", found.calm), ("busy", found.busy), ("closed loop", found.full))
        if moment is not None
    ]
    if not known:
        return Group(title="Utilisation", meaning="Nothing was measured.", tables=[])
    moments = [moment for _, moment in known]
    cores = f" of {count(found.cores, 'core')}" if found.cores else ""
    rows = [
        ("answered", *(rate(one.rate_rps) for one in moments), "rate of each load"),
        ("cores busy", *(_known(one.cores_busy) for one in moments), f"CPU time of the server and its workers{cores}"),
        ("useful", *(_share(one.useful) for one in moments), "cores busy, for answers within the objective, of all cores"),
        ("instances busy", *(_share(one.instances_busy) for one in moments), "time of batches, by the server's counters"),
        ("mean batch", *(_known(one.mean_batch) for one in moments), "rows in a batch, by the server's counters"),
        ("waiting", *(_known(one.waiting) for one in moments), "threads of the server that waited for a core, on average"),
        ("generator", *(_known(one.generator_cores) for one in moments), "cores that the load generator took itself"),
    ]
    table = Table(headings=("", *(name for name, _ in known), "how it was measured"), rows=rows)
    remarks = []
    if all(one.cores_busy is None for one in moments):
        remarks.append("cores busy: a server elsewhere does not tell; with --control its metrics do")
    return Group(title="Utilisation", meaning=_utilisation_means(found), tables=[table], remarks=remarks)


def _utilisation_means(found: Evaluation) -> str:
    full, busy = found.full, found.busy
    if full is not None and full.instances_busy is not None and full.instances_busy > 0.9:
        limit = "its instances work nearly all the time then, so the model is the limit"
    elif full is not None and full.cores_busy is not None and found.cores and full.cores_busy > 0.85 * found.cores:
        limit = "it uses nearly all cores then, so they are the limit"
    elif full is not None and full.waiting is not None and full.waiting > _MUCH_WAITING:
        limit = "its threads wait for cores then that other programs have, so it can do more where there are none"
    else:
        limit = "neither instances nor cores are all in use then, so something else, such as the load generator, is the limit"
    most = f"The closed loop shows the most that it does: {limit}."
    if busy is None or busy.useful is None:
        return most
    return f"{most} At 70 % of the highest rate, {share(busy.useful, 1.0)} of the machine does what clients asked for in time."


# Scalability


def _scalability(found: Evaluation) -> Group:
    tables, remarks = [], []
    for name, series in _series(found):
        if series.points:
            tables.append(_series_table(name, series))
        if series.reason:
            remarks.append(f"{name}: {series.reason}")
        if series.points and series.fit is None:
            known = count(sum(point.rate_rps > 0.0 for point in series.points), "point")
            remarks.append(f"{name}: {known}, too few for a scalability law, which takes {LEAST_POINTS}")
    remarks += [f"{name}: {found.missing[name]}" for name in ("instances", "cores") if name in found.missing]
    return Group(title="Scalability", meaning=_scalability_means(found), tables=tables, remarks=remarks)


def _series(found: Evaluation) -> tuple[tuple[str, Series], ...]:
    return ("clients", found.clients), ("instances", found.by_instances), ("cores", found.by_cores)


def _series_table(name: str, series: Series) -> Table:
    how = {
        "clients": "closed loop, as many requests under way",
        "instances": "closed loop, so many instances of the model",
        "cores": "closed loop, the server kept on so many cores",
    }[name]
    first = series.points[0]
    rows: list[tuple[str, ...]] = []
    for point in series.points:
        law = rate(series.fit.at(point.n)) if series.fit is not None else NONE
        gain = f"{number(point.rate_rps / first.rate_rps)} x" if first.rate_rps else NONE
        p99 = NONE if point.p99_ms is None else duration(point.p99_ms)
        rows.append((f"{point.n}", rate(point.rate_rps), gain, law, p99, how))
        how = "the same" if how != "the same" else how
    return Table(headings=(name, "throughput", "gain", "by the law", "p99", "how it was measured"), rows=rows)


def _scalability_means(found: Evaluation) -> str:
    said = [_law(name, series) for name, series in _series(found) if series.fit is not None]
    if said:
        return " ".join(said)
    if not any(series.points for _, series in _series(found)):
        return "Nothing was measured."
    return (
        f"No scalability law is claimed: that takes at least {LEAST_POINTS} different numbers of clients, instances or cores."
    )


def _law(name: str, series: Series) -> str:
    law = series.fit
    assert law is not None
    fitted = (
        f"Over {name}: lambda = {rate(law.single_rps)}, sigma = {number(law.contention)}, "
        f"kappa = {number(law.coherence)}, R² = {law.r2:.3f}"
    )
    most = max(point.n for point in series.points)
    if law.r2 < 0.8:
        return f"{fitted}: the law does not describe these points well, so draw no conclusion from it."
    if law.best_n is not None and law.best_n <= 2 * most:
        return f"{fitted}: highest at {number(law.best_n)}, and more do harm."
    if law.contention > 0.0:
        limit = rate(law.single_rps / law.contention)
        return f"{fitted}: more never do harm as far as was measured, and the limit is near {limit}."
    return f"{fitted}: it grows in proportion as far as was measured."


# Robustness


def _robustness(found: Evaluation) -> Group:
    measured = [report for report in found.faults if report.effect is not None]
    rows = [_fault_row(report) for report in measured]
    headings = ("fault", "before", "during", "kept", "recovery", "what was done")
    tables = [Table(headings=headings, rows=rows)] if rows else []
    remarks = [f"{report.name}: {report.reason}" for report in found.faults if report.reason]
    remarks += [f"{name}: {found.missing[name]}" for name in FAULTS if name in found.missing]
    return Group(title="Robustness", meaning=_robustness_means(measured), tables=tables, remarks=remarks)


def _fault_row(report: FaultReport) -> tuple[str, ...]:
    effect = report.effect
    assert effect is not None
    back = f"not in {duration(effect.watched_s * 1e3)}" if effect.recovery_s is None else _seconds(effect.recovery_s)
    kept = NONE if report.kept is None else share(min(report.kept, 1.0), 1.0)
    during = NONE if report.kept is None else rate(report.kept * report.reference_rps)
    of = f"; kept of the highest rate, {rate(report.reference_rps)}" if report.reference_rps > 1.05 * effect.before_rps else ""
    return report.name, rate(effect.before_rps), during, kept, back, f"{report.note}{of}"


def _seconds(seconds: float) -> str:
    return "at once" if seconds < 0.1 else duration(seconds * 1e3)


def _robustness_means(measured: list[FaultReport]) -> str:
    if not measured:
        return "Nothing was measured."
    slow = [report.name for report in measured if report.effect is not None and report.effect.recovery_s is None]
    hurt = [report.name for report in measured if report.kept is not None and report.kept < BACK]
    kept = f"{' and '.join(hurt)} cost goodput while they lasted" if hurt else "no fault cost more than 5 % of the goodput"
    back = f"it was not back afterwards from {' and '.join(slow)}" if slow else "it was back after each"
    return f"Of {count(len(measured), 'fault')}, {kept}; {back}. Goodput counts answers within the objective."


def _known(value: float | None) -> str:
    return NONE if value is None else number(value)


def _share(value: float | None) -> str:
    return NONE if value is None else share(value, 1.0)
