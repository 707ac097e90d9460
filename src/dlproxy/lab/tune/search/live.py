"""A server of one layout as a child, the load on it, and what a run showed: the live half of a tuning.

Called by trials.py. Not aware of: which points are worth a run.
"""

import http.client
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Any
from urllib.parse import quote

import msgspec

from dlproxy.fleet.memory import resident_bytes
from dlproxy.hosts import plain_host
from dlproxy.lab.load.run import Interrupt, LoadTest
from dlproxy.lab.load.settings import LoadError
from dlproxy.lab.report.histogram import Histogram
from dlproxy.lab.report.result import Result
from dlproxy.lab.tune.search.calibrate import request_settings
from dlproxy.lab.tune.search.problem import NEVER_S, Layout, Outcome, Point, Problem, TuneError
from dlproxy.lab.tune.search.times import Times, learnt
from dlproxy.lab.tune.search.toml import model_table
from dlproxy.telemetry.event_log import LogError

STOP_S = 15.0
POLL_S = 0.02
FIRST_TRIES = 5
PATIENCE_S = 10.0
WARM_UP_S = 0.5
DRAIN_S = 2.0


class LiveServer:
    """A model served in one layout. Starts when it is entered, ends when it is left. Raises TuneError.

    `point`: None for the configuration as it is, which the autopilot then tunes. `record`: whether every event is recorded,
    from which `learn` learns once the server has ended.
    """

    def __init__(self, problem: Problem, point: Point | None, *, record: bool) -> None:
        self._problem = problem
        self.layout: Layout | str = "the autopilot" if point is None else point.layout
        self._first = point
        self._record = record
        self._folder = tempfile.TemporaryDirectory(prefix="dlproxy-tune-")
        self._process: subprocess.Popen[bytes] | None = None
        self._test: LoadTest | None = None
        self._control: tuple[str, int] = ("", 0)
        self._last: Result | None = None
        self._loads: list[float] = []

    def __enter__(self) -> "LiveServer":
        folder = Path(self._folder.name)
        server = ["[server]", "http_port = 0", "control_port = 0", 'calibration_folder = ""']
        server += [f'event_log = "{folder}"'] if self._record else []
        config = self._problem.config
        # loaded for the largest batches: no knob may exceed what a model was loaded with
        point = self._first
        loaded = config if point is None else msgspec.structs.replace(point.on(config), max_batch=config.max_batch)
        server += ["[autopilot]", 'mode = "on"'] if point is None else []
        table = model_table(self._problem.name, loaded, folder)
        (folder / "dlproxy.toml").write_text("\n".join([*server, table]), "utf-8")
        command = [sys.executable, "-m", "dlproxy", "serve", "--config", str(folder / "dlproxy.toml")]
        try:
            with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
                # a session of its own: Ctrl-C in the terminal reaches us, and we end the child
                self._process = subprocess.Popen(  # nosec B603 # our own interpreter
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
                )
            url, self._control = self._addresses(folder)
            if point is not None:
                self.turn(point)
            self._test = self._test_of(url)
        except LoadError as error:
            self._give_up()
            raise TuneError(f"{self.layout}: the server does not answer as it should: {error}") from None
        except BaseException:
            self._give_up()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
        if kind is not None or not self._record:
            self._folder.cleanup()

    def turn(self, point: Point) -> None:
        """These knobs hold from now on."""
        self._ask("PATCH", self._problem.name, msgspec.json.encode(point.live_knobs))

    def load(self, rate: float, seconds: float, seed: int, interrupt: Interrupt) -> Outcome:
        """The problem's requests for so long. KeyboardInterrupt if that was interrupted."""
        assert self._test is not None
        load = self._problem.load
        which: dict[str, Any] = {"rate": rate, "arrivals": load.kind, "seed": seed, "trace": None, "duration_s": seconds}
        if load.trace is not None:
            length_s = load.arrivals(rate).duration_s or 0.0
            which = {"rate": None, "arrivals": None, "trace": load.trace, "duration_s": min(seconds, length_s + 1e-6)}
        warm_up_s = 0.0 if load.trace is not None else WARM_UP_S
        self._loads.append(monotonic())
        try:
            result = self._test.run(interrupt, lambda progress: not interrupt.pressed, warmup_s=warm_up_s, **which)
        except LoadError as error:
            raise TuneError(f"{self.layout}: {error}") from None
        if interrupt.pressed:
            raise KeyboardInterrupt
        self._last = result
        histogram = Histogram.decode(result.histogram)
        good = histogram.share_within(self._problem.objective_s) * result.ok / max(result.sent, 1)
        return Outcome(rate, good, result.latency_ms["p99"] / 1e3 if result.ok else NEVER_S)

    def memory_bytes(self) -> int:
        """Resident, of the server and its worker processes."""
        assert self._process is not None
        told = msgspec.json.decode(self._ask("GET", self._problem.name, None))
        versions = told if isinstance(told, list) else [told]
        workers = [instance.get("pid") for version in versions for instance in version.get("instances", [])]
        return sum(resident_bytes(pid) for pid in (self._process.pid, *workers) if pid is not None)

    def learn(self, before: Times) -> Times:
        """What the loads showed of batch times and paths. After the server has ended, and once."""
        assert self._last is not None
        assert isinstance(self.layout, Layout)
        log = next(Path(self._folder.name).glob("*.dlog"))
        try:
            clients = Histogram.decode(self._last.histogram)
            return learnt(log, clients, self._loads, WARM_UP_S, before, self.layout.instances)
        except LogError:  # nothing was answered
            return before
        finally:
            self._folder.cleanup()

    def _test_of(self, url: str) -> LoadTest:
        """Raises LoadError. Its first request may be too late for the objective: the server is cold, or it was disturbed."""
        settings = msgspec.structs.replace(request_settings(self._problem, url), rate=1.0, drain_s=DRAIN_S)
        for _ in range(FIRST_TRIES - 1):
            with suppress(LoadError):
                return LoadTest(settings)
        return LoadTest(settings)

    def _addresses(self, folder: Path) -> tuple[str, tuple[str, int]]:
        """Of inference and of the control port, once the server says that it is ready."""
        assert self._process is not None
        until = monotonic() + self._problem.config.load_timeout_s
        while True:
            said = (folder / "out").read_text("utf-8", "replace")
            if "\nready" in said:
                found = dict(re.findall(r"^(inference|metrics) +http://(\S+?)/", said, re.MULTILINE))
                host, _, port = found["metrics"].rpartition(":")
                return f"http://{found['inference']}", (plain_host(host), int(port))
            if self._process.poll() is not None or monotonic() > until:
                words = (folder / "err").read_text("utf-8", "replace").strip().splitlines()
                raise TuneError(f"{self.layout}: the server did not start: {words[-1] if words else 'it said nothing'}")
            sleep(POLL_S)

    def _ask(self, method: str, name: str, body: bytes | None) -> bytes:
        """Of the control port."""
        connection = http.client.HTTPConnection(*self._control, timeout=PATIENCE_S)
        try:
            connection.request(method, f"/models/{quote(name, safe='')}", body)
            reply = connection.getresponse()
            said = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise TuneError(f"{self.layout}: the control port does not answer: {error}") from None
        finally:
            connection.close()
        if reply.status != 200:
            raise TuneError(f"{self.layout}: the control port says: {said.decode(errors='replace')}")
        return said

    def _give_up(self) -> None:
        self._end()
        self._folder.cleanup()

    def _end(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
