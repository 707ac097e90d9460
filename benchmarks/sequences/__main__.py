"""Silero VAD in 64 streams, beside itself alone and unbatched, abandoned, and killed: `python -m benchmarks.sequences`.

Prints a table; `--write` writes RESULTS.md. Ends with 1 if a goal is missed. Needs Linux and about four minutes.
"""

import asyncio
import json
import os
import signal
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter, sleep
from typing import Any
from urllib.request import urlopen

import numpy as np

from benchmarks.harness.checks import Findings, as_page
from benchmarks.harness.live import Live, Served
from benchmarks.harness.options import minute, options_of, positive, utc_now
from benchmarks.harness.processes import Children, Cores
from benchmarks.harness.running import find
from benchmarks.harness.turns import in_turn, spread
from benchmarks.instances.watch import port_of, until
from benchmarks.real.fetch import PACKAGES, install
from benchmarks.real.making.places import Places
from benchmarks.sequences.streams import Crowd, Sounds, alone, sounds
from dlproxy.fleet.memory import resident_bytes

PAGE = Path(__file__).with_name("RESULTS.md")
PACKAGE, FILE = "silero-vad==6.2.3", "silero_vad/data/silero_vad.onnx"
STREAMS, CHUNKS = 64, 100
ABANDONED, IDLE_S, ROUNDS = 10_000, 20.0, 4
GIVEN_BACK_S = 1.0
TIMES, LEFT_MIB, TOLERANCE = 3.0, 8.0, 1e-5
ABOUT = f"""\
Silero VAD as its package {PACKAGE} has it, with `state = {{ state = "stateN" }}`: chunks of 32 ms over HTTP as binary tensors,
each stream on a connection of its own, the next chunk once the one before it is answered. Unbatched: the same server with
`batching = "off"`; rounds take turns, and nothing is pinned. Answers are compared with those of ONNX
Runtime alone, stream by stream."""


def config(model: Path, **more: Any) -> str:
    lines = {"path": str(model), "sequences": "oldest", "slo": "p99=10s", "max_sequences": 2 * ABANDONED, **more}
    rows = [f"{name} = {json.dumps(value)}" for name, value in lines.items()]
    return "\n".join(["[models.vad]", *rows, 'state = { state = "stateN" }'])


def side_by_side(live: Live, model: Path, given: Sounds, rounds: int) -> Findings:
    """Batched and unbatched in turns."""
    findings = Findings(f"{STREAMS} streams")
    expected, rate_alone = alone(model, given)
    crowd, worst = Crowd(given), 0.0
    rates: dict[str, list[float]] = {"batched": [], "unbatched": []}
    with ExitStack() as stack:
        ports = {
            name: port_of(stack.enter_context(live.serve(config(model, **more))).url)
            for name, more in (("batched", {}), ("unbatched", {"batching": "off"}))
        }
        for number in range(-1, rounds):  # the first one warms up
            for name in in_turn(list(ports), number % 2):
                told, rate, failures = asyncio.run(crowd.run(ports[name]))
                worst = max(worst, float(np.abs(told - expected).max()))
                print(f"  {name}: {rate:,.0f} chunks/s", flush=True)
                if number >= 0:
                    rates[name].append(rate)
                findings.details += [f"- {name}: {times} requests failed: {words}" for words, times in failures.items()]
    ratios = [mine / theirs for mine, theirs in zip(rates["batched"], rates["unbatched"], strict=True)]
    findings.at_least("chunks a second by unbatched", TIMES, statistics.median(ratios), note=spread(ratios))
    findings.at_most("largest difference from the model alone", TOLERANCE, worst, digits=8)
    findings.details += [f"- {name}: {statistics.median(found):,.0f} chunks a second" for name, found in rates.items()]
    findings.details.append(f"- the model alone, in a loop on one thread: {rate_alone:,.0f} chunks a second")
    return findings


