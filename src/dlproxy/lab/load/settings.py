"""What a load test is asked to do, checked for sense before anything is sent.

Made by cli/bench.py, read by everything else in lab/load. Not aware of: the server, the command line.
"""

import ssl
from math import inf, isfinite
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.remote.tls import context_of
from dlproxy.instance.runtime import ModelError
from dlproxy.lab.load.arrivals import Arrivals, ArrivalsError, make_arrivals, read_trace

CONCURRENCY = 64  # enough to fill the batches of most models, few enough that a queue of them is no denial of service
DURATION_S = 10.0
WARMUP_S = 1.0
DRAIN_S = 5.0
KEYS = 64
MAX_RATE = 1e6
MAX_CONNECTIONS = 1024
PROTOCOLS = ("binary", "json")
_LAST_ARRIVAL = 1e-6  # a trace includes its last arrival


class LoadError(Exception):
    """The load test cannot be run; one line that says what is wrong and what would be right."""


class Settings(Struct, frozen=True, kw_only=True):
    """A load test. Closed loop if `concurrency` is set, open loop if `rate` or `trace` is; `check` makes one of them so.

    `keys`: distinct requests, None for as many as the input file holds (64 made-up ones). `zipf`: the exponent of the
    skew with which they are chosen, None for in turn. `deadline_s`, `headers`: sent with each request. `objective_s`: what is
    good. `ca_file`, `cert_file`, `key_file`: as RemoteSettings has them.
    """

    url: str
    model: str | None = None
    concurrency: int | None = None
    rate: float | None = None
    arrivals: str | None = None
    trace: Path | None = None
    speed: float | None = None
    duration_s: float | None = None
    warmup_s: float | None = None
    drain_s: float = DRAIN_S
    seed: int = 0
    input: Path | None = None
    rows: int | None = None
    shapes: dict[str, tuple[int, ...]] = {}
    keys: int | None = None
    zipf: float | None = None
    protocol: str = "binary"
    deadline_s: float | None = None
    headers: tuple[tuple[str, str], ...] = ()
    objective_s: float | None = None
    processes: int = 1
    max_connections: int = MAX_CONNECTIONS
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    @property
    def tls(self) -> ssl.SSLContext:
        """For a server at https://. Raises LoadError for files that cannot be used."""
        try:
            return context_of(RemoteSettings(ca_file=self.ca_file, cert_file=self.cert_file, key_file=self.key_file))
        except ModelError as error:
            raise LoadError(str(error)) from None

    @property
    def open_loop(self) -> bool:
        return self.rate is not None or self.trace is not None

    def stream(self) -> Arrivals:
        """The arrivals of an open loop. Raises LoadError."""
        try:
            if self.trace is not None:
                return read_trace(self.trace, speed=1.0 if self.speed is None else self.speed)
            assert self.rate is not None
            return make_arrivals(self.arrivals or "poisson", rate=self.rate, seed=self.seed)
        except ArrivalsError as error:
            raise LoadError(str(error)) from None

    @property
    def length_s(self) -> float:
        """Seconds that are measured; `check` has set them."""
        assert self.duration_s is not None
        return self.duration_s

    @property
    def ramp_s(self) -> float:
        """Seconds of warm-up; `check` has set them."""
        assert self.warmup_s is not None
        return self.warmup_s


def check(settings: Settings) -> Settings:
    """The same with every default filled in. Raises LoadError for what contradicts itself or cannot be."""
    _check_contradictions(settings)
    _check_numbers(settings)
    changes: dict[str, Any] = {}
    if settings.open_loop:
        stream = settings.stream()
        changes["duration_s"] = settings.duration_s or (stream.duration_s or DURATION_S - _LAST_ARRIVAL) + _LAST_ARRIVAL
        if settings.trace is None:
            changes["arrivals"] = settings.arrivals or "poisson"
        if settings.rate is not None and settings.rate * changes["duration_s"] < 1.0:
            raise LoadError(
                f"--rate {settings.rate:g} for {changes['duration_s']:g} s is less than one request; raise one of them"
            )
    else:
        changes["concurrency"] = settings.concurrency or CONCURRENCY
        changes["duration_s"] = settings.duration_s or DURATION_S
        if changes["concurrency"] < settings.processes:
            raise LoadError(
                f"--concurrency {changes['concurrency']} is less than one for each of {settings.processes} processes"
            )
    if settings.warmup_s is None:
        changes["warmup_s"] = 0.0 if settings.trace is not None else WARMUP_S
    return structs.replace(settings, **changes)


def _check_contradictions(settings: Settings) -> None:
    chosen = [f"--{name}" for name in ("concurrency", "rate", "trace") if getattr(settings, name) is not None]
    if len(chosen) > 1:
        meaning = {
            "--concurrency": "waits for answers",
            "--rate": "sends at times of its own",
            "--trace": "sends when the trace says",
        }
        said = ", ".join(f"{option} {meaning[option]}" for option in chosen)
        raise LoadError(f"{' and '.join(chosen)} contradict each other ({said}); give one of them")
    if settings.arrivals is not None and settings.rate is None:
        raise LoadError("--arrivals says how requests are spread over time; give --rate R with it")
    if settings.speed is not None and settings.trace is None:
        raise LoadError("--speed only has a meaning with --trace; change --rate instead")
    if settings.shapes and settings.input is not None:
        raise LoadError("--shape is for made-up inputs; the file of --input has shapes of its own")
    if settings.protocol not in PROTOCOLS:
        raise LoadError(f"there is no protocol '{settings.protocol}'; choose from {', '.join(PROTOCOLS)}")


def _check_numbers(settings: Settings) -> None:
    for name, least in (("concurrency", 1), ("rows", 1), ("keys", 1), ("processes", 1), ("max_connections", 1), ("seed", 0)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise LoadError(f"--{name.replace('_', '-')} {value} is out of range: give {least} or more")
    for name, zero_is_fine in (("duration_s", False), ("warmup_s", True), ("drain_s", True), ("zipf", True)):
        value = getattr(settings, name)
        if value is not None and not (0.0 < value < inf or (zero_is_fine and value == 0.0)):
            limit = "0 or more" if zero_is_fine else "a number above 0"
            raise LoadError(f"--{name.removesuffix('_s')} {value:g} is out of range: give {limit}")
    rate = settings.rate
    if rate is not None and not (isfinite(rate) and 0.0 < rate <= MAX_RATE):
        raise LoadError(f"--rate {rate:g} is out of range: give requests per second, above 0 and at most {MAX_RATE:,.0f}")
    if settings.max_connections < settings.processes:
        raise LoadError(
            f"--max-connections {settings.max_connections} is less than one for each of {settings.processes} processes"
        )
