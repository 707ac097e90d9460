"""The live half: a dlproxy on one core, `dlproxy bench` on the other, and what a simulation must be told about the pair.

Called by benchmarks/fidelity/__main__.py. Not aware of: the simulator's results.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import monotonic

from benchmarks.live import Live
from benchmarks.processes import Child
from dlproxy.lab.report.result import Result
from dlproxy.lab.simulate.recording import Batches
from dlproxy.lab.simulate.service_times import Sample

CALIBRATION_SECONDS = 4
SEED = 99
SWEEP = (0.2, 0.5, 0.8, 1.1)  # loads at which batch times are recorded: small batches and full ones


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

    @property
    def knobs(self) -> dict[str, str]:
        return {"path": self.path, "slo": f"p99={self.deadline_s * 1e3:g}ms", "run": "thread"}

    @property
    def toml(self) -> str:
        return f"[models.{self.name}]\n" + "".join(f'{knob} = "{value}"\n' for knob, value in self.knobs.items())


class Bench(Live):
    """Runs the server and the load, pinned apart."""

    @contextlib.contextmanager
    def serve_subject(self, subject: Subject, *, record: bool) -> Iterator[tuple[Child, str]]:
        """A server with this model: the child and its URL."""
        with self.serve(subject.toml, [f'event_log = "{self.directory / "log"}"'] if record else []) as served:
            yield served.child, served.url

    def load_subject(self, url: str, subject: Subject, options: Sequence[str], seconds: float) -> Result:
        """One `dlproxy bench` of about so many seconds."""
        return self.load(url, subject.name, ["--rows", str(subject.rows), *options], seconds)

    def recorded(self, subject: Subject, since: float, until: float = inf) -> list[Sample]:
        """The batches that the last server of this subject began in that time of the monotonic clock, which all share."""
        return Batches(self.log(subject), since, until).samples

    def log(self, subject: Subject) -> Path:
        """Where its last server recorded; complete once that has ended."""
        return self.directory / "log" / f"{subject.name}-1.dlog"


@dataclass(frozen=True)
class Calibration:
    """What was measured of the pair before anything is predicted. `batches`: recorded in the closed loop and at SWEEP's loads.

    `quiet`: the run at the least of these, from which the path outside of the server is worked out.
    """

    capacity_rps: float
    batches: list[Sample]
    quiet: Result
    quiet_batches: list[Sample]
    quiet_rate: float


def calibrate(bench: Bench, subject: Subject) -> Calibration:
    """Capacity from a closed loop, batch times from a recorded sweep of loads."""
    clients = ["--duration", str(CALIBRATION_SECONDS), "--concurrency"]
    with bench.serve_subject(subject, record=True) as (_, url):
        bench.load_subject(url, subject, [*clients, "4"], CALIBRATION_SECONDS)
        began_at = monotonic()
        many = bench.load_subject(url, subject, [*clients, str(subject.clients)], CALIBRATION_SECONDS)
        sweep_at = quiet_until = monotonic()
        swept: list[Result] = []
        for load in SWEEP:
            options = ["--rate", repr(load * many.rate_rps), "--duration", str(CALIBRATION_SECONDS), "--seed", str(SEED)]
            options += ["--deadline", f"{subject.deadline_s * 1e3:g}ms"]
            swept.append(bench.load_subject(url, subject, options, CALIBRATION_SECONDS))
            quiet_until = monotonic() if len(swept) == 1 else quiet_until
    batches = bench.recorded(subject, began_at)
    return Calibration(
        many.rate_rps, batches, swept[0], bench.recorded(subject, sweep_at, quiet_until), SWEEP[0] * many.rate_rps
    )
