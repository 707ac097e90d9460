"""A running dlproxy: the inference ports and the control port before its models, from start to drained stop.

Called by cli/. Not aware of: command-line arguments.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from math import inf
from time import monotonic, process_time
from typing import TYPE_CHECKING, Any

import msgspec

from dlproxy import __version__
from dlproxy.config import Config, ConfigError, ServerConfig
from dlproxy.config.server import GRPC_PORT
from dlproxy.config.tracing import TracingConfig
from dlproxy.cores import usable_cores
from dlproxy.fleet.control import Control
from dlproxy.fleet.memory import resident_bytes
from dlproxy.fleet.store import open_store
from dlproxy.hosts import nearby
from dlproxy.instance.runtime import ModelError
from dlproxy.message import Failure, FailureKind, InferenceError
from dlproxy.policy.changes import with_versions
from dlproxy.policy.wanted import Wanted, WantedVersion
from dlproxy.serve.announcing import Announcer, Reached
from dlproxy.serve.farewell import Farewell
from dlproxy.serve.listeners import GivenListeners, Listeners, PortError, taken
from dlproxy.serve.models import Models
from dlproxy.serve.operations import ServerOperations, ServerRepository
from dlproxy.telemetry import prometheus
from dlproxy.telemetry.event_log import LogError
from dlproxy.telemetry.host import Host
from dlproxy.wire.audit import Audit
from dlproxy.wire.bounds import Bounds
from dlproxy.wire.control.alone import alone_routes
from dlproxy.wire.control.docs_page import InferencePort, docs_routes
from dlproxy.wire.control.guard import as_told
from dlproxy.wire.control.http import control_app
from dlproxy.wire.control.server import ControlServer
from dlproxy.wire.control.why import why_routes
from dlproxy.wire.dashboard.feed import Feed
from dlproxy.wire.dashboard.http import dashboard_routes
from dlproxy.wire.dashboard.operators import ToldOperations, ToldPilots
from dlproxy.wire.explain.http import Explain
from dlproxy.wire.extensions import extensions_of
from dlproxy.wire.grpc.server import GrpcServer
from dlproxy.wire.grpc.services import grpc_methods
from dlproxy.wire.http.access_log import with_access_log
from dlproxy.wire.http.routes import Row
from dlproxy.wire.http.server import HttpServer
from dlproxy.wire.listening import Listening
from dlproxy.wire.oip.generate import Generate
from dlproxy.wire.oip.http import OipApp
from dlproxy.wire.tfs.http import TfsRoutes
from dlproxy.wire.tls import GRPC, HTTP, Certificates
from dlproxy.wire.waiting import Waiting

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from dlproxy.fleet.lent import Lender
    from dlproxy.fleet.repository.watcher import Repository
    from dlproxy.telemetry.tracing import Tracer
    from dlproxy.wire.terms import Identify

GC_ALLOCATIONS = 20_000  # requests make no reference cycles: looking for some every 700 allocations costs about 3 %

HANG_UP = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]  # ignored under nohup
CUT_SHORT = 130  # exit code when a second signal cut the drain, as shells report an interrupt

log = logging.getLogger(__name__)


class Server:
    """One dlproxy process. `start`, then `run` until SIGTERM or SIGINT; or `start` and `stop` by hand."""

    def __init__(
        self, config: Config, given: GivenListeners | None = None, *, follows: bool = False, lender: "Lender | None" = None
    ) -> None:
        """Raises ConfigError for a quota that never admits anything, certificates that cannot be used, a lack of extras.

        `given`: what to listen on, in place of the configuration's ports. `follows`: serve what the store has, and not what the
        configuration names beside it. `lender`: who has the worker processes, where several servers share them.
        """
        self._config = config
        self._given = given
        self._follows = follows
        asks = config.auth.asks or bool(config.grants)
        self._tracer = _tracer(config.tracing) if config.tracing.endpoint else None
        self.models = Models(
            config.server,
            config.tenants,
            autopilot=config.autopilot,
            cache=config.cache,
            integrity=config.integrity,
            asks=asks,
            tracer=self._tracer,
            lender=lender,
            node=config.node,
        )
        budget_mb = config.server.memory_budget_mb
        memory_bytes = budget_mb * 2**20 if budget_mb else inf
        self.control = Control(self.models, open_store(config.server.store), memory_bytes=memory_bytes)
        self.models.catalog.waiting = Waiting(self.control, longest_s=config.server.load_wait_s)
        self._repository = _repository(config.server, self.control) if config.server.repository else None
        self._announcer = Announcer(config.node, config.server) if config.node.group and given is None else None
        self.operations = ServerOperations(self.control, self.models, self._repository)
        self.host = config.server.host
        self.ports: dict[str, int] = {}
        """What is listened on, by the knobs that say so."""
        self._desk = identity_desk(config) if asks else None
        self._certificates = Certificates(config.tls) if config.tls.cert else None
        self._audit = Audit()
        self._bounds = Bounds(config.http, self._crowded)
        self._doors: dict[str, Listening] = {}
        self._started_at, self._used = round(datetime.now(UTC).timestamp(), 3), (monotonic(), process_time())
        self._listeners: list[socket.socket] = []

    @property
    def http_port(self) -> int:
        """0 where a Unix socket takes its place."""
        return self.ports.get("http_port", 0)

    @property
    def control_port(self) -> int:
        return self.ports["control_port"]

    @property
    def gateways(self) -> int:
        """Processes that serve this, where it is more than a rehearsal."""
        return self._config.server.gateways or usable_cores()

    @property
    def scheme(self) -> str:
        return "http" if self._certificates is None else "https"

    @property
    def _inference_port(self) -> InferencePort:
        tls = self._certificates is not None
        if self.unix_socket is not None:
            return InferencePort(path=self.unix_socket.path, tls=tls)
        return InferencePort(nearby(self.host), self.http_port, tls=tls)

    @property
    def connections(self) -> int:
        """Of clients that ask for inference."""
        return sum(len(door.connections) for door in self._doors.values())

    async def start(self) -> None:
        """Bind all ports, load every model, listen. Raises ConfigError, LogError, ModelError, PortError."""
        gc.collect()
        gc.freeze()  # code lives for ever: collections need not look at it again. Models do not: they come later
        gc.set_threshold(GC_ALLOCATIONS, 20, 20)
        self.models.exemplars.journal.watch_collections()
        try:
            await self._start()
        except BaseException:
            for door in self._doors.values():
                door.stop_accepting()
            for listener in self._listeners:
                listener.close()
            await self._withdraw()
            await self._stop_changing()
            await self._stop_models(0.0)
            self.models.exemplars.journal.close()
            raise

    async def _start(self) -> None:
        server, catalog = self._config.server, self.models.catalog
        with self._given or Listeners(server) as listeners:
            await self.control.start()
            if not self._follows:
                await self._serve_configured(self._config, keep_others=True)
            if self._repository is not None:
                await self._repository.start()
            for name in list(self.control.wanted.models):
                await self.control.tried(name)
            repository = ServerRepository(self.control, self._repository, server.repository_mode)
            limits = self._config.http
            extensions = extensions_of(server, limits, catalog)
            app = OipApp(
                catalog,
                limits,
                clock=monotonic,
                server_timing=server.server_timing,
                tenant_header=server.tenant_header,
                repository=repository,
                regions=extensions.regions,
                extensions=extensions.names,
                more=[*extensions.rows(), *self._more_routes(repository)],
            )
            answer = with_access_log(app, monotonic) if server.access_log else app
            self.ports = listeners.ports
            self.unix_socket = listeners.unix_socket
            page = self._control_page(app)
            tls = self._certificates
            over_tls = None if tls is None or self._given is not None else tls.context(HTTP)
            self._control = ControlServer(page, over_tls, limits, self._bounds)
            sockets = listeners.take()
            self._listeners = list(sockets.values())
            control = sockets.pop("control_port")
            methods = grpc_methods(
                catalog, repository, limits, clock=monotonic, tenant_header=server.tenant_header, extensions=extensions
            )
            journal = self.models.exemplars.journal
            for knob, listener in sockets.items():
                grpc = "grpc" in knob
                door: Listening = (
                    GrpcServer(methods, limits, self._desk, self._bounds, self._audit, journal)
                    if grpc
                    else HttpServer(answer, limits, self._desk, self._bounds, self._audit, journal)
                )
                try:
                    await door.start(listener, None if tls is None else tls.context(GRPC if grpc else HTTP))
                    self._doors[knob] = door
                except OSError as error:  # bound by another process, too, which has begun to listen meanwhile
                    self._give_up(knob, listener, error)
            if tls is not None:
                tls.watch()
            control.listen()  # uvicorn gets to it some turns later, and "ready" must be true of all ports
            self._control.start(control)
            self._feed.start()
            if self._announcer is not None:
                self._announcer.start(Reached(self.http_port, self.ports.get("grpc_port", 0), tls is not None))

    def _give_up(self, knob: str, listener: socket.socket, error: OSError) -> None:
        """Raises PortError, unless it is the port of gRPC that nobody has named."""
        server, port = self._config.server, self.ports.pop(knob, 0)
        listener.close()
        refused = taken(server.host, port, error, knob)
        if knob != "grpc_port" or server.grpc != "auto" or server.grpc_port != GRPC_PORT:
            raise refused from None
        log.warning("gRPC is off: %s", refused)

    def _more_routes(self, repository: ServerRepository) -> list[Row]:
        """Those of TensorFlow Serving come last: whatever else begins with /v1 is answered as it does."""
        server, limits, catalog = self._config.server, self._config.http, self.models.catalog
        tenant_header = server.tenant_header
        generate = Generate(catalog, max_json_bytes=limits.max_json_bytes, clock=monotonic, tenant_header=tenant_header)
        explain = Explain(catalog, max_json_bytes=limits.max_json_bytes, clock=monotonic, tenant_header=tenant_header)
        tfs = TfsRoutes(
            catalog,
            limits,
            clock=monotonic,
            server_timing=server.server_timing,
            tenant_header=tenant_header,
            repository=repository,
        )
        return [*generate.rows(), *explain.rows(), *tfs.rows()]

    def _control_page(self, app: OipApp) -> "Starlette":
        control, models, states = self.control, self.models, self.operations.states
        feed = self._feed = Feed(
            models.catalog, states=states, changes=lambda: control.changes, facts=self._facts, uses=models.uses
        )
        feed.beside = Host(models.exemplars.journal).look
        docs, why = docs_routes(app.document, self._inference_port), why_routes(models.exemplars)
        return control_app(
            models.catalog,
            lambda: self.connections,
            ToldOperations(self.operations, feed.note),
            ToldPilots(models.autopilot, feed.note),
            models.caches,
            [*docs, *dashboard_routes(feed), *why, *alone_routes(monotonic)],
            self._desk if self._given is None else as_told,
            self._audit,
        )

    def metrics_page(self) -> bytes:
        """What /metrics shows whoever may see everything, as Prometheus text."""
        return prometheus.page(prometheus.registry(self.models.catalog, lambda: self.connections, self.operations.states))

    def _facts(self) -> dict[str, Any]:
        """Of the process, for the dashboard. `cpu`: cores that it was busy with since it was asked last."""
        (at, busy_s), now, used_s = self._used, monotonic(), process_time()
        self._used = now, used_s
        return {
            "version": __version__,
            "started_at": self._started_at,
            "cores": usable_cores(),
            "cpu": round((used_s - busy_s) / max(now - at, 1e-3), 2),
            "memory_bytes": resident_bytes() >> 20 << 20,
            "connections": self.connections,
        }

    async def accept_from(self, sockets: Mapping[str, socket.socket]) -> None:
        """New connections of these sockets, too, by the knobs of their ports. Raises OSError."""
        for knob, listener in sockets.items():
            if knob in self._doors:
                await self._doors[knob].accept_from(listener)

    def leave(self, sockets: Mapping[str, socket.socket]) -> None:
        """Accept no more from these, and close them."""
        for knob, listener in sockets.items():
            if knob in self._doors:
                self._doors[knob].leave(listener)

    async def rehearse(self, on_ready: Callable[["Server"], None]) -> list[str]:
        """Bind the ports and load every model, call `on_ready` with those that are up, and stop, without a request served.

        What stood against any of it, in words. The configuration must have no store: there this would change what others serve.
        """
        problems, names = [], dict.fromkeys(self._config.models)
        try:
            with Listeners(self._config.server):
                pass
        except PortError as error:
            problems.append(str(error))
        try:
            await self.control.start()
            await self._want(self._config)
            if self._repository is not None:
                await self._repository.start()
            for name in names | dict.fromkeys(self.control.wanted.models):
                try:
                    await self.control.settled(name)
                except (ConfigError, InferenceError, LogError, ModelError) as error:
                    said = str(error)
                    problems.append(said if name in said else f"model {name}: {said}")
            on_ready(self)
        finally:
            await self._withdraw()
            await self._stop_changing()
            await self._stop_models(0.0)
        return problems

    async def _serve_configured(self, config: Config, *, keep_others: bool = False) -> None:
        """Returns when every model of the configuration is up. Raises what loading one raised."""
        await self._want(config, keep_others=keep_others)
        for name in config.models:
            await self.control.settled(name)

    async def _want(self, config: Config, *, keep_others: bool = False) -> None:
        """The models of this configuration from now on.

        `keep_others`: versions that it does not name stay, too. A store has those that operators loaded before this start.
        """
        gone = self._config.models.keys() - config.models.keys()

        def edit(wanted: Wanted) -> Wanted:
            for name in gone:
                wanted = wanted.having(name, None)
            for name, versions in config.models.items():
                found = {model.version: WantedVersion(model) for model in versions}
                before = wanted.models.get(name)
                if keep_others and before is not None:
                    found = {**before.versions, **found}
                wanted = wanted.having(name, with_versions(before, found))
            return wanted

        await self.control.change(edit)
        self._config = config

    async def serve_anew(self, reread: Callable[[], Config]) -> str:
        """As the configuration is now. What cannot be read or loaded changes nothing of what serves; it is logged, and told."""
        try:
            config = reread()
            if _fixed(config) != _fixed(self._config):
                log.warning("of the configuration only [models] is read again; the rest needs a restart")
                config = msgspec.structs.replace(self._config, models=config.models)
            await self._serve_configured(config)
            if self._repository is not None and config.server.repository_mode != "explicit":
                await self._repository.look()
            log.info("the models are as configured now")
        except (ConfigError, InferenceError, LogError, ModelError) as error:
            log.error("the configuration is not followed: %s", error)
            return str(error)
        return ""

    async def follow_now(self) -> str:
        """Look at what is wanted, and return when it is so or was tried: then, what went wrong first."""
        problem = ""
        await self.control.change(lambda wanted: wanted)
        for name in {*self.control.wanted.models, *(model.served.name for model in self.models)}:
            try:
                await self.control.settled(name)
            except (ConfigError, InferenceError, LogError, ModelError) as error:
                problem = problem or f"model {name}: {error}"
        return problem

    async def run(self, on_ready: Callable[["Server"], None], reread: Callable[[], Config] | None = None) -> None:
        """Start, call `on_ready`, serve until a signal, then drain. A second one, but for SIGHUP, cuts the drain short.

        A signal that comes before it is ready ends the start. With `reread`, SIGHUP makes it serve the models that the
        configuration then has.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, *HANG_UP):
            loop.add_signal_handler(number, stop.set)
        if not await self._started_before(stop):
            return
        on_ready(self)
        rereading: list[asyncio.Task[str]] = []
        if reread is not None:
            for number in HANG_UP:
                loop.add_signal_handler(number, lambda: rereading.append(loop.create_task(self.serve_anew(reread))))
        await stop.wait()
        for task in rereading:
            task.cancel()
        drain = loop.create_task(self.stop())
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, drain.cancel)
        try:
            await drain
        except asyncio.CancelledError:
            log.warning("stopped by a second signal: %d requests were cut", self.models.unanswered)
            self.models.close_recordings()
            logging.shutdown()
            os._exit(CUT_SHORT)  # an orderly exit would wait for the batches that still run on threads
        if self.models.hangs:
            logging.shutdown()
            os._exit(0)  # an orderly exit would wait for the load that never ends

    async def _started_before(self, stop: asyncio.Event) -> bool:
        loop = asyncio.get_running_loop()
        starting, stopped = loop.create_task(self.start()), loop.create_task(stop.wait())
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if starting.done():
            await starting
            return True
        for number in (signal.SIGTERM, signal.SIGINT):  # a thread that loads a model is waited for
            loop.remove_signal_handler(number)  # which the loop's end would take away, and the thread be waited for
            signal.signal(number, lambda *_: os._exit(CUT_SHORT))
        log.info("stopped before the server was ready")
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        return False

    async def _stop_changing(self) -> None:
        if self._repository is not None:
            await self._repository.stop()
        await self.control.stop()

    async def _stop_models(self, drain_s: float) -> None:
        await self.models.drain(drain_s)
        if self._tracer is not None:
            await self._tracer.close()

    async def stop(self, drained: Callable[[], Awaitable[None]] | None = None) -> None:
        """Take no new connections, answer what is under way (at most drain_s seconds), call `drained`, stop everything."""
        catalog, drain_s = self.models.catalog, self._config.server.drain_s
        catalog.drain()
        await self._withdraw()
        await asyncio.sleep(self._config.node.leave_s)
        await self._stop_changing()
        farewell = Farewell([model.stats for model in catalog], self.connections, drain_s)
        if self.unix_socket is not None:
            self.unix_socket.remove()
        await asyncio.gather(*[door.drain(drain_s) for door in self._doors.values()])
        farewell.over()
        if drained is not None:
            await drained()
        if self._certificates is not None:
            self._certificates.close()
        await self._stop_models(1.0)
        self._feed.close()
        await self._control.stop()
        self._bounds.handshakes.close()
        self._audit.flush(now=True)
        self.models.exemplars.journal.close()

    async def _withdraw(self) -> None:
        announcer, self._announcer = self._announcer, None
        if announcer is not None:
            await announcer.stop()

    def _crowded(self, address: str) -> None:
        self._audit.refusal(Failure(FailureKind.QUOTA, "too many connections of this address"), address, "connect")


def _fixed(config: Config) -> Config:
    """What needs a restart."""
    return msgspec.structs.replace(config, models={})


def identity_desk(config: Config) -> "Identify":
    from dlproxy.wire.identity.desk import IdentityDesk  # most servers start without one

    return IdentityDesk(config.auth, config.grants, monotonic)


def _tracer(config: TracingConfig) -> "Tracer | None":
    """None where the SDK's own variable says so. Raises ConfigError."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    try:
        from dlproxy.telemetry.tracing import Tracer  # most servers start without one
    except ImportError:
        raise ConfigError("[tracing] needs a package that is not installed: pip install 'dlproxy[otel]'") from None
    return Tracer(config)


def _repository(server: ServerConfig, control: Control) -> "Repository":
    from dlproxy.fleet.repository.watcher import Repository  # most servers start without one

    return Repository(server, control.change)
