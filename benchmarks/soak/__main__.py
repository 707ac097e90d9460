"""An hour of mixed load with a fault every minute: `python -m benchmarks.soak` (`make prove-soak [MINUTES=60]`).

Prints what was found and keeps all raw data; after an hour it writes RESULTS.md. Ends with 1 if an answer was lost, doubled or
somebody else's, a failure has no fault that explains it, or memory or descriptors grow. Ctrl-C keeps what was measured.
Needs Linux and a Redis.
"""

import argparse
import asyncio
import sys
from collections import Counter
from math import inf
from pathlib import Path

import msgspec

from benchmarks.harness.checks import Findings, as_page, as_text
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.options import add_json, minute, options_of, positive, utc_now
from benchmarks.harness.page import clean_reason, paragraph, table
from benchmarks.harness.processes import Children, Cores
from benchmarks.harness.running import EXIT_INTERRUPTED, EXIT_MISSED, INTERRUPTS, run, workplace
from benchmarks.soak.clients import PARTS
from benchmarks.soak.faults import FAULTS
from benchmarks.soak.memory import Slope, lives, slope, summed
from benchmarks.soak.site import QUOTA_PER_S
from benchmarks.soak.soaking import CALLS, HTTP, STREAMS, Outcome, soak

PAGE = Path(__file__).with_name("RESULTS.md")
HOUR_S = 3600.0
WARM_S = 720.0  # of a process' life: what explains slow requests is kept for ten minutes, and fills for as long
JUDGED_S = 1500.0  # a shorter soak tells nothing of slopes
ROLES = {"keeper": "the keeper", "gateway": "a gateway", "worker": "a worker process", "upstream": "an upstream's process"}
MOST_MB, MOST_SUM_MB = 4.0, 16.0  # an hour, the whole interval
MOST_DESCRIPTORS = 2.0
ABOUT = f"""\
`dlproxy serve --gateways 2` with TLS on every port, API keys and a quota: an ONNX model on a thread, a Python class in two
worker processes, a pipeline of these two, an ONNX model whose answers are remembered and shared through Redis, a model on
two other dlproxy of which one is behind a line that can go dead, a Python class that streams, and a model of a repository.
{HTTP} clients over HTTP in JSON, {CALLS} over gRPC in binary and {STREAMS} that read streams of {PARTS} parts ask one thing
after the other, each request with its own number as its id and its input, so that a right answer is known and can be nobody
else's; one more client asks twice as often as its quota lets it. A failure counts as explained if it came while a fault
lasted (and one second later), and is what this fault may do: cut the connections that the killed gateway held, as the
kernel had them; refuse, in words that name the upstream or the model that is gone. Everything else must be zero."""
MEMORY = """\
Anonymous memory of single processes (what is in no file and no other process'), and the proportional set size (PSS) of all
together: Theil-Sen's slope over all pairs of looks at the same process, without the first twelve minutes of its life, in
which it fills what it keeps (of requests that were slow, ten minutes); in brackets the 95 % interval of a bootstrap over
blocks of a minute. Flat: all of the interval lies below the limit."""


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of("soak", __doc__)
    parser.add_argument("--minutes", type=positive(float), default=60.0, help="how long (default 60)")
    parser.add_argument("--every", type=positive(float), default=60.0, help="seconds from fault to fault (default 60)")
    parser.add_argument("--page", type=Path, help=f"where to write the page ({PAGE.name} after an hour)")
    add_json(parser, "soak", utc_now())
    return parser.parse_args(arguments)


def findings_of(outcome: Outcome) -> list[Findings]:
    return [_answers(outcome), _faults(outcome), _growth(outcome)]


def _answers(outcome: Outcome) -> Findings:
    findings = Findings("Answers")
    kinds = Counter(ending.kind for ending in outcome.unexplained)
    asked = sum(outcome.asked.values())
    findings.at_least("requests answered rightly", 1, sum(outcome.answered.values()), digits=0, note=f"of {asked:,} asked")
    findings.none("answered twice", kinds["twice"])
    findings.none("answered with another's answer, or a wrong one", kinds["wrong"])
    findings.none("lost: no answer within 30 s", kinds["late"], f"the slowest took {outcome.slowest_s:.1f} s")
    findings.none("connection lost under a request, without a fault that explains it", kinds["cut"])
    findings.none("refused without a fault that explains it", kinds["refused"])
    findings.none("connections that were not made, without a fault that explains it", kinds["unconnected"])
    findings.none("asked and not accounted for", outcome.unaccounted)
    admitted = outcome.answered.get("quota plus", 0) / max(outcome.seconds, 1.0)
    bursts = QUOTA_PER_S * (1 + outcome.gateways) / max(outcome.seconds, 1.0)
    note = f"{outcome.throttled:,} refused with 429"
    findings.at_most("quota: requests let in a second", QUOTA_PER_S + bursts, admitted, note=note)
    findings.none("tracebacks in the servers' logs", len(outcome.log))
    words = Counter((one.kind, one.model, clean_reason(one.words)) for one in outcome.unexplained)
    findings.details += [f"- unexplained: {count} x {' '.join(each)}" for each, count in words.most_common(20)]
    findings.details += [f"- logged: {clean_reason(record)}" for record in outcome.log[:5]]
    return findings


