"""The table of knobs: each once, with its type, range, default, unit, scale, what it does and what a change of it costs.

table.py reads it; whatever steers something takes its values from here. Not aware of: where values come from.
"""

from collections.abc import Collection
from functools import partial
from typing import Annotated, Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from dlproxy.config import ray, upstreams
from dlproxy.config.autopilot import AutopilotConfig
from dlproxy.config.cache import CacheConfig
from dlproxy.config.drift import Drift
from dlproxy.config.goals import Goal, parse_goal, parse_latency
from dlproxy.config.limits import HttpLimits, TenantConfig
from dlproxy.config.node import Members, NodeConfig
from dlproxy.config.paths import FORECASTS, LOCAL_WAYS
from dlproxy.config.pipelines import StepConfig
from dlproxy.config.security import AuthConfig, GrantConfig, IntegrityConfig, TlsConfig
from dlproxy.config.sequences import Controls, IdleSeconds, InitialState, MostSequences, Sequences, State
from dlproxy.config.server import DisciplineName, ServerConfig, Switch
from dlproxy.config.tracing import TracingConfig
from dlproxy.config.traits import Only
from dlproxy.config.traits import knob as _knob

Place = Literal["inline", "thread", "process", "ray", "upstream", "pipeline"]
"""Where batches of a model run; all but the last two are values of `run`, which has others where packages add them."""

BalancerName = Literal[
    "peak-ewma",
    "round-robin",
    "weighted-round-robin",
    "least-connections",
    "fastest-response",
    "consistent-hash",
    "power-of-two",
    "prequal",
    "nearest",
]
WAY = ("instances", "threads", "run")  # what of `start` is settled where a model is brought up; the rest is its lane's

_loaded = partial(_knob, cost="reload")
_live = partial(_knob, cost="nothing")

_IN_PROCESSES = Only("run", ("process",))
_HERE = Only("run", but=("upstream", "pipeline"))
_SCALES = Only("autoscale", but=("off",))
_CACHES = Only("cache", but=("off",))
_BATCHES = Only("batching", but=("off",), surely=False, harmless=("off",))
_STATELESS = Only("sequences", ("off",))


