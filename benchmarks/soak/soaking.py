"""A soak from its start to its end: the load goes on, a fault now and then, what all processes hold is sampled.

Called by __main__.py. Not aware of: verdicts, pages.
"""

import asyncio
import itertools
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic

from msgspec import Struct, field

from benchmarks.harness.processes import Children
from benchmarks.soak.clients import Book, Ending, Load
from benchmarks.soak.faults import FAULTS, Fault, Strike, inflict
from benchmarks.soak.memory import Held, family, held, role_of
from benchmarks.soak.site import Site

HTTP, CALLS, STREAMS = 12, 4, 2  # clients
PAUSE_S = 0.06  # of each, after an answer: well below the grace of a server that drains
LOOKS, LEAST_PERIOD_S = 720, 2.0  # at the processes, in the whole time
RECORD = re.compile(r"^\d{4}-\d\d-\d\d .*(?:\n(?!\d{4}-\d\d-\d\d ).*)*", re.MULTILINE)  # of a log, with what is indented below
CRASHES = ("Traceback", "never retrieved", "CRITICAL")


class Outcome(Struct):
    """All that was seen. Times are seconds since the start. `warm_s`: of a process' life, in which it settles."""

    began: str
    seconds: float = 0.0
    every_s: float = 0.0
    warm_s: float = 0.0
    strikes: list[Strike] = field(default_factory=list)
    unexplained: list[Ending] = field(default_factory=list)
    explained: list[Ending] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=dict)
    answered: dict[str, int] = field(default_factory=dict)
    throttled: int = 0
    unaccounted: int = 0
    slowest_s: float = 0.0
    samples: list[Held] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    """Records of the servers' logs with a traceback."""
    interrupted: bool = False

    @property
    def gateways(self) -> int:
        """Processes that were one, so far as they were seen."""
        return len({one.pid for one in self.samples if one.role == "gateway"})


def plan(count: int) -> Iterator[Fault]:
    """So many faults, in turn. In a long soak those that end gateways come in its first and its last eighth only: between
    them each has time to show how its memory grows.
    """
    if count < 3 * len(FAULTS):
        return itertools.islice(itertools.cycle(FAULTS), count)
    edge = FAULTS[: count // 8]
    others = itertools.cycle([fault for fault in FAULTS if not fault.gateways])
    return itertools.chain(edge, itertools.islice(others, count - 2 * len(edge)), edge)


async def soak(children: Children, folder: Path, outcome: Outcome, stop: asyncio.Event) -> None:
    """`outcome` has its `seconds` and `every_s`, and is filled in; less of it where `stop` is set before. Raises
    BenchmarkError if it cannot be begun.
    """
    site = Site(children, folder)
    try:
        await site.start()
        load = Load(site, PAUSE_S)
        load.start(HTTP, CALLS, STREAMS)
        began = monotonic()
        watching = asyncio.create_task(_watch(site, outcome, began))
        striking = asyncio.create_task(_strike(site, load.book, outcome, began))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((striking, watching, stopping), return_when=asyncio.FIRST_COMPLETED)
        outcome.interrupted = stop.is_set()
        for task in (striking, watching, stopping):
            task.cancel()
        await load.stop()
        for task in (striking, watching):
            with suppress(asyncio.CancelledError):
                await task
        outcome.seconds = monotonic() - began
        _close(load.book, outcome, began)
    finally:
        await site.close()
    outcome.log = list(_crashes(folder))


async def _strike(site: Site, book: Book, outcome: Outcome, began: float) -> None:
    """Returns at the end of the time."""
    count = int((outcome.seconds - outcome.every_s / 2) / outcome.every_s)
    for number, fault in enumerate(plan(count), start=1):
        await asyncio.sleep(began + number * outcome.every_s - monotonic())
        found = Strike(fault.name, monotonic())
        outcome.strikes.append(found)
        await inflict(fault, found, site, book)
        print(
            f"  {found.began - began:5.0f} s  {fault.name}: {found.problem or f'{found.ended - found.began:.1f} s'}", flush=True
        )
    await asyncio.sleep(began + outcome.seconds - monotonic())


async def _watch(site: Site, outcome: Outcome, began: float) -> None:
    period_s = max(outcome.seconds / LOOKS, LEAST_PERIOD_S)
    for look in itertools.count():
        await asyncio.sleep(max(0.0, began + look * period_s - monotonic()))
        outcome.samples += await asyncio.to_thread(_look, site, monotonic() - began)


def _look(site: Site, at: float) -> list[Held]:
    root = site.server.process.pid
    found = [held(at, pid, role_of(pid, root)) for pid in family(root)]
    for child in site.upstreams:
        if child is not None:
            found += [held(at, pid, "upstream") for pid in family(child.process.pid)]
    return [one for one in found if one is not None and one.role != "gone"]


def _close(book: Book, outcome: Outcome, began: float) -> None:
    """What the clients found goes under the faults that explain it."""
    by_name = {fault.name: fault for fault in FAULTS}
    for ending in book.bad:
        cause = next((one for one in outcome.strikes if by_name[one.fault].explained(one, ending)), None)
        if cause is not None and ending.kind in ("refused", "cut", "unconnected"):
            cause.explained += 1
            outcome.explained.append(ending)
        else:
            outcome.unexplained.append(ending)
        ending.asked_at -= began
        ending.at -= began
    for one in outcome.strikes:
        one.began -= began
        one.ended -= began
    outcome.asked, outcome.answered = dict(book.asked), dict(book.answered)
    outcome.throttled, outcome.unaccounted, outcome.slowest_s = book.throttled, book.unaccounted, book.slowest_s


def _crashes(folder: Path) -> Iterator[str]:
    """Records of logs that nobody foresaw, with the name of who wrote them."""
    for path in sorted(folder.glob("*.log")):
        for record in RECORD.findall(path.read_text(errors="replace")):
            if any(word in record for word in CRASHES):
                yield f"{path.stem}: {record[:3000]}"