def _faults(outcome: Outcome) -> Findings:
    findings = Findings("Faults")
    findings.none("faults after which not all was well again", sum(bool(one.problem) for one in outcome.strikes))
    rows = []
    for fault in FAULTS:
        times = [one for one in outcome.strikes if one.fault == fault.name]
        if times:
            longest = max(one.ended - one.began for one in times)
            counts = [len(times), sum(one.answered for one in times), sum(one.explained for one in times)]
            rows.append([f"{fault.name}: {fault.about}", *(f"{count:,}" for count in counts), f"{longest:.1f} s"])
    head = ["fault", "times", "answered meanwhile", "failures that it explains", "well again, at the latest after"]
    findings.details += [table(head, rows), ""] if rows else []
    words = Counter((one.kind, one.model, clean_reason(one.words)) for one in outcome.explained)
    findings.details += [f"- explained: {count} x {' '.join(each)}" for each, count in words.most_common(12)]
    findings.details += [f"- {one.fault}: {clean_reason(one.problem)}" for one in outcome.strikes if one.problem]
    return findings


def _growth(outcome: Outcome) -> Findings:
    findings = Findings("Memory and descriptors")
    judged = outcome.seconds >= JUDGED_S
    for field, what, unit, scale, limit in (
        ("own_kb", "memory", " MiB", 1024.0, MOST_MB),
        ("descriptors", "descriptors", "", 1.0, MOST_DESCRIPTORS),
    ):
        for role, name in ROLES.items():
            found = slope(lives(outcome.samples, role, field, warm_s=outcome.warm_s))
            _judge(findings, f"{what} of {name}", found, unit, scale, limit if judged else inf)
    all_together = summed(outcome.samples, "pss_kb", warm_s=outcome.warm_s)
    _judge(findings, "PSS of all", slope([all_together]), " MiB", 1024.0, MOST_SUM_MB if judged else inf)
    if not judged:
        findings.details.append("- not judged: the soak was too short for slopes")
    for role, name in ROLES.items():
        of_role = [one for one in outcome.samples if one.role == role]
        if of_role:
            last = [one for one in of_role if one.at == of_role[-1].at]
            sizes = ", ".join(f"{one.pss_kb / 1024:.0f} MiB PSS and {one.descriptors} descriptors" for one in last)
            findings.details.append(f"- at the end, {name}: {sizes}")
    return findings


def _judge(findings: Findings, what: str, found: Slope | None, unit: str, scale: float, limit: float) -> None:
    if found is None:
        return
    low, median, high = (value / scale for value in found[:3])
    note = f"{median:+.2f} ({low:+.2f} to {high:+.2f}), {found.lives} processes" if found.lives > 1 else ""
    note = note or f"{median:+.2f} ({low:+.2f} to {high:+.2f})"
    findings.at_most(f"{what}, growth an hour: the interval's end", limit, high, unit=unit, note=note)


def page(outcome: Outcome, found: list[Findings], machine: str, command: str) -> str:
    """RESULTS.md."""
    checks = [check for findings in found for check in findings.checks]
    lead = ["# A soak", "", f"`{command}` on {outcome.began}; {machine}.", ""]
    lead += [f"{outcome.seconds / 60:.0f} minutes, {len(outcome.strikes)} faults, {sum(outcome.asked.values()):,} requests. "]
    lead[-1] += f"{sum(check.within for check in checks)} of {len(checks)} goals are reached."
    about = [paragraph(ABOUT), "What is done, and when it counts as over.", paragraph(MEMORY)]
    sections = [(one.title, text, one.checks, one.details) for one, text in zip(found, about, strict=True)]
    return as_page(lead, sections)


def _measure(outcome: Outcome) -> None:
    async def until_told(children: Children, folder: Path) -> None:
        stop = asyncio.Event()
        for number in INTERRUPTS:
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await soak(children, folder, outcome, stop)

    with workplace("soak") as (children, folder):
        asyncio.run(until_told(children, folder))


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    outcome = Outcome(minute(utc_now()), 60.0 * options.minutes, options.every)
    outcome.warm_s = min(WARM_S, outcome.seconds / 5)
    facts = describe_machine(Cores(None, None))
    machine = f"{facts['cpu']}, {facts['cores']} cores, nothing pinned; Python {facts['python']}"
    print(machine)

    code = run(lambda: _measure(outcome))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_bytes(msgspec.json.format(msgspec.json.encode({"machine": facts, "outcome": outcome}), indent=1))
    if code and not outcome.samples:
        return code
    found = findings_of(outcome)
    for findings in found:
        print("\n".join([as_text(findings.checks), "", *findings.details]))
    print(f"\nraw data: {options.json}")
    options.page = options.page or (PAGE if outcome.seconds >= HOUR_S - 60.0 else None)
    if options.page is not None and not outcome.interrupted:
        command = f"python -m benchmarks.soak --minutes {options.minutes:g} --every {options.every:g}"
        options.page.write_text(page(outcome, found, machine, command))
    if code or outcome.interrupted:
        return code or EXIT_INTERRUPTED
    return EXIT_MISSED if any(check.missed for findings in found for check in findings.checks) else 0


if __name__ == "__main__":
    sys.exit(main())