class LaneSettings(Struct, frozen=True, kw_only=True):
    """The knobs of a model that its lane takes as they are; policy/knobs.py adds what is found out at load."""

    max_batch: Annotated[int, _live("rows that no batch exceeds", unit="rows", log=True, tuned=True, ge=1, le=65536)] = 256
    part_rows: Annotated[
        int,
        _live(
            "rows of the parts that larger requests are split into, to run on several instances, or to be at several steps of "
            "a pipeline at a time; 0: max_batch, and whole for a pipeline",
            unit="rows",
            log=True,
            least=1,
            tuned=True,
            only=(_BATCHES,),
            ge=0,
            le=65536,
        ),
    ] = 0
    max_queue_rows: Annotated[
        int, _live("rows that may wait; more are answered 503", unit="rows", log=True, tuned=True, ge=1, le=1 << 24)
    ] = 8192
    max_wait_s: Annotated[
        float,
        _live(
            "seconds that a batch may wait to fill while an instance idles",
            unit="s",
            log=True,
            least=1e-4,
            tuned=True,
            only=(_BATCHES,),
            ge=0,
            le=60,
        ),
    ] = 0.0
    discipline: Annotated[
        DisciplineName,
        _live("which waiting request is next: earliest deadline, first come, shortest, highest response ratio, …", tuned=True),
    ] = "edf"
    starvation_s: Annotated[
        float,
        _live(
            "seconds after which a request that others overtook goes first",
            unit="s",
            log=True,
            only=(Only("discipline", ("edf", "sjf", "mlfq"), surely=False),),
            gt=0,
            le=3600,
        ),
    ] = 10.0
    ageing_s: Annotated[
        float,
        _live(
            "seconds of waiting that one level of priority is worth",
            unit="s",
            log=True,
            least=1e-3,
            only=(Only("discipline", ("edf", "priority"), surely=False),),
            ge=0,
            le=3600,
        ),
    ] = 1.0
    balancer: Annotated[BalancerName, _live("which instance gets the next batch", cost="relearn", tuned=True)] = "peak-ewma"
    slow_start_s: Annotated[
        float,
        _live(
            "seconds in which a new instance's share of the work grows to full",
            cost="relearn",
            unit="s",
            log=True,
            least=0.1,
            only=(Only("balancer", but=("round-robin",), surely=False),),
            ge=0,
            le=3600,
        ),
    ] = 0.0
    codel_target_s: Annotated[
        float,
        _live(
            "queueing delay that may stand; requests that waited twice as long are shed (CoDel); 0: off",
            cost="relearn",
            unit="s",
            log=True,
            least=1e-3,
            tuned=True,
            ge=0,
            le=60,
        ),
    ] = 0.0
    adaptive_limit: Annotated[
        bool,
        _live(
            "bound the requests without a deadline that are under way by how latency answers to them (Gradient2)",
            cost="relearn",
            tuned=True,
        ),
    ] = False
    retry_budget: Annotated[
        float,
        _live(
            "share of requests that may run a second time when an instance fails or is late; 0: none ever",
            tuned=True,
            ge=0,
            le=1,
        ),
    ] = 0.2
    hedge: Annotated[
        bool,
        _live(
            "run a batch that is later than 95 % of its like again on an idle instance",
            tuned=True,
            only=(Only("run", but=("inline",), surely=False), Only("retry_budget", but=(0.0,), surely=False)),
        ),
    ] = False
    eject_after: Annotated[
        int, _live("errors in a row that take an instance out for a while; 0: never", log=True, least=1, ge=0, le=10_000)
    ] = 5
    outage_wait_s: Annotated[
        float,
        _live(
            "seconds that requests wait for the last worker process or actor to be started again; 0: they fail",
            unit="s",
            only=(Only("run", ("process", "ray"), surely=False, harmless=(0.0,)),),
            ge=0,
            le=600,
        ),
    ] = 2.0


