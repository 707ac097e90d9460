"""Runs wrk from the load core and reads back what load.lua printed."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.harness.processes import BenchmarkError, Child, Cores, pinned
from benchmarks.harness.sample import Sample

SCRIPT = Path(__file__).with_name("load.lua")
RESULT_PREFIX = "RESULT "
SPARE_SECONDS = 30

Mode = Literal["same", "unique", "steady"]


@dataclass(frozen=True)
class Figures:
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    requests: int
    seconds: float


@dataclass(frozen=True)
class Load:
    """What wrk does: no sample means a plain GET; the modes are explained in load.lua. `headers`: more, "NAME: VALUE"."""

    connections: int
    seconds: int
    sample: Sample | None = None
    mode: Mode = "same"
    headers: tuple[str, ...] = ()


def wrk_is_installed() -> bool:
    return shutil.which("wrk") is not None


def wrk_command(url: str, load: Load, cores: Cores, directory: Path) -> list[str]:
    options = ["-t1", f"-c{load.connections}", f"-d{load.seconds}s", "-s", str(SCRIPT)]
    options += [word for header in load.headers for word in ("-H", header)] + [url]
    command = pinned(cores.load, ["wrk", *options])
    if load.sample is None:
        return command
    body_path = directory / f"{load.sample.model}-{load.mode}.body"
    body_path.write_bytes(load.sample.body)
    command += ["--", str(body_path), str(len(load.sample.json_header)), load.mode]
    return [*command, str(load.connections)] if load.mode == "steady" else command


def run_wrk(command: list[str], load: Load) -> Figures:
    limit = load.seconds + SPARE_SECONDS
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=limit, start_new_session=True)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"wrk did not end within {limit} s") from error
    for line in finished.stdout.splitlines():
        if line.startswith(RESULT_PREFIX):
            return _figures(json.loads(line.removeprefix(RESULT_PREFIX)))
    raise BenchmarkError(f"wrk failed: {(finished.stderr or finished.stdout).strip()[-500:]}")


def rate_and_cost(child: Child, url: str, load: Load, cores: Cores, directory: Path) -> tuple[float, list[float]]:
    """Requests per second, and CPU seconds that this server took for each; nothing where that cannot be told."""
    child.wait_until_idle()
    before = child.cpu_seconds()
    figures = run_wrk(wrk_command(url, load, cores, directory), load)
    after = child.cpu_seconds()
    return figures.requests_per_s, [] if before is None or after is None else [(after - before) / figures.requests]


def _figures(result: dict[str, Any]) -> Figures:
    if result["failed"] or not result["requests"]:
        raise BenchmarkError(f"{result['failed']} of {result['requests']} requests failed")
    names = ("requests_per_s", "p50_ms", "p99_ms", "requests", "seconds")
    return Figures(**{name: result[name] for name in names})
