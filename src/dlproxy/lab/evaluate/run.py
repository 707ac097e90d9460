"""An evaluation from what was asked to its figures: starts the server, shares the time out between the parts, runs each.

Called by cli/evaluate.py. Not aware of: the command line, how an evaluation is shown.
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Protocol

from msgspec import Struct, structs

from dlproxy.config import ConfigError, parse_goal
from dlproxy.cores import usable_cores
from dlproxy.lab.child_server import ChildServer, ServerError
from dlproxy.lab.evaluate import faults, scalability, server
from dlproxy.lab.evaluate.evaluation import FAULTS, Evaluation, FaultReport, Moment
from dlproxy.lab.evaluate.robustness import suffer
from dlproxy.lab.evaluate.server import Control
from dlproxy.lab.load.peak import MAX_TRIALS, Search
from dlproxy.lab.load.run import Interrupt, LoadTest, Watch
from dlproxy.lab.load.settings import LoadError, Settings
from dlproxy.lab.report import wording
from dlproxy.lab.report.result import Result

CALM, BUSY = 0.1, 0.7  # of the peak
CLIENTS_EACH = 4  # at least, of every instance
OVERHEAD_S = 0.7  # of each load: its process starts, and the last answers are waited for
LEAST_S = 0.3
LEAST_ANSWERS = 6  # that one client alone gets during a load
MOST_S = 20.0
LEAST_DRAIN_S, MOST_DRAIN_S = 1.0, 10.0
LEAST_REQUESTS = 20  # of a calm load
SEARCH_LOADS = 7.0  # full-length runs that a search takes the time of, the short ones included
SEARCH_RUNS = 9
WARMUP_S = 0.2
MUCH_WAITING = 0.25  # threads that are ready and have no core, on average
OBJECTIVES = 5.0  # times what one client alone gets at p99, where nobody names an objective
LEAST_OBJECTIVE_S = 0.01

# in the order in which they run; the numbers are their parts of the time
PARTS = {
    "load": 0.5,
    "clients": 13.0,
    "peak": 27.0,
    "calm": 7.0,
    "busy": 7.0,
    "instances": 8.0,
    "overload": 9.0,
    "slow clients": 9.0,
    "garbage": 9.0,
    "killed worker": 9.0,
    "cores": 9.0,
}


class Asked(Struct, frozen=True, kw_only=True):
    """What to evaluate. `serve`: arguments of a server of its own; None: the one at `settings.url`, `control_url` if known.

    `reload`: what a model was loaded from, its path and knobs, by its name; None where that is not known.
    """

    settings: Settings
    serve: tuple[str, ...] | None
    control_url: str | None
    objective_s: float | None
    budget_s: float
    faults: bool
    connect: Callable[[str], Control]
    reload: Callable[[str], tuple[str, dict[str, Any]] | None]


class Shown(Protocol):
    """Where one sees how far it is."""

    watch: Watch

    def part(self, name: str) -> None: ...


def evaluate(asked: Asked, interrupt: Interrupt, shown: Shown) -> Evaluation:
    """What could be found until it was over or interrupted. Raises LoadError and ServerError where nothing can be."""
    run = _Run(asked, interrupt, shown)
    with ExitStack() as stack:
        run.start(stack)
        with suppress(KeyboardInterrupt):
            run.parts()
        found = run.found
        found.interrupted = interrupt.pressed
        waiting = [one.waiting for one in (found.calm, found.busy, found.full) if one is not None and one.waiting is not None]
        if max(waiting, default=0.0) > MUCH_WAITING:
            found.warnings.append(
                f"{wording.number(max(waiting))} threads of the server on average waited for a core that other programs or the "
                "load generator had: it can do more than these figures say"
            )
        found.seconds = monotonic() - run.started_at
        return found


class _Run:
    def __init__(self, asked: Asked, interrupt: Interrupt, shown: Shown) -> None:
        self._asked, self._interrupt, self._shown = asked, interrupt, shown
        self.started_at = monotonic()
        self._child: ChildServer | None = None
        self._control: Control | None = None
        self._left = dict(PARTS)

    def start(self, stack: ExitStack) -> None:
        """The server, if it is one of our own, and the first request. Raises LoadError and ServerError."""
        asked, settings = self._asked, self._asked.settings
        control_url = asked.control_url
        if asked.serve is not None:
            self._shown.part("starting the server")
            self._child = ChildServer(asked.serve)
            stack.callback(self._child.end)
            addresses = self._child.wait_until_ready(wanted=lambda: not self._interrupt.pressed)
            settings = structs.replace(settings, url=addresses.http)
            control_url = addresses.control
        if control_url is not None:
            self._control = asked.connect(control_url)
        self._test = LoadTest(structs.replace(settings, warmup_s=WARMUP_S))
        self._model = self._test.model.name
        here = self._child is not None or (self._control is not None and self._control.is_here)
        self._state = None if self._control is None else self._control.state(self._model)
        self.found = Evaluation(
            target=f"{self._model} at {self._test.target.url}",
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            cores=usable_cores() if here else None,
            instances=None if self._state is None else self._state.instances,
            ready_s=None if self._child is None else self._child.ready_s,
            request_bytes=self._test.request_bytes,
            answer_bytes=self._test.answer_bytes,
        )
        if self._child is None:
            self.found.missing["ready"] = "the server was running already"
        alone = self._test.run(self._interrupt, self._shown.watch, concurrency=1, processes=1, duration_s=LEAST_S, warmup_s=0.0)
        if not alone.ok:
            raise LoadError(f"no request to '{self._model}' succeeded: {wording.headline(alone)}")
        self._least_s = max(LEAST_S, LEAST_ANSWERS * alone.latency_ms["p50"] * 1e-3)
        self._objective_s = self._objective(alone.latency_ms["p99"] * 1e-3)
        drain_s = min(max(LEAST_DRAIN_S, 2.0 * self._objective_s), MOST_DRAIN_S)
        self._settings = structs.replace(settings, objective_s=self._objective_s, drain_s=drain_s)

    def parts(self) -> None:
        """Each in its turn, for as long as nobody interrupts."""
        doing: dict[str, Callable[[float], None]] = {
            "load": self._load_again,
            "clients": self._clients,
            "peak": self._peak,
            "calm": self._calm,
            "busy": self._busy,
            "instances": self._instances,
            **{name: lambda seconds, name=name: self._fault(name, seconds) for name in FAULTS},  # type: ignore[misc]
            "cores": self._cores,
        }
        for name, do in doing.items():
            share = self._left[name] / sum(self._left.values())
            del self._left[name]
            if self._interrupt.pressed:
                return
            self._shown.part(name)
            left_s = self.started_at + self._asked.budget_s - monotonic()
            try:
                if left_s <= 0.0:
                    raise LoadError("no time was left for it; give a larger --budget")
                do(left_s * share)
            except LoadError as error:
                self.found.missing[name] = str(error)
            if name != "cores" and self._lost(name):  # which ends the server itself
                return

    def _lost(self, part: str) -> bool:
        """Whether the server has ended by itself, which is a finding and the end of all others."""
        if self._child is None or self._child.process.poll() is None:
            return False
        self.found.server_lost = True
        code, said = self._child.process.returncode, self._child.tail().splitlines()
        last = f"; its last words: {said[-1]}" if said else ""
        self.found.warnings.append(f"the server ended by itself during the part '{part}' with exit code {code}{last}")
        return True

    # Response time

    def _objective(self, alone_s: float) -> float:
        """As given, else as the model has it, else some times the p99 of one client alone."""
        found = self.found
        if self._asked.objective_s is not None:
            seconds, found.objective_from = self._asked.objective_s, "as given"
        elif self._state is not None and self._state.slo:
            try:
                seconds, found.objective_from = parse_goal(self._state.slo).latency_s or 0.0, "the model's own"
            except ConfigError as error:
                raise LoadError(f"the model's objective is not understood: {error}") from None
        else:
            seconds = float(f"{max(OBJECTIVES * alone_s, LEAST_OBJECTIVE_S):.1g}")
            found.objective_from = f"{OBJECTIVES:g} times the p99 of one client alone; give one with --slo"
        found.objective_ms = seconds * 1e3
        return seconds

    def _load_again(self, seconds: float) -> None:
        """The same model once more into the server that runs, by another name."""
        known = self._asked.reload(self._model)
        if known is None or self._control is None:
            self.found.missing["load"] = "what the model was loaded from is not known to a client"
            return
        name, (path, knobs) = f"{self._model}-again", known
        started_at = monotonic()
        self._control.load(name, path, knobs)
        self.found.load_s = monotonic() - started_at
        self._control.unload(name)

    def _calm(self, seconds: float) -> None:
        base = self._base()
        length_s = self._length(seconds)
        self.found.calm = self._open(max(CALM * base, min(LEAST_REQUESTS / length_s, BUSY * base)), length_s)

    def _busy(self, seconds: float) -> None:
        self.found.busy = self._open(BUSY * self._base(), self._length(seconds))

    # Throughput and utilisation

    def _clients(self, seconds: float) -> None:
        found = self.found
        levels = scalability.levels(seconds, OVERHEAD_S + WARMUP_S + self._least_s)
        length_s = self._length(seconds / len(levels))
        for level in levels:
            moment = self._closed(level, length_s)
            if moment is None:
                break
            found.clients.points.append(scalability.point(level, moment))
            if found.full is None or moment.rate_rps > found.full.rate_rps:
                found.full, found.full_clients = moment, level
        scalability.conclude(found.clients)

    def _peak(self, seconds: float) -> None:
        length_s = min(max((seconds - SEARCH_RUNS * OVERHEAD_S) / SEARCH_LOADS, 2.0 * self._least_s), MOST_S)
        test = LoadTest(structs.replace(self._settings, warmup_s=0.0, duration_s=length_s))
        found = self.found
        search = Search(test, self._objective_s, self._interrupt, found.trials.append, self._shown.watch)
        good = [one.rate_rps for one in self.found.clients.points if (one.p99_ms or 1e9) <= self._objective_s * 1e3]
        confirmed: float | None = None
        try:
            confirmed = search.run(BUSY * max(good) if good else None, MAX_TRIALS, monotonic() + seconds).peak_rps
        finally:  # of a search that is interrupted, what had passed counts
            found.confirmed = confirmed is not None
            found.peak_rps = confirmed or max((trial.rate for trial in found.trials if trial.passed), default=None)
        if found.peak_rps is None and not self._interrupt.pressed:
            found.missing["peak"] = f"no rate met the objective in {wording.count(len(found.trials), 'trial')}"

    # Scalability

    def _instances(self, seconds: float) -> None:
        series, control, state = self.found.by_instances, self._control, self._state
        if control is None or state is None:
            series.reason = "needs the server's control port: --control"
            return
        counts = scalability.doubled(self.found.cores or state.instances)
        length_s = self._length(seconds / len(counts))
        try:
            for count in counts:
                control.scale(self._model, count)
                moment = self._closed(max(self.found.full_clients, CLIENTS_EACH * counts[-1]), length_s)
                if moment is None:
                    break
                series.points.append(scalability.point(count, moment))
        except LoadError as error:
            series.reason = str(error)
        finally:
            if series.points:
                own = self._child is not None or state.autoscaled
                control.scale(self._model, None if own else state.instances)
        scalability.conclude(series)

    def _cores(self, seconds: float) -> None:
        """Servers that may use fewer cores; the last thing done, for the one that was measured until now ends first."""
        series, cores = self.found.by_cores, self.found.cores or 1
        if self._child is None or self._asked.serve is None:
            series.reason = "needs restarts, so a server that the evaluation itself starts"
        elif cores < 2 or not server.can_confine():
            series.reason = "there is one core" if cores < 2 else "this system cannot keep a process on some cores (Linux can)"
        if series.reason or self._child is None or self._asked.serve is None or self.found.full is None:
            return
        counts = scalability.doubled(cores)[:-1]
        length_s = self._length(seconds / len(counts) - self._child.ready_s)
        if seconds < len(counts) * (self._child.ready_s + OVERHEAD_S):
            series.reason = (
                f"no time for restarts of {wording.duration(self._child.ready_s * 1e3)} each; give a larger --budget"
            )
            return
        self._child.end()
        for count in counts:
            if self._interrupt.pressed:
                return
            with server.confined(count):
                self._child = child = ChildServer(self._asked.serve)
            try:
                url = child.wait_until_ready(wanted=lambda: not self._interrupt.pressed).http
                self._control = None
                self._test = LoadTest(structs.replace(self._settings, url=url, warmup_s=WARMUP_S))
                moment = self._closed(self.found.full_clients, length_s)
            except ServerError as error:
                raise LoadError(f"on {wording.count(count, 'core')} {error}") from None
            finally:
                child.end()
            if moment is not None:
                series.points.append(scalability.point(count, moment))
        series.points.append(scalability.point(cores, self.found.full))
        scalability.conclude(series)

    # Robustness

    def _fault(self, name: str, seconds: float) -> None:
        report = FaultReport(name=name)
        self.found.faults.append(report)
        if not self._asked.faults:
            report.reason = "left out, as --no-faults asks"
            return
        length_s = max(seconds - OVERHEAD_S - 1.0, 2.0, 4.0 * self._least_s)
        rps = BUSY * self._base()
        fault: faults.Fault
        if name == "overload":
            more = (faults.OVERLOAD - BUSY) * self._base()
            test = self._test
            fault = faults.Overload(test, more, 0.3 * length_s, self._objective_s, self._interrupt)
        elif name == "slow clients":
            fault = faults.SlowClients(self._test, rps, 0.3 * length_s)
        elif name == "garbage":
            fault = faults.Garbage(self._test, rps)
        else:
            pids = () if self._control is None else self._control.state(self._model).pids
            report.reason = self._no_worker(pids)
            if report.reason:
                return
            fault = faults.KilledWorker(pids)
        test = LoadTest(self._settings)
        reference_rps = self._base() if name == "overload" else 0.0
        self.found.faults[-1] = suffer(
            test,
            name,
            fault,
            rps=rps,
            reference_rps=reference_rps,
            seconds=length_s,
            interrupt=self._interrupt,
            watch=self._shown.watch,
        )

    def _no_worker(self, pids: tuple[int, ...]) -> str:
        """Why none can be killed; empty if one can."""
        if self._control is None or self._state is None:
            return "needs the server's control port: --control"
        if not pids:
            return f"does not apply: batches run as '{self._state.run}', not in worker processes (run = \"process\")"
        return "" if self._control.is_here else "does not apply: the server is on another machine"

    # Loads

    def _base(self) -> float:
        base = self.found.base_rps
        if base is None:
            raise LoadError("no rate is known that the server can do")
        return base

    def _length(self, seconds: float) -> float:
        """Of a load that may take so long with all that belongs to it."""
        return min(max(seconds - OVERHEAD_S - WARMUP_S, self._least_s), max(MOST_S, self._least_s))

    def _open(self, rate: float, length_s: float) -> Moment | None:
        length_s = max(length_s, 2.0 / rate)
        return self._moment(concurrency=None, rate=rate, arrivals="poisson", duration_s=length_s)

    def _closed(self, clients: int, length_s: float) -> Moment | None:
        processes = min(self._settings.processes, clients)
        return self._moment(concurrency=clients, rate=None, processes=processes, duration_s=length_s)

    def _moment(self, **changes: Any) -> Moment | None:
        """One load and all that it shows; None if it was interrupted."""
        pid = None if self._child is None else self._child.process.pid
        before, waited_before = server.cpu_s(pid, self._control, self._model), server.waited_s(pid)
        result = self._test.run(
            self._interrupt, self._shown.watch, **changes, objective_s=self._objective_s, drain_s=self._settings.drain_s
        )
        after, waited_after = server.cpu_s(pid, self._control, self._model), server.waited_s(pid)
        if result.interrupted:
            return None
        for warning in result.warnings:
            if warning not in self.found.warnings and "generator was the limit" in warning:
                self.found.warnings.append(warning)
        wall_s = result.duration_s + WARMUP_S
        moment = _moment_of(result)
        if before is not None and after is not None:
            moment.cores_busy = max(after - before, 0.0) / wall_s
            if moment.in_time is not None and self.found.cores:
                moment.useful = min(moment.cores_busy * moment.in_time / self.found.cores, 1.0)
        if waited_before is not None and waited_after is not None:
            moment.waiting = max(waited_after - waited_before, 0.0) / wall_s
        if self.found.instances and result.busy_s:
            moment.instances_busy = min(result.busy_s / (self.found.instances * wall_s), 1.0)
        return moment


def _moment_of(result: Result) -> Moment:
    """As far as the load itself shows it."""
    return Moment(
        offered_rps=result.offered_rps,
        rate_rps=result.rate_rps,
        goodput_rps=result.goodput_rps,
        duration_s=result.duration_s,
        failed=result.failed,
        in_time=wording.in_time(result),
        latency_ms=result.latency_ms,
        phases_ms=result.phases_ms,
        mean_batch=wording.mean_batch(result),
        generator_cores=0.0 if result.generator is None else result.generator.cpu_share,
    )
