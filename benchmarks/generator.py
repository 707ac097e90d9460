"""`dlproxy bench` beside wrk, and against a server that stalls for a second: `python -m benchmarks.generator`.

In turns with wrk: the rate against nginx, percentiles against dlproxy; generators on one core, servers on the other. Exits
with 1 if a goal is missed.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.options import options_of, positive
from benchmarks.harness.processes import (
    BenchmarkError,
    Child,
    Children,
    Cores,
    accepts_connections,
    choose_cores,
    free_ports,
    pinned,
    stay_off_the_servers_core,
)
from benchmarks.harness.running import EXIT_MISSED, run, workplace
from benchmarks.harness.sample import Sample
from benchmarks.harness.servers import NGINX_TEMPORARY_PATHS, Launcher, find_nginx
from benchmarks.harness.wrk import Figures, Load, run_wrk, wrk_command
from benchmarks.models import build_mlp
from dlproxy.lab.report.result import Result, load

GOAL_RPS = 25_000
GOAL_APART = 0.10
CONNECTIONS = 64
VALUES = 784
SLEEPER = Path("sleep:base=2ms,row=0.05ms")  # the server decides how long an answer takes, not the generator
STALL_S, STALL_RATE, STALL_RUN_S = 1.0, 200, 10
METADATA = {
    "name": "static",
    "versions": ["1"],
    "platform": "nginx",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, VALUES]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
}
ANSWER = {"model_name": "static", "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 1], "data": [0.5]}]}
CONFIG = """\
daemon off; worker_processes 1; pid nginx.pid; error_log stderr warn; events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 1000000000; client_body_buffer_size 64k; {temporary_paths}
default_type application/json;
server {{ listen 127.0.0.1:{port};
location = /v2/models/static {{ return 200 '{metadata}'; }}
location = /v2/models/static/infer {{ return 200 '{answer}'; }} }} }}
"""


@contextmanager
def _static(children: Children, cores: Cores, directory: Path) -> Iterator[tuple[Child, int]]:
    """nginx that answers as a model server would, without a model."""
    program = find_nginx()
    if program is None:
        raise BenchmarkError("nginx is not installed; on Debian: apt-get install nginx-light")
    (port,) = free_ports(1)
    config = directory / "nginx.conf"
    config.write_text(
        CONFIG.format(
            port=port, metadata=json.dumps(METADATA), answer=json.dumps(ANSWER), temporary_paths=NGINX_TEMPORARY_PATHS
        )
    )
    child = children.start("nginx", pinned(cores.server, [program, "-p", str(directory), "-c", str(config)]))
    try:
        child.wait_until(lambda: accepts_connections(port))
        yield child, port
    finally:
        children.stop(child)


def _sample(model: str, name: str, values: int = VALUES) -> Sample:
    tensor = bytes(4 * values)
    described = {"name": name, "shape": [1, values], "datatype": "FP32", "parameters": {"binary_data_size": len(tensor)}}
    return Sample(model, json.dumps({"inputs": [described]}).encode(), tensor, {})


def _bench_command(cores: Cores, port: int, model: str, path: Path, *options: str) -> list[str]:
    command = [sys.executable, "-m", "dlproxy", "bench", f"http://127.0.0.1:{port}", "--model", model]
    return pinned(cores.load, [*command, "--json", str(path), *options])


def _bench(command: list[str], path: Path, limit_s: float) -> Result:
    finished = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, start_new_session=True)
    if not path.exists():
        raise BenchmarkError(f"dlproxy bench failed: {(finished.stderr or finished.stdout).strip()[-500:]}")
    return load(path)


def _in_turns(
    cores: Cores, port: int, directory: Path, sample: Sample, *, rounds: int, seconds: int
) -> list[tuple[Figures, Result]]:
    """Pairs of runs of wrk and `dlproxy bench`, the same load each."""
    wrk_load = Load(CONNECTIONS, seconds, sample)
    wrk = wrk_command(f"http://127.0.0.1:{port}{sample.path}", wrk_load, cores, directory)
    pairs = []
    for number in range(rounds):
        theirs = run_wrk(wrk, wrk_load)
        path = directory / f"{sample.model}-{number}.json"
        options = ["--concurrency", str(CONNECTIONS), "--duration", str(seconds)]
        ours = _bench(_bench_command(cores, port, sample.model, path, *options), path, seconds + 60)
        share = f"{ours.generator.cpu_share:.0%} of its core" if ours.generator else ""
        print(
            f"{sample.model:<7} wrk {theirs.requests_per_s:>9,.0f}/s p50 {theirs.p50_ms:.3f} ms p99 {theirs.p99_ms:.3f} ms    "
            f"bench {ours.rate_rps:>9,.0f}/s p50 {ours.latency_ms['p50']:.3f} ms p99 {ours.latency_ms['p99']:.3f} ms, {share}",
            flush=True,
        )
        pairs.append((theirs, ours))
    return pairs


def _is_quick(pairs: list[tuple[Figures, Result]]) -> bool:
    rate = statistics.median(ours.rate_rps for _, ours in pairs)
    share = statistics.median(ours.rate_rps / theirs.requests_per_s for theirs, ours in pairs)
    print(f"static: {rate:,.0f} requests/s on one core (goal {GOAL_RPS:,}), {share:.2f} of wrk's")
    return rate >= GOAL_RPS


def _agrees(pairs: list[tuple[Figures, Result]]) -> bool:
    p50 = statistics.median(ours.latency_ms["p50"] / theirs.p50_ms for theirs, ours in pairs)
    p99 = statistics.median(ours.latency_ms["p99"] / theirs.p99_ms for theirs, ours in pairs)
    print(f"bench / wrk, median of pairs: p50 {p50:.3f}, p99 {p99:.3f} (goal for the sleeper: within {GOAL_APART:.0%})")
    return max(abs(p50 - 1.0), abs(p99 - 1.0)) <= GOAL_APART


def _stall(child: Child, cores: Cores, port: int, directory: Path) -> bool:
    """A second of silence in ten: every request that was due in it waited, whether or not the generator sent it in time."""
    shown = {}
    for name, options in (("open", ["--rate", str(STALL_RATE)]), ("closed", ["--concurrency", "2"])):
        path = directory / f"stall-{name}.json"
        command = _bench_command(cores, port, "static", path, *options, "--warmup", "0", "--duration", str(STALL_RUN_S))
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(STALL_RUN_S / 2)
        os.killpg(child.process.pid, signal.SIGSTOP)
        time.sleep(STALL_S)
        os.killpg(child.process.pid, signal.SIGCONT)
        running.wait(60)
        shown[name] = load(path).latency_ms["p99"]
    open_ms, closed_ms = shown["open"], shown["closed"]
    print(f"a stall of {STALL_S:g} s in {STALL_RUN_S} s: p99 {open_ms:,.0f} ms in an open loop, {closed_ms:.3f} ms in a closed")
    return shown["open"] >= 0.8e3 * STALL_S


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("generator", __doc__)
    parser.add_argument("--rounds", type=positive(int), default=5)
    parser.add_argument("--seconds", type=positive(int), default=4)
    args = parser.parse_args(arguments)
    length = {"rounds": args.rounds, "seconds": args.seconds}
    cores = choose_cores()
    print(summary(describe_machine(cores)))
    stay_off_the_servers_core(cores)
    reached: list[bool] = []

    def measure() -> None:
        with workplace("generator") as (children, directory):
            with _static(children, cores, directory) as (child, port):
                reached.append(_is_quick(_in_turns(cores, port, directory, _sample("static", "x"), **length)))
                reached.append(_stall(child, cores, port, directory))
            launcher = Launcher(children, cores, directory, Path())
            with launcher.dlproxy({"mlp": build_mlp(directory / "mlp.onnx"), "sleeper": SLEEPER}) as server:
                _agrees(_in_turns(cores, server.port, directory, _sample("mlp", "input"), **length))
                reached.append(_agrees(_in_turns(cores, server.port, directory, _sample("sleeper", "x", 1), **length)))

    return run(measure) or (0 if all(reached) else EXIT_MISSED)


if __name__ == "__main__":
    sys.exit(main())
