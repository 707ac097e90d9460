"""The table's rows for the server itself: where it listens, how it starts and stops. Taken in by knobs.py.

Not aware of: models.
"""

from typing import Annotated, Literal

from msgspec import Struct

from dlproxy.config.traits import Only
from dlproxy.config.traits import knob as _knob

DisciplineName = Literal["edf", "fcfs", "sjf", "hrrn", "mlfq", "priority", "fair"]
Switch = Literal["auto", "on", "off"]
GRPC_PORT = 8001

_AUDIT = (Only("audit_log", but=("",)),)
_ARBITER = (Only("arbiter", but=("off",)),)


class ServerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[server]: where dlproxy listens and how it starts and stops."""

    host: Annotated[str, _knob("address to listen on; 0.0.0.0 for every interface")] = "127.0.0.1"
    http_port: Annotated[int, _knob("port for inference; 0 picks a free one", ge=0, le=65535)] = 8000
    uds: Annotated[str, _knob("path of a Unix socket for inference, in place of http_port; empty: none")] = ""
    grpc: Annotated[
        Switch,
        _knob("answer gRPC clients, too; auto: unless grpc_port is its default and taken, which is warned of"),
    ] = "auto"
    grpc_port: Annotated[
        int,
        _knob(
            "port for gRPC; 0 picks a free one, and so does the default where http_port is 0",
            only=(Only("grpc", but=("off",)),),
            ge=0,
            le=65535,
        ),
    ] = GRPC_PORT
    tfs: Annotated[bool, _knob("listen on TensorFlow Serving's ports, too")] = False
    tfs_grpc_port: Annotated[
        int, _knob("port of TensorFlow Serving's gRPC; 0 picks a free one", only=(Only("tfs", but=(False,)),), ge=0, le=65535)
    ] = 8500
    tfs_http_port: Annotated[
        int, _knob("port of TensorFlow Serving's REST; 0 picks a free one", only=(Only("tfs", but=(False,)),), ge=0, le=65535)
    ] = 8501
    control_port: Annotated[int, _knob("port for metrics and health; 0 picks a free one", ge=0, le=65535)] = 8002
    gateways: Annotated[
        int,
        _knob(
            "processes that serve the same ports, each with an event loop and lanes of its own (Linux); 0: one for each core",
            ge=0,
            le=256,
        ),
    ] = 1
    shared_memory: Annotated[
        bool, _knob("let clients of this machine register POSIX shared memory, for tensors in place of bodies (Linux)")
    ] = False
    client_log_settings: Annotated[
        bool, _knob("let clients of the inference ports change what is logged, as Triton does; else they only see it")
    ] = False
    server_timing: Annotated[bool, _knob("tell each client queue, batch and compute time in a Server-Timing header")] = True
    idle_poll_s: Annotated[
        float,
        _knob(
            "seconds that an idle core polls for the next request before it sleeps, while they keep coming that soon; 0: never",
            unit="s",
            log=True,
            least=1e-5,
            tuned=True,
            ge=0,
            le=0.01,
        ),
    ] = 0.0003
    drain_s: Annotated[float, _knob("seconds that requests under way get to finish after SIGTERM", unit="s", ge=0, le=3600)] = (
        30.0
    )
    calibration_folder: Annotated[
        str,
        _knob(
            "where to keep what was found out about models, so that the next start need not; auto: dlproxy/calibrations "
            "in the user's cache folder ($XDG_CACHE_HOME or ~/.cache) if there is one; empty: nowhere"
        ),
    ] = "auto"
    graph_folder: Annotated[
        str,
        _knob(
            "where to keep the graphs that ONNX Runtime has optimised, so that the next start need not; auto: "
            "dlproxy/graphs in the user's cache folder if there is one; empty: nowhere"
        ),
    ] = "auto"
    memory_budget_mb: Annotated[
        int,
        _knob(
            "memory that loaded models may take, in MiB: models that are loaded on demand are given up for others; 0: no limit",
            unit="MiB",
            ge=0,
            le=1 << 24,
        ),
    ] = 0
    load_wait_s: Annotated[
        float,
        _knob(
            "seconds that a request waits for a model which is loaded on demand, if it names no deadline itself",
            unit="s",
            log=True,
            gt=0,
            le=3600,
        ),
    ] = 30.0
    store: Annotated[
        str,
        _knob(
            "where to keep what shall be served, for all nodes that name the same place: a folder that they share, or Redis as "
            "redis://HOST:PORT/DB?key=NAME (rediss:// with TLS); empty: each process for itself"
        ),
    ] = ""
    event_log: Annotated[str, _knob("record every lane event and command in this folder, to replay; empty: off")] = ""
    access_log: Annotated[bool, _knob("log a line for each request of the inference port")] = False
    audit_log: Annotated[
        str,
        _knob("write who changed what, and who was refused, to this file as JSON lines; empty: to the log, as other lines"),
    ] = ""
    audit_log_mb: Annotated[
        int, _knob("size at which the audit log is put aside", unit="MiB", log=True, only=_AUDIT, ge=1, le=1 << 20)
    ] = 10
    audit_log_keep: Annotated[int, _knob("files of the audit log that are kept beside it", only=_AUDIT, ge=0, le=1000)] = 10
    arbiter: Annotated[
        Switch,
        _knob(
            "let batches of different models take turns on the cores; auto: if their threads outnumber the cores", tuned=True
        ),
    ] = "off"
    arbiter_discipline: Annotated[
        DisciplineName,
        _knob(
            "whose batch runs next; fair: equal shares of the cores' time, however heavy a model's batches are",
            tuned=True,
            only=_ARBITER,
        ),
    ] = "fair"
    cores: Annotated[
        int,
        _knob(
            "cores that batches share under the arbiter; 0: those that this process may use",
            unit="cores",
            only=_ARBITER,
            ge=0,
            le=4096,
        ),
    ] = 0
    reserved_cores: Annotated[
        int,
        _knob("cores that only batches with a request of priority 1 may use", unit="cores", only=_ARBITER, ge=0, le=4096),
    ] = 0
    repository: Annotated[
        str,
        _knob(
            "folder of models to serve, as laid out for Triton, TensorFlow Serving or dlproxy; or its URL in an object store, "
            "such as s3://bucket/models; or a models.config of TensorFlow Serving; empty: none"
        ),
    ] = ""
    repository_mode: Annotated[
        Literal["none", "poll", "explicit"],
        _knob(
            "none: serve what is there at start; poll: follow changes, too; explicit: serve what is asked for by name",
            only=(Only("repository", but=("",)),),
        ),
    ] = "poll"
    repository_on_demand: Annotated[
        bool,
        _knob(
            "load each of its models when it is asked for, and give it up when its memory is needed",
            only=(Only("repository", but=("",)),),
        ),
    ] = False
    tenant_header: Annotated[
        str, _knob("header that names a request's tenant, for quotas and fair shares", pattern="^[A-Za-z0-9_-]+$")
    ] = "x-tenant-id"
