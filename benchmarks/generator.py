"""`dlproxy bench` beside wrk, and against a server that stalls for a second: `python -m benchmarks.generator`.

In turns with wrk: the rate against nginx, percentiles against dlproxy; generators on one core, servers on the other. Exits
with 1 if a goal is missed.
"""

import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path

from benchmarks.harness.live import Live
from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.options import options_of, positive
from benchmarks.harness.processes import choose_cores, stay_off_the_servers_core
from benchmarks.harness.running import EXIT_MISSED, run, workplace
from benchmarks.harness.sample import Sample
from benchmarks.harness.servers import Launcher, Server
from benchmarks.harness.wrk import Figures, Load, run_wrk, wrk_command
from benchmarks.models import build_mlp
from dlproxy.lab.report.result import Result

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
REPLIES = f"""location = /v2/models/static {{ return 200 '{json.dumps(METADATA)}'; }}
location = /v2/models/static/infer {{ return 200 '{json.dumps(ANSWER)}'; }}"""


def _sample(model: str, name: str, values: int = VALUES) -> Sample:
    tensor = bytes(4 * values)
    described = {"name": name, "shape": [1, values], "datatype": "FP32", "parameters": {"binary_data_size": len(tensor)}}
    return Sample(model, json.dumps({"inputs": [described]}).encode(), tensor, {})


def _in_turns(live: Live, server: Server, sample: Sample, *, rounds: int, seconds: int) -> list[tuple[Figures, Result]]:
    """Pairs of runs of wrk and `dlproxy bench`, the same load each."""
    wrk_load = Load(CONNECTIONS, seconds, sample)
    wrk = wrk_command(server.url(sample.path), wrk_load, live.cores, live.directory)
    options = ["--warmup", "1", "--concurrency", str(CONNECTIONS), "--duration", str(seconds)]
    pairs = []
    for _ in range(rounds):
        theirs = run_wrk(wrk, wrk_load)
        ours = live.load(server.url(""), sample.model, options, seconds)
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


def _stall(live: Live, server: Server) -> bool:
    """A second of silence in ten: every request that was due in it waited, whether or not the generator sent it in time."""
    shown = {}
    for name, options in (("open", ["--rate", str(STALL_RATE)]), ("closed", ["--concurrency", "2"])):
        running = live.start_load(server.url(""), "static", [*options, "--duration", str(STALL_RUN_S)], STALL_RUN_S)
        time.sleep(STALL_RUN_S / 2)
        os.killpg(server.child.process.pid, signal.SIGSTOP)
        time.sleep(STALL_S)
        os.killpg(server.child.process.pid, signal.SIGCONT)
        shown[name] = running.result().latency_ms["p99"]
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
            live, launcher = Live(children, cores, directory), Launcher(children, cores, directory, Path())
            with launcher.nginx(REPLIES) as server:
                reached.append(_is_quick(_in_turns(live, server, _sample("static", "x"), **length)))
                reached.append(_stall(live, server))
            with launcher.dlproxy({"mlp": build_mlp(directory / "mlp.onnx"), "sleeper": SLEEPER}) as server:
                _agrees(_in_turns(live, server, _sample("mlp", "input"), **length))
                reached.append(_agrees(_in_turns(live, server, _sample("sleeper", "x", 1), **length)))

    return run(measure) or (0 if all(reached) else EXIT_MISSED)


if __name__ == "__main__":
    sys.exit(main())
