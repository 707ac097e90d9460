"""What an evaluation found: five groups of figures, as its JSON file keeps them. Filled by run.py, shown by wording.py.

Not aware of: how anything was measured.
"""

from pathlib import Path

import msgspec
from msgspec import Struct, field

from dlproxy.lab.evaluate.recovery import Effect
from dlproxy.lab.evaluate.usl import Fit
from dlproxy.lab.report.result import ResultError, Trial

FORMAT = 1
FAULTS = ("overload", "slow clients", "garbage", "killed worker")


class Moment(Struct, kw_only=True):
    """One load. `latency_ms`: as clients saw it; `phases_ms`: where the time went, by the server's account; `in_time`: share of
    the requests answered within the objective. `cores_busy`: by the server and its workers; `useful`: part of all cores' time
    that went into answers within the objective; `instances_busy`: share of the time in which an instance ran a batch;
    `waiting`: threads of the server that waited for a core, on average.
    """

    offered_rps: float
    rate_rps: float
    goodput_rps: float
    duration_s: float
    failed: int
    in_time: float | None
    latency_ms: dict[str, float]
    phases_ms: dict[str, float]
    mean_batch: float | None = None
    cores_busy: float | None = None
    useful: float | None = None
    instances_busy: float | None = None
    waiting: float | None = None
    generator_cores: float = 0.0


class Point(Struct, kw_only=True):
    """Throughput of n clients, instances or cores."""

    n: int
    rate_rps: float
    p99_ms: float | None


class Series(Struct, kw_only=True):
    """Throughput over n. `reason`: why there are no points, or not all; without a fit there are too few."""

    points: list[Point] = []
    fit: Fit | None = None
    reason: str = ""


class FaultReport(Struct, kw_only=True):
    """One fault. `kept`: goodput during it over `reference_rps`; `timeline`: (s, goodput/s), the fault from `from_s` to `to_s`.

    `note`: what was done, in words; `reason`: why it does not apply, and then there is nothing else.
    """

    name: str
    effect: Effect | None = None
    reference_rps: float = 0.0
    kept: float | None = None
    timeline: list[tuple[float, float]] = []
    from_s: float = 0.0
    to_s: float = 0.0
    note: str = ""
    reason: str = ""


class Evaluation(Struct, kw_only=True):
    """All of it; None and empty is what was not measured, and `missing` says why, by what it is.

    `ready_s`: from the start of the server's process until it served; `load_s`: of the model into a server that runs.
    `peak_rps`: highest rate that met the objective, over a whole run if `confirmed`. `server_lost`: it ended by itself.
    """

    format: int = FORMAT
    target: str
    started: str
    setup: dict[str, object] = {}
    seconds: float = 0.0
    cores: int | None = None
    instances: int | None = None
    objective_ms: float | None = None
    objective_from: str = ""
    ready_s: float | None = None
    load_s: float | None = None
    calm: Moment | None = None
    busy: Moment | None = None
    full: Moment | None = None
    full_clients: int = 0
    peak_rps: float | None = None
    confirmed: bool = False
    trials: list[Trial] = []
    request_bytes: int = 0
    answer_bytes: int = 0
    clients: Series = field(default_factory=Series)
    by_instances: Series = field(default_factory=Series)
    by_cores: Series = field(default_factory=Series)
    faults: list[FaultReport] = []
    missing: dict[str, str] = {}
    warnings: list[str] = []
    interrupted: bool = False
    server_lost: bool = False

    @property
    def base_rps(self) -> float | None:
        """What loads below the limit are a part of: the peak; if none was found, what one client alone got."""
        alone = self.clients.points[0].rate_rps if self.clients.points else None
        return self.peak_rps or alone or None


def save(found: Evaluation, path: Path) -> None:
    """Write the JSON file. Raises ResultError."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    except OSError as error:
        raise ResultError(f"cannot write {path}: {error.strerror}") from None
