"""What the control port of a running server tells, as JSON is read into it.

Filled by control_port.py, shown by cli/models.py, autopilot.py, cache.py, gateways.py, log_levels.py and why.py.
"""

from typing import Any

from msgspec import Struct


class InstanceState(Struct):
    """One instance that is wanted. Durations are in seconds; what does not apply is None."""

    name: str
    state: str
    for_s: float
    again_in_s: float | None = None
    restarts: int = 0
    last_problem: str | None = None
    pid: int | None = None
    address: str | None = None
    circuit: str | None = None
    in_flight: int = 0
    capacity: int = 0


class ScalingState(Struct):
    """What autoscaling wants, within which bounds, and why; `held`: as an operator asked."""

    wanted: int
    least: int
    most: int
    reason: str
    held: bool
    asleep: bool


class Tuned(Struct):
    """A knob that the autopilot has turned."""

    value: Any
    declared: Any


class StreamsState(Struct):
    """Answers in parts: those that have begun and not ended, and the parts of all."""

    open: int
    parts: int


class CacheState(Struct):
    """What a version of a model remembers. `state`: on, or what auto has decided; `ttl_s`: its knob; `hit_ratio`: None before
    the first look-up; `redis`: what nodes share. `name` and `version` are empty where a ModelState has it.
    """

    state: str
    ttl_s: float
    entries: int
    bytes: int
    budget_bytes: int
    hits: int
    misses: int
    joined: int
    bypassed: int
    evicted: int
    expired: int
    hit_ratio: float | None
    name: str = ""
    version: str = ""
    redis: "SharedState | None" = None


class SharedState(Struct):
    """What a version shares with other nodes. `trouble`: of the connection, in words; `found`, `stored`: answers."""

    address: str
    connected: bool
    trouble: str
    circuit: str
    found: int
    stored: int


class CandidateState(Struct):
    """A model that may answer in place of another. `accuracy`: 0 if it is not known; `problem`: why it is not used."""

    name: str
    accuracy: float
    up: bool
    problem: str
    answers: int


class VariantsState(Struct):
    """Who answers requests of each priority, for how long and why (None while nothing was switched), and who else may.
    `accuracy`: the model's own.
    """

    assignment: dict[str, str]
    for_s: float | None
    reason: str
    switches: int
    spilled: int
    accuracy: float
    candidates: list[CandidateState]


class StepState(Struct):
    """One step of a pipeline. `requests`: times that it ended well, after so many seconds of waiting and computing in all."""

    name: str
    does: str
    requests: int
    in_flight: int
    skipped: int
    failures: int
    waited_s: float
    computed_s: float


class SequencesState(Struct):
    """How many there are and may be, and what has become of others."""

    strategy: str
    active: int
    most: int
    idle_s: float
    waiting_requests: int
    started: int
    ended: int
    expired: int
    broken: int
    refused: int


class DriftState(Struct):
    """Requests that were compared with the first ones, and in words what is another now."""

    rows: int
    drifted: list[str]


class ModelState(Struct):
    """As GET /models/NAME tells it; of what is not up only how far it is."""

    name: str
    version: str
    ready: bool
    phase: str = "serving"
    reason: str = ""
    default: bool = True
    labels: list[str] = []
    share: float = 0.0
    on_demand: bool = False
    size_bytes: int = 0
    run: str = ""
    batching: str = ""
    padding: str = ""
    knobs: dict[str, Any] = {}
    batch_limit_rows: int = 0
    queued_requests: int = 0
    queued_rows: int = 0
    running_batches: int = 0
    busy_s: float = 0.0
    instances: list[InstanceState] = []
    autoscale: ScalingState | None = None
    tuned: dict[str, Tuned] = {}
    streams: StreamsState | None = None
    cache: CacheState | None = None
    variants: VariantsState | None = None
    steps: list[StepState] | None = None
    sequences: SequencesState | None = None
    drift: DriftState | None = None

    @property
    def up(self) -> int:
        """Instances that are."""
        return sum(instance.state == "up" for instance in self.instances)


class Changed(Struct):
    """A knob before and after."""

    before: Any
    after: Any


class DecisionState(Struct):
    """One that the autopilot made; `text` says all of it."""

    ago_s: float
    kind: str
    text: str
    reason: str = ""
    changes: dict[str, Changed] = {}


class WayState(Struct):
    """What the autopilot knows of one way of running; None: nothing."""

    instances: int
    threads: int
    present: bool
    measured: bool
    base_s: float | None
    row_s: float | None
    missed: float | None


class ExplanationState(Struct):
    """What the autopilot sees and would do, as autopilot/explain.py has it."""

    seconds: float
    rate: float
    dispersion: float
    in_flight: float
    p50_s: float
    p99_s: float
    missed: float
    ways: list[WayState]
    proposal: dict[str, Any]
    reason: str
    gain: float


class PilotState(Struct):
    """As GET /autopilot tells it of a version of a model."""

    name: str
    version: str
    mode: str
    state: str
    paused: bool
    objective_s: float | None
    tolerated: float | None
    prefers: str
    knobs: dict[str, Any]
    pinned: list[str]
    decisions: list[DecisionState]
    policy: str = ""
    unusual: str = ""
    explanation: ExplanationState | None = None


class LogState(Struct):
    """As GET /log tells it: the level of all, and those of single loggers that were changed."""

    level: str
    loggers: dict[str, str]


class GatewayState(Struct):
    """One of several processes of a server, as GET /gateways tells it. `adopter`: who accepts its connections meanwhile."""

    number: int
    state: str
    restarts: int
    pid: int | None = None
    for_s: float | None = None
    adopter: int | None = None


class DashboardState(Struct):
    """As GET /dashboard/feed tells it once. `at`: when, in seconds since 1970."""

    at: float
    server: dict[str, Any]
    models: dict[str, dict[str, Any]]
    events: list[dict[str, Any]]
    upstreams: list[dict[str, Any]]
    tenants: list[dict[str, Any]]


class FailureState(Struct):
    """Why a request got no answer; `reason`: by which rule."""

    kind: str
    message: str
    reason: str


class RanState(Struct):
    """The batch that a request was in."""

    number: int
    rows: int
    requests: int
    instance: str
    reason: str


class CauseState(Struct):
    """What explains so many seconds of a request."""

    kind: str
    seconds: float
    words: str


class HappeningState(Struct):
    """What went on from so many seconds after a request had come; below 0: before."""

    kind: str
    words: str
    at: float


class ExemplarState(Struct):
    """A request that was kept, as GET /why tells it. `at`: seconds since the epoch; `phases`, `usual`: in seconds."""

    id: str
    request_id: str
    model: str
    version: str
    at: float
    seconds: float
    outcome: str
    kept_as: str
    phases: dict[str, float]
    usual: dict[str, float]
    causes: list[CauseState]
    rows: int = 1
    failure: FailureState | None = None
    batch: RanState | None = None
    meanwhile: list[HappeningState] = []