class ModelConfig(LaneSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[models.NAME]: one model."""

    path: Annotated[
        str,
        _loaded(
            "the model: .onnx, .pt, .pt2, .keras, a SavedModel's folder, file.py:MyModel (relative to the configuration file's "
            "folder), my_module:MyModel, addresses of models on other servers, sleep:base=10ms,row=1ms, or pipeline"
        ),
    ]
    version: Annotated[str, _loaded("the version that clients see", pattern="^[0-9]+$")] = "1"
    slo: Annotated[
        str,
        _live(
            'what is wanted, such as "p95=50ms, rate>=500": a latency, a rate of requests, accuracy>=0.97, and max rate or min '
            "cores; without a latency: a batch takes at most 2.3 x L(1) or 1 ms"
        ),
    ] = ""
    slo_by_priority: Annotated[
        dict[str, str],
        _live(
            'other latencies for requests of some priorities, as {1 = "p99=10ms"}; 4 is also that of requests which name none'
        ),
    ] = {}
    variants: Annotated[
        list[str],
        _live(
            "models served here that may answer in its place when it cannot keep its objective: the most accurate first, the "
            "least urgent requests first",
            only=(_STATELESS,),
        ),
    ] = []
    accuracy: Annotated[
        float,
        _live(
            "share of its answers that are right, as measured; 0: not known, or what the manifest beside its file says",
            ge=0,
            le=1,
        ),
    ] = 0.0
    variant: Annotated[str, _live("auto, or the one that answers everything: the name of one of its variants, or its own")] = (
        "auto"
    )
    autopilot: Annotated[
        Literal["auto", "off", "advise", "on"], _live("whether this model is tuned; auto: as mode in [autopilot] says")
    ] = "auto"
    weight: Annotated[
        float,
        _live(
            "how much an answer of this model counts beside other models', where the autopilot shares out too few cores",
            log=True,
            ge=0.001,
            le=1000,
        ),
    ] = 1.0
    start: Annotated[
        dict[str, Any],
        _loaded("first values of knobs that the autopilot may change afterwards, as {max_batch = 1}; they are no bounds"),
    ] = {}
    pinned: Annotated[list[str], _live("knobs that the autopilot leaves as they are; those that are set here are, anyway")] = []
    batching: Annotated[
        Switch,
        _loaded(
            "whether requests may share a batch; auto: if the warm-up shows that a row's answer is its own, and for as long as "
            "nothing in service shows otherwise; on: you know that it is"
        ),
    ] = "auto"
    max_request_rows: Annotated[
        int,
        _loaded(
            "rows that no request exceeds; 0: max_queue_rows, or max_batch where requests cannot be split",
            unit="rows",
            log=True,
            least=1,
            only=(_BATCHES,),
            ge=0,
            le=1 << 24,
        ),
    ] = 0
    padding: Annotated[
        Switch,
        _loaded(
            "whether requests of different lengths may share a batch, padded to the longest; auto: if the model has a mask or "
            "lengths among its inputs, the warm-up shows that it changes no answer, and until something in service does; "
            "on: without a mask too, and start-up says why if it changes answers",
            only=(_BATCHES, Only("run", but=("upstream", "pipeline"), harmless=("off",))),
        ),
    ] = "auto"
    pad_value: Annotated[
        float,
        _loaded(
            "what shorter inputs are filled up with; masks are with 0, whatever this is",
            only=(Only("padding", but=("off",), surely=False),),
        ),
    ] = 0.0
    class_names: Annotated[
        str,
        _loaded("names of the classes that outputs can be asked for as: a text file, one in a line; empty: none"),
    ] = ""
    samples: Annotated[
        str,
        _loaded(
            "real inputs to warm up with: an .npz file (an array for each input) or a folder of them; empty: made-up inputs",
            only=(_HERE,),
        ),
    ] = ""
    instances: Annotated[
        int,
        _loaded(
            "copies of the model that run side by side; 0: one, or one for each core where that is measured to pay",
            cost="instances",
            log=True,
            least=1,
            tuned=True,
            only=(_HERE, Only("run", but=("inline",), harmless=(1,))),
            ge=0,
            le=256,
        ),
    ] = 0
    autoscale: Annotated[
        Literal["off", "in-flight", "utilisation"],
        _loaded(
            "change the number of instances with load: by rows that wait or run and arrivals, or by the share of time in which "
            "instances are busy",
            only=(_HERE, Only("run", but=("inline",))),
        ),
    ] = "off"
    min_instances: Annotated[
        int, _live("the fewest that autoscaling leaves while requests come", only=(_SCALES,), ge=1, le=256)
    ] = 1
    max_instances: Annotated[
        int,
        _live(
            "the most that autoscaling starts, never more than the cores have room for; 0: as many as they have",
            least=1,
            only=(_SCALES,),
            ge=0,
            le=256,
        ),
    ] = 0
    scale_to_zero_s: Annotated[
        float,
        _loaded(
            "seconds without a request after which no instance is left; the next request starts one and waits for it; 0: never",
            unit="s",
            least=1.0,
            only=(_SCALES,),
            ge=0,
            le=864000,
        ),
    ] = 0.0
    target_in_flight: Annotated[
        float,
        _loaded(
            "rows that shall wait or run for each instance; 0: 0.7 of the batch that suits the objective",
            unit="rows",
            log=True,
            only=(Only("autoscale", ("in-flight",)),),
            ge=0,
            le=1 << 24,
        ),
    ] = 0.0
    forecast: Annotated[
        str,
        _loaded(
            "have instances up when arrivals are expected to need them (Holt-Winters); daily: today is like yesterday; a file "
            "of `dlproxy learn train forecast-days`, whose name ends in .onnx: what that has learnt",
            choices=FORECASTS,
            only=(Only("autoscale", ("in-flight",)),),
        ),
    ] = "off"
    threads: Annotated[
        int,
        _loaded(
            "threads that an instance computes with; 0: measured at load",
            unit="threads",
            log=True,
            least=1,
            tuned=True,
            only=(_HERE,),
            ge=0,
            le=1024,
        ),
    ] = 0
    run: Annotated[
        str,
        _loaded(
            "where batches run: on the event loop, on a thread, in a process of their own, or whichever suits: processes for "
            "Python, torch and TensorFlow, else what the warm-up finds better; ray: in actors of a Ray cluster; installed "
            "packages may add others",
            tuned=True,
            choices=LOCAL_WAYS,
            only=(_HERE,),
        ),
    ] = "auto"
    device: Annotated[
        str,
        _loaded(
            "where it computes: auto (the first NVIDIA GPU if the runtime can use it, else the CPU), cpu, cuda:N, for ONNX "
            "tensorrt:N or openvino:GPU; of several, as cuda:0,cuda:1, each instance gets the next",
            only=(_HERE,),
        ),
    ] = "auto"
    gpu_memory_limit_mb: Annotated[
        int,
        _loaded(
            "MiB of a GPU that a worker process, or the ONNX session of all threads, may allocate; 0: no limit",
            unit="MiB",
            log=True,
            least=1,
            only=(_HERE, Only("device", but=("cpu",))),
            ge=0,
            le=1 << 24,
        ),
    ] = 0
    inputs: Annotated[
        dict[str, str],
        _loaded(
            'inputs of models that do not say theirs, or say too little, and of pipelines, as {x = "FP32[batch,784]"}; -1 or a '
            "name: any size, batch, or else the first: the rows",
            only=(Only("run", but=("upstream",)),),
        ),
    ] = {}
    outputs: Annotated[
        dict[str, str],
        _loaded(
            'the same for outputs; of a pipeline, where they come from, as {text = "read.text"}, or several with | between '
            "them: the first that there is",
            only=(Only("run", but=("upstream",)),),
        ),
    ] = {}
    steps: Annotated[
        dict[str, StepConfig],
        _loaded("of a pipeline: its steps by name, as [pipelines.NAME.steps.STEP]", only=(Only("run", ("pipeline",)),)),
    ] = {}
    load_timeout_s: Annotated[
        float,
        _loaded("seconds after which loading the model, with its warm-up, has failed", unit="s", log=True, gt=0, le=86400),
    ] = 300.0
    batch_timeout_s: Annotated[
        float,
        _loaded(
            "seconds after which a batch in a process, in an actor or on another server has failed",
            unit="s",
            log=True,
            only=(Only("run", ("process", "ray", "upstream"), surely=False),),
            gt=0,
            le=86400,
        ),
    ] = 120.0
    memory_limit_mb: Annotated[
        int,
        _loaded(
            "MiB that a worker process may allocate, the 50 to 100 of Python and numpy included; 0: no limit",
            unit="MiB",
            log=True,
            least=1,
            only=(_IN_PROCESSES,),
            ge=0,
            le=1 << 24,
        ),
    ] = 0
    pin: Annotated[bool, _loaded("keep each worker process on cores of its own", only=(_IN_PROCESSES,))] = False
    cores: Annotated[list[int], _loaded("those to pin worker processes to; empty: all, if pin", only=(_IN_PROCESSES,))] = []
    members: Members = "static"
    upstream_headers: upstreams.Headers = {}
    upstream_api_key: upstreams.ApiKey = ""
    upstream_ca: upstreams.Authorities = ""
    upstream_cert: upstreams.Certificate = ""
    upstream_cert_key: upstreams.CertificateKey = ""
    sticky: Annotated[
        str,
        _loaded(
            "what the consistent-hash balancer keeps on one instance: tenant, input or header:NAME; a batch follows its first "
            "request",
            only=(Only("balancer", ("consistent-hash",)),),
            pattern="^(|tenant|input|header:[A-Za-z0-9-]+)$",
        ),
    ] = ""
    quarantine_s: Annotated[
        float,
        _loaded(
            "seconds for which an input that has ended worker processes or actors is refused; 0: never",
            unit="s",
            only=(Only("run", ("process", "ray"), surely=False, harmless=(0.0,)),),
            ge=0,
            le=864000,
        ),
    ] = 600.0
    ray_address: ray.Address = "auto"
    ray_cpus: ray.Cpus = 1.0
    ray_gpus: ray.Gpus = 0.0
    ray_resources: ray.Resources = {}
    ray_placement: ray.Placement = "spread"
    drift: Drift = "off"
    sequences: Sequences = "off"
    state: State = {}
    initial_state: InitialState = {}
    sequence_controls: Controls = {}
    sequence_idle_s: IdleSeconds = 60.0
    max_sequences: MostSequences = 4096

    cache: Annotated[
        Switch,
        _loaded(
            "remember answers, and run identical requests once; auto: while equal inputs were shown to give equal answers, and "
            "enough requests repeat for it to pay",
            only=(_STATELESS,),
        ),
    ] = "off"
    cache_ttl_s: Annotated[
        float,
        _loaded(
            "seconds for which an answer is remembered; 0: no limit",
            unit="s",
            log=True,
            least=0.1,
            only=(_CACHES,),
            ge=0,
            le=1e9,
        ),
    ] = 0.0
    cache_rows: Annotated[
        bool,
        _loaded(
            "remember rows by themselves: of a request of 8 rows of which 5 are known, 3 are run",
            only=(_CACHES, _BATCHES),
        ),
    ] = False
    cache_by_tenant: Annotated[
        bool, _loaded("tenants share no answers: how quickly one comes would tell what others asked", only=(_CACHES,))
    ] = False
    cache_content: Annotated[
        str,
        _loaded(
            "what nodes take this model's content for when they share answers in Redis: change it whenever the model changes; "
            "empty: a hash of its files, where those are all that it is, else its answers are not shared",
            only=(_CACHES,),
        ),
    ] = ""

    @property
    def goal(self) -> Goal:
        """What `slo` says."""
        return parse_goal(self.slo)

    @property
    def slo_s(self) -> float | None:
        """The objective's latency in seconds; None if there is none."""
        return self.goal.latency_s

    @property
    def slo_s_by_level(self) -> dict[int, float]:
        """Those of priorities that have one of their own."""
        return {int(level): parse_latency(text) for level, text in self.slo_by_priority.items()}

    def begun(self, names: Collection[str]) -> "ModelConfig":
        """With the first values of these knobs in place of their own, where `start` has some."""
        return replace(self, **{name: value for name, value in self.start.items() if name in names})


class Config(Struct, frozen=True, kw_only=True):
    """All of dlproxy.toml."""

    server: ServerConfig = ServerConfig()
    http: HttpLimits = HttpLimits()
    tls: TlsConfig = TlsConfig()
    auth: AuthConfig = AuthConfig()
    integrity: IntegrityConfig = IntegrityConfig()
    autopilot: AutopilotConfig = AutopilotConfig()
    cache: CacheConfig = CacheConfig()
    tracing: TracingConfig = TracingConfig()
    node: NodeConfig = NodeConfig()
    models: dict[str, list[ModelConfig]] = {}
    """The versions of each, oldest first."""
    tenants: dict[str, TenantConfig] = {}
    grants: dict[str, GrantConfig] = {}

    def served(self) -> list[tuple[str, ModelConfig]]:
        """Every version of every model, with the model's name."""
        return [(name, model) for name, versions in self.models.items() for model in versions]


SECTIONS: dict[str, type[Struct]] = {
    "server": ServerConfig,
    "http": HttpLimits,
    "tls": TlsConfig,
    "auth": AuthConfig,
    "integrity": IntegrityConfig,
    "autopilot": AutopilotConfig,
    "cache": CacheConfig,
    "tracing": TracingConfig,
    "node": NodeConfig,
    "models": ModelConfig,
    "pipelines": StepConfig,
    "tenants": TenantConfig,
    "grants": GrantConfig,
}