def abandoned(live: Live, model: Path, given: Sounds) -> Findings:
    """Several times: what grows from round to round is a leak."""
    findings = Findings(f"{ABANDONED:,} abandoned streams")
    crowd = Crowd(np.repeat(sounds(1, 1), ABANDONED, axis=0), leave=True)
    with live.serve(config(model, sequence_idle_s=IDLE_S)) as served:
        pid = served.child.process.pid
        asyncio.run(Crowd(given, leave=True).run(port_of(served.url)))  # allocates what connections and batches need
        held = [left(served)]
        findings.details.append(f"- {held[0]:.1f} MiB before")
        for _ in range(ROUNDS):
            told, _, failures = asyncio.run(crowd.run(port_of(served.url)))
            most = resident_bytes(pid)
            held.append(left(served))
            findings.details.append(f"- {told.size:,} began; {most / 2**20:.1f} MiB then, {held[-1]:.1f} MiB once forgotten")
            findings.none("refused", failures.total())
        findings.none("sequences that are left", sequences_of(served)["active"])
        findings.at_most("memory after the first round", LEFT_MIB, held[1] - held[0], unit=" MiB", digits=1)
        more = f"memory after {ROUNDS} rounds, by the first"
        findings.at_most(more, LEFT_MIB / 4, held[-1] - held[1], unit=" MiB", digits=1)
    return findings


def left(served: Served) -> float:
    """MiB that it holds when all sequences are forgotten, and what they took has been given back, which is begun after that."""
    asyncio.run(until(lambda: no_sequences(served), perf_counter()))
    sleep(GIVEN_BACK_S)
    return resident_bytes(served.child.process.pid) / 2**20


def killed(live: Live, model: Path, given: Sounds) -> Findings:
    """One of two worker processes, again and again."""
    findings = Findings("Killed workers")
    expected, _ = alone(model, given)
    with live.serve(config(model, run="process", instances=2)) as served:
        told, failures, kills = asyncio.run(while_killing(served, Crowd(given)))
        findings.none("streams with another answer than alone", int((np.abs(told - expected) > TOLERANCE).any(axis=1).sum()))
        findings.at_least("workers killed meanwhile", 1, kills, digits=0)
        findings.none("sequences that broke", sequences_of(served)["broken"])
    findings.details.append(f"- {failures.total()} of {told.size:,} requests failed, and were sent again:")
    findings.details += [f"    - {times} x {words}" for words, times in failures.most_common(3)]
    return findings


async def while_killing(served: Served, crowd: Crowd) -> tuple[Sounds, Any, int]:
    running = asyncio.ensure_future(crowd.run(port_of(served.url)))
    kills = 0
    while not running.done():
        await asyncio.wait({running}, timeout=0.7)
        workers = [one["pid"] for one in control(served)["instances"] if one["state"] == "up" and one.get("pid")]
        if workers and not running.done() and kills < 4:
            os.kill(workers[kills % len(workers)], signal.SIGKILL)
            kills += 1
    told, _, failures = await running
    return told, failures, kills


def control(served: Served) -> Any:
    with urlopen(f"{served.control_url}/models/vad", timeout=30) as reply:
        return json.load(reply)


def sequences_of(served: Served) -> Any:
    return control(served)["sequences"]


async def no_sequences(served: Served) -> bool:
    return not sequences_of(served)["active"]


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("sequences", __doc__)
    parser.add_argument("--rounds", type=positive(int), default=5, help="of the comparison (default 5)")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args(arguments)

    def measure(children: Children, cores: Cores, folder: Path) -> Iterator[Findings]:
        install(PACKAGE, sys.executable, children)
        model = Places(PACKAGES).of(PACKAGE) / FILE
        live = Live(children, Cores(None, None), folder)
        given = sounds(STREAMS, CHUNKS)
        yield side_by_side(live, model, given, options.rounds)
        yield abandoned(live, model, given)
        yield killed(live, model, given)

    def page(found: Any, machine: str) -> None:
        if options.write:
            lead = ["# Sequences", "", f"`python -m benchmarks.sequences` on {minute(utc_now())}; {machine}.", "", ABOUT]
            PAGE.write_text(as_page(lead, [(one.title, "", one.checks, one.details) for one in found]))

    return find("sequences", measure, page)


if __name__ == "__main__":
    sys.exit(main())
