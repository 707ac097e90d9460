"""A load test from its settings to its Result: asks the server first, starts the processes, watches them, adds up.

Called by cli/bench.py and peak.py. Not aware of: the command line, how a result is shown.
"""

import platform
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from itertools import chain
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from time import monotonic
from types import FrameType, TracebackType
from typing import Any

from msgspec import structs

from dlproxy import __version__
from dlproxy.cores import usable_cores
from dlproxy.lab.load import payload
from dlproxy.lab.load.generator import Outcome, Progress
from dlproxy.lab.load.settings import LoadError, Settings, check
from dlproxy.lab.load.target import Counters, Model, Target, check_answer
from dlproxy.lab.load.worker import READY, Plan
from dlproxy.lab.report.histogram import Histogram
from dlproxy.lab.report.result import Generator, Result, Tally, make_result

READY_S = 60.0  # for processes to start, make their requests and connect
START_S = 0.05  # from telling the start to the start: longer than telling all of them takes
POLL_S = 0.1
LATE_S = 10.0  # beyond drain and hurry: a process that is this late hangs
BUSY = 0.85
LATE_MS = 1.0
LATE_SHARE = 0.1

Watch = Callable[[Progress], bool]
"""Is told the sum of all processes' progress; answers whether the run should go on."""


class Interrupt:
    """Ctrl-C or SIGTERM inside it: the first is remembered, the second raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.pressed = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._press) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True


class LoadTest:
    """Settings that were found to work: the server is there and answers one request as it should. Run it as often as wanted."""

    def __init__(self, settings: Settings) -> None:
        """Raises LoadError for whatever is wrong, from contradictory settings to a server that refuses."""
        self.settings = check(settings)
        self.target = Target(settings.url, self.settings)
        self.model = self.target.model(settings.model)
        self.gave_up = False
        """Whether the last run ended early because every request had begun to fail."""
        self.answer_bytes = 0
        """Of the body of the first answer."""
        self.open_size, made = self._try_sizes()
        self.first_request = payload.whole_request(
            self.target.infer_path(self.model.name),
            self.target.host_header,
            payload.encode(self.settings.protocol, made[0], self.settings.deadline_s, self.settings.headers),
        )
        bodies = [payload.encode(settings.protocol, sample, settings.deadline_s)[0] for sample in made]
        self.request_bytes = round(sum(map(len, bodies)) / len(bodies))
        self._payload = {
            "requests": len(bodies),
            "distinct": len(set(bodies)),
            "request_bytes": self.request_bytes,
            "shapes": {tensor.name: "x".join(map(str, tensor.shape)) for tensor in made[0]},
        }

    def run(self, interrupt: Interrupt, watch: Watch, **changes: Any) -> Result:
        """Load the server once, with `changes` of the settings. Raises LoadError; KeyboardInterrupt at a second Ctrl-C."""
        settings = check(structs.replace(self.settings, **changes))
        started = datetime.now(UTC).isoformat(timespec="seconds")
        before = self.target.counters(self.model.name)
        plans = [self._plan(settings, index) for index in range(settings.processes)]
        outcomes = _run_processes(plans, interrupt, watch)
        self.gave_up = any(outcome.gave_up for outcome in outcomes)
        after = None if before is None else self.target.counters(self.model.name)
        tally = _sum([outcome.tally for outcome in outcomes])
        target = f"{self.model.name} at {self.target.url}"
        result = make_result(tally, kind="load test", started=started, target=target, setup=self._setup(settings))
        if before is not None and after is not None:
            _add_counted(result, before, after)
        result.interrupted = interrupt.pressed
        _judge_generator(result, settings, outcomes)
        return result

    def _try_sizes(self) -> tuple[int, list[payload.Sample]]:
        """The first size for open dimensions that the model takes, and the requests of that size."""
        sizes = payload.OPEN_SIZES if payload.open_dimensions(self.model, self.settings) else payload.OPEN_SIZES[:1]
        complaint: LoadError | None = None
        for size in sizes:
            made = payload.samples(self.model, self.settings, size)
            body, headers = payload.encode(self.settings.protocol, made[0], None, self.settings.headers)
            answer = self.target.ask("POST", self.target.infer_path(self.model.name), body, headers)
            try:
                check_answer(answer, self.model)
            except LoadError as error:
                complaint = complaint or error
                if answer.status not in (400, 500):
                    break
            else:
                self.answer_bytes = len(answer.body)
                return size, made
        hint = "; give its open dimensions with --shape, or requests with --input" if len(sizes) > 1 else ""
        raise LoadError(f"{complaint}{hint}")

    def _plan(self, settings: Settings, index: int) -> Plan:
        target = self.target
        path = target.infer_path(self.model.name)
        return Plan(settings, self.model, self.open_size, target.address, path, target.host_header, index, target.tls_name)

    def _setup(self, settings: Settings) -> dict[str, Any]:
        options = structs.asdict(settings)
        for name in ("url", "model", "shapes", "deadline_s", "objective_s", "headers", "ca_file", "cert_file", "key_file"):
            del options[name]
        given = {
            name: str(value) if name in ("input", "trace") else value for name, value in options.items() if value is not None
        }
        for name in ("deadline", "objective"):
            if (seconds := getattr(settings, f"{name}_s")) is not None:
                given[f"{name}_ms"] = seconds * 1e3
        if settings.headers:  # their values may be secrets
            given["headers"] = ", ".join(name for name, _ in settings.headers)
        if not settings.open_loop:
            given.pop("max_connections")
        return {
            "loop": "open" if settings.open_loop else "closed",
            **given,
            "payload": self._payload,
            "model": _describe(self.model),
            "dlproxy": __version__,
            "python": platform.python_version(),
            "cores": usable_cores(),
        }


def _add_counted(result: Result, before: Counters, after: Counters) -> None:
    for size, count in sorted(after.batches.items()):
        if count > before.batches.get(size, 0):
            result.batch_sizes[size] = count - before.batches.get(size, 0)
    result.busy_s = max(after.busy_s - before.busy_s, 0.0)
    for phase, (count, seconds) in after.phases.items():
        count_before, seconds_before = before.phases.get(phase, (0, 0.0))
        if count > count_before:
            result.phases_ms[phase] = (seconds - seconds_before) / (count - count_before) * 1e3


def _describe(model: Model) -> dict[str, Any]:
    tensors = {spec.name: f"{spec.dtype.value} [{','.join(map(str, spec.shape))}]" for spec in model.inputs}
    return {"name": model.name, "platform": model.platform, "inputs": tensors}


def _sum(tallies: Sequence[Tally]) -> Tally:
    first, *others = tallies
    for other in others:
        first.merge(other)
        first.end_at = min(first.end_at, other.end_at)
    return first


# Processes


class _Process:
    """One worker and our end of its pipe."""

    def __init__(self, plan: Plan) -> None:
        ours, theirs = Pipe()
        self.pipe = ours
        self.progress = Progress(0, 0, 0, 0)
        self.outcome: Outcome | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        command = [sys.executable, "-m", "dlproxy.lab.load.worker", str(theirs.fileno())]
        with theirs:  # a group of its own: Ctrl-C at the terminal is for us, and we tell it
            self._process = subprocess.Popen(  # nosec B603 # our own interpreter
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        self.tell(plan)

    def tell(self, what: object) -> None:
        with suppress(OSError):  # it has ended: that shows when it is listened to
            self.pipe.send(what)

    def hear(self) -> Any:
        """What it says next. Raises LoadError if it failed or has ended."""
        try:
            said = self.pipe.recv()
        except (EOFError, OSError):
            raise LoadError(f"a load process ended unexpectedly: {self._last_words()}") from None
        if isinstance(said, LoadError):
            raise said
        return said

    def end(self) -> None:
        self.pipe.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._errors.close()

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        return lines[-1] if lines else f"exit code {code}"


def _run_processes(plans: Sequence[Plan], interrupt: Interrupt, watch: Watch) -> list[Outcome]:
    with ExitStack() as stack:
        processes = []
        for plan in plans:
            processes.append(_Process(plan))
            stack.callback(processes[-1].end)
        ready_by = monotonic() + READY_S
        for process in processes:
            while not process.pipe.poll(POLL_S):
                if interrupt.pressed:
                    raise KeyboardInterrupt
                if monotonic() > ready_by:
                    raise LoadError(f"a load process was not ready within {READY_S:g} s; is this machine overloaded?")
            said = process.hear()
            assert said == READY, said
        start_at = monotonic() + START_S
        for process in processes:
            process.tell(start_at)
        settings = plans[0].settings
        over_at = start_at + settings.ramp_s + settings.length_s + settings.drain_s + LATE_S
        return _watch(processes, over_at, interrupt, watch)


def _watch(processes: Sequence[_Process], over_at: float, interrupt: Interrupt, watch: Watch) -> list[Outcome]:
    stopping = False
    going = {process.pipe: process for process in processes}
    while going:
        for pipe in wait(list(going), POLL_S):
            assert isinstance(pipe, Connection)
            process = going[pipe]
            said = process.hear()
            if isinstance(said, Progress):
                process.progress = said
            else:
                process.outcome = said
                del going[pipe]
        total = Progress(
            ok=sum(process.progress.ok for process in processes),
            failed=sum(process.progress.failed for process in processes),
            late=sum(process.progress.late for process in processes),
            under_way=sum(process.progress.under_way for process in processes),
        )
        gave_up = any(process.outcome is not None and process.outcome.gave_up for process in processes)
        if not stopping and (not watch(total) or interrupt.pressed or gave_up):
            stopping = True
            for process in going.values():
                process.tell("stop")
        if monotonic() > over_at:
            raise LoadError("a load process stopped responding; is this machine overloaded?")
    return [process.outcome for process in processes if process.outcome is not None]


# What the generator itself has to say


def _judge_generator(result: Result, settings: Settings, outcomes: Sequence[Outcome]) -> None:
    lateness = Histogram()
    for outcome in outcomes:
        lateness.merge(outcome.lateness)
    result.generator = Generator(
        cpu_share=max(outcome.cpu_share for outcome in outcomes),
        late_p99_ms=lateness.quantile_s(0.99) * 1e3,
        late_max_ms=lateness.max_s * 1e3,
    )
    result.warnings += _warnings(result, result.generator, settings, outcomes)


def _warnings(result: Result, generator: Generator, settings: Settings, outcomes: Sequence[Outcome]) -> list[str]:
    warnings = []
    if any(outcome.gave_up for outcome in outcomes):
        warnings.append("the run ended early because every request had begun to fail")
    if generator.cpu_share > BUSY:
        more = f"--processes {2 * settings.processes}"
        warnings.append(
            f"the load generator was the limit, not the server: a process used {generator.cpu_share:.0%} of a core; "
            f"give it {more}, or another machine"
        )
    limited = any(outcome.limited for outcome in outcomes)
    if limited and settings.open_loop:
        most = sum(outcome.connections for outcome in outcomes)
        warnings.append(
            f"all {most} connections were busy at times: requests waited for one, which their latency includes "
            "(--max-connections)"
        )
    behind = sum(outcome.behind for outcome in outcomes)
    if settings.open_loop and behind > 0.01 * result.sent:
        warnings.append(
            f"the offered rate was not reached: {behind:,} of {result.sent:,} requests had not left when time was up"
        )
    if not limited and generator.late_p99_ms > max(LATE_MS, LATE_SHARE * result.latency_ms.get("p50", 0.0)):
        warnings.append(
            f"requests left late ({generator.late_p99_ms:.3g} ms at p99), which their latency includes: "
            "the machine or the load generator was busy"
        )
    said = dict(chain.from_iterable(outcome.said.items() for outcome in reversed(outcomes)))
    warnings += [f'the first "{kind}" said: {text}' for kind, text in sorted(said.items()) if kind in result.errors]
    return warnings
