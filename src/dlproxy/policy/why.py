"""Why a request was slow, or failed: the seconds that each possible cause explains, beyond what is usual, the largest first.

Called by telemetry/exemplars.py with what it has kept of a request. Not aware of: clocks, rings, how a request was chosen.
"""

from math import inf
from typing import Literal

from msgspec import Struct

Phase = Literal["receive", "load", "check", "cache", "earlier_run", "queue", "batch", "compute", "split", "send"]
PHASES: tuple[Phase, ...] = ("receive", "load", "check", "cache", "earlier_run", "queue", "batch", "compute", "split", "send")
"""In the order in which a request goes through them, of which each may be left out."""

HappeningKind = Literal["gc", "instance", "load", "unload", "knobs", "circuit"]
CauseKind = Literal[
    "cold_start",
    "heavy_neighbour",
    "gc",
    "slow_instance",
    "large_batch_ahead",
    "large_batch",
    "queue",
    "fill",
    "retry",
    "hedge",
    "quota",
    "upstream_stall",
    "version_swap",
    "slow_client",
    "unusual_input",
    "shared_run",
    "stage",
    "sequence",
    "busy_loop",
    "compute",
    "refused",
    "failed",
    "cancelled",
    "bad_request",
]


class Run(Struct, frozen=True, gc=False):
    """A batch of `model`; its instants are on the clock of a case, or the driver's. `ended_at`: inf while it runs."""

    number: int
    instance: str
    rows: int
    reason: str
    began_at: float
    ended_at: float
    compute_s: float = 0.0
    error: str = ""
    model: str = ""


class Happening(Struct, gc=False):
    """What went on from `began_at` to `ended_at` (inf: it does still), in words. `subject`: the instance that it is about."""

    kind: HappeningKind
    words: str
    began_at: float
    ended_at: float
    model: str = ""
    subject: str = ""


class Cause(Struct, frozen=True, gc=False):
    """What explains so many seconds of a request's time."""

    kind: CauseKind
    seconds: float
    words: str


class Neighbour(Struct, frozen=True, gc=False):
    """Another model, whose `batches` ran while the request waited, for `waiting_s`, and while it ran, for `running_s`."""

    model: str
    batches: int
    waiting_s: float
    running_s: float
    longest: Run


class StepTook(Struct, frozen=True, gc=False):
    """A step of a pipeline, which waited and computed for so long, and usually does for so long."""

    name: str
    waited_s: float
    computed_s: float
    usual_waited_s: float
    usual_computed_s: float


class Comparison(Struct, frozen=True, gc=False):
    """What batches of about the same size compute on the same instance and on others, as medians; 0: there were too few.
    `before`: batches that ran on the instance before. `rows`, `length`: of most requests. `batch_rows`: of most batches.
    """

    here_s: float = 0.0
    others_s: float = 0.0
    before: int = 0
    rows: float = 1.0
    length: float = 1.0
    batch_rows: float = 1.0


class Case(Struct, gc=False):
    """All that is known of one request. Instants are seconds since it arrived: below 0 is before, as its body came.

    `usual`: what the phases take of most requests. `run`: the batch that it was in; `earlier`: runs of it that gave no answer.
    `ahead`: batches of its model that ran while it waited, the longest of `ahead_batches`, which together ran for `ahead_s`.
    `known_since`: what ran before is not known. `max_wait_s`: how long a batch may wait to fill. `joined`: whose run it shared.
    """

    model: str
    phases: dict[Phase, float]
    usual: dict[Phase, float]
    rows: int = 1
    length: int = 1
    run: Run | None = None
    earlier: tuple[Run, ...] = ()
    ahead: tuple[Run, ...] = ()
    ahead_batches: int = 0
    ahead_s: float = 0.0
    known_since: float = -inf
    neighbours: tuple[Neighbour, ...] = ()
    happenings: tuple[Happening, ...] = ()
    comparison: Comparison = Comparison()
    steps: tuple[StepTook, ...] = ()
    max_wait_s: float = 0.0
    upstream: bool = False
    in_sequence: bool = False
    joined: int = 0
    failure: str = ""
    reason: str = ""
    message: str = ""


def causes(case: Case) -> list[Cause]:
    """The largest first; none if it took no longer than is usual."""
    return []
