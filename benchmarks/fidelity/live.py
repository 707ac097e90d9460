"""The live half: a dlproxy on one core, `dlproxy bench` on the other, and every batch recorded.

Called by benchmarks/fidelity/__main__.py. Not aware of: the simulator.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.live import Live, Served
from dlproxy.lab.load.arrivals import Arrivals, make_arrivals, read_trace
from dlproxy.lab.report.result import Result
from dlproxy.lab.simulate.recording import Batches
from dlproxy.lab.simulate.service_times import Sample

CAPACITY_SECONDS = 3
CAPACITY_RUNS = 4  # the best counts: the first warms up, and another tenant may disturb others
FIRST_SEED = 7


@dataclass(frozen=True)
class Subject:
    """A model that is served live and simulated. `rows`: of each request; `deadline_s`: of each request, and its objective.

    `clients`: so many keep it busy, and get their answers in good time.
    """

    name: str
    path: str
    rows: int
    deadline_s: float
    clients: int
    max_batch: int = 256

    @property
    def knobs(self) -> dict[str, Any]:
        return {"path": self.path, "slo": f"p99={self.deadline_s * 1e3:g}ms", "run": "thread", "max_batch": self.max_batch}

    @property
    def toml(self) -> str:
        return f"[models.{self.name}]\n" + "".join(f"{knob} = {json.dumps(value)}\n" for knob, value in self.knobs.items())


@dataclass(frozen=True)
class Part:
    """Some seconds of load: as the simulator takes them, and as options of `dlproxy bench`."""

    arrivals: Arrivals
    seconds: float
    options: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One load, in parts. The trace is cut between two arrivals, so each part begins with one."""

    kind: str
    load: float
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Run:
    """A part that was sent live, and when, on the monotonic clock that all processes share."""

    part: Part
    result: Result
    began_at: float
    ended_at: float


@dataclass(frozen=True)
class Recording:
    """What was measured of a subject. `runs`: of each cell, in the order of time, as many in each repeat; the first cell's load
    is the least.

    `batches` begin, and `arrivals` are, at instants of the monotonic clock.
    """

    capacity_rps: float
    cells: list[Cell]
    runs: list[list[Run]]
    batches: list[Sample]
    arrivals: NDArray[np.float64]
    repeats: int


class Bench(Live):
    """Runs the server and the load, pinned apart."""

    def record(
        self, subject: Subject, loads: Sequence[float], *, parts: int, seconds: float, repeats: int, trace: Path | None
    ) -> Recording:
        """Every load in so many parts, as often as asked for; `seconds` at load 1, longer at less: all send as many requests.

        The parts of different loads take turns, so that all of them see the machine's quick minutes and its slow ones.
        """
        with self._serve(subject) as served:
            clients = ["--concurrency", str(subject.clients), "--duration", str(CAPACITY_SECONDS)]
            capacity_rps = max(
                self._bench(served.url, subject, clients, CAPACITY_SECONDS).rate_rps for _ in range(CAPACITY_RUNS)
            )
            cells = self._cells(loads, capacity_rps, parts, seconds, trace)
            runs: list[list[Run]] = [[] for _ in cells]
            for _ in range(repeats):
                for cell, part in order(cells, parts):
                    runs[cell].append(self._run(served, subject, cells[cell].parts[part]))
        batches = Batches(self.log(subject))
        return Recording(
            capacity_rps,
            cells,
            runs,
            [sample._replace(at_s=sample.at_s + batches.first_at) for sample in batches.samples],
            batches.arrivals + batches.first_at,
            repeats,
        )

    def log(self, subject: Subject) -> Path:
        """What the server of this subject recorded; complete once it has ended."""
        return self.directory / "log" / f"{subject.name}-1.dlog"

    @contextlib.contextmanager
    def _serve(self, subject: Subject) -> Iterator[Served]:
        with self.serve(subject.toml, [f'event_log = "{self.directory / "log"}"']) as served:
            yield served

    def _run(self, served: Served, subject: Subject, part: Part) -> Run:
        began_at = monotonic()
        deadline = ["--deadline", f"{subject.deadline_s * 1e3:g}ms"]
        result = self._bench(served.url, subject, [*part.options, *deadline], part.seconds)
        return Run(part, result, began_at, monotonic())

    def _bench(self, url: str, subject: Subject, options: Sequence[str], seconds: float) -> Result:
        return self.load(url, subject.name, ["--rows", str(subject.rows), *options], seconds)

    def _cells(self, loads: Sequence[float], capacity_rps: float, parts: int, seconds: float, trace: Path | None) -> list[Cell]:
        cells = [
            Cell(
                "poisson",
                load,
                tuple(_poisson(load * capacity_rps, seconds / load / parts, FIRST_SEED + number) for number in range(parts)),
            )
            for load in loads
        ]
        if trace is not None:
            rate = read_trace(trace).rate
            files = cut_trace(trace, parts, self.directory)
            cells += [Cell("trace", load, tuple(_replay(file, load * capacity_rps / rate) for file in files)) for load in loads]
        return cells


def order(cells: Sequence[Cell], parts: int) -> Iterator[tuple[int, int]]:
    """Numbers of a cell and of its part, in turn. Those of the trace come twice, half of all turns apart: it has few bursts."""
    for turn in range(parts):
        yield from ((number, turn) for number in range(len(cells)))
        yield from ((number, (turn + parts // 2) % parts) for number, cell in enumerate(cells) if cell.kind == "trace")


def _poisson(rate: float, seconds: float, seed: int) -> Part:
    options = ("--rate", repr(rate), "--duration", repr(seconds), "--seed", str(seed))
    return Part(make_arrivals("poisson", rate=rate, seed=seed), seconds, options)


def _replay(file: Path, speed: float) -> Part:
    arrivals = read_trace(file, speed=speed)
    seconds = (arrivals.duration_s or 0.0) + 1e-6
    return Part(arrivals, seconds, ("--trace", str(file), "--speed", repr(speed)))


def cut_trace(trace: Path, parts: int, directory: Path) -> list[Path]:
    """Files of as many arrivals each, but for a remainder; in seconds, as in the trace."""
    arrivals = read_trace(trace)
    instants = [instant for chunk in arrivals.chunks(float("inf")) for instant in chunk.tolist()]
    files = []
    for number in range(parts):
        file = directory / f"trace-{number}.csv"
        first, end = (len(instants) * edge // parts for edge in (number, number + 1))
        file.write_text("".join(f"{instant!r}\n" for instant in instants[first:end]))
        files.append(file)
    return files
