"""dlproxy's gRPC beside a bare grpc.aio echo of the same bytes and a real Triton: `python -m benchmarks.grpc`.

The servers share one core, h2load has another. Exits with 1 if an answer is wrong or a goal is missed. `--write` writes
RESULTS.md.
"""

import shutil
import statistics
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec import Struct

from benchmarks.grpc.calls import Figures, Question, load, question_for
from benchmarks.harness.checks import Findings, as_page
from benchmarks.harness.options import add_rounds, minute, options_of, utc_now
from benchmarks.harness.processes import Child, Children, Cores, free_ports, pinned, stay_off_the_servers_core
from benchmarks.harness.running import EXIT_UNUSABLE, find
from benchmarks.harness.servers import answers_ready
from benchmarks.harness.triton import running
from benchmarks.harness.turns import in_turn, spread
from benchmarks.models import build_mlp
from benchmarks.peers import MAX_BATCH, venvs
from benchmarks.peers.registry import PEERS

PAGE = Path(__file__).with_name("RESULTS.md")
TRITON = next(peer for peer in PEERS if peer.name == "pytriton")
AT_ONCE = 64
ECHO_SHARE, TRITON_TIMES, TRITON_AIM, ONE_CLIENT = 0.8, 1.0, 2.0, 1.2
TITLE = "ModelInfer, a small network, one row a call"
CONFIG = f"""\
name: "mlp" backend: "python" max_batch_size: {MAX_BATCH}
input [{{ name: "input" data_type: TYPE_FP32 dims: [784] }}]
output [{{ name: "output" data_type: TYPE_FP32 dims: [10] }}]
instance_group [{{ kind: KIND_CPU }}]
dynamic_batching {{ max_queue_delay_microseconds: 0 }}
"""


class Side(Struct):
    """A server."""

    name: str
    port: int
    echoes: bool = False


@contextmanager
def _servers(model: Path, children: Children, cores: Cores, folder: Path) -> Iterator[list[Side]]:
    """Echo, Triton, dlproxy."""
    echo, http, control, ours = free_ports(4)
    children.start("echo", pinned(cores.server, [sys.executable, "-m", "benchmarks.grpc.echo", str(echo)]))
    ports = ["--http-port", str(http), "--grpc-port", str(ours), "--control-port", str(control)]
    served = [sys.executable, "-m", "dlproxy", "serve", f"mlp={model}", "--host", "127.0.0.1", *ports]
    child: Child = children.start("dlproxy", pinned(cores.server, served))
    version = folder / "repository" / "mlp" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    shutil.copy(Path(__file__).with_name("triton_model.py"), version / "model.py")
    shutil.copy(model, version / "model.onnx")
    with ExitStack() as stack:
        python = TRITON.python(venvs.VENVS)
        triton = stack.enter_context(running(python, version.parents[1], pinned(cores.server, [])))
        child.wait_until(lambda: answers_ready(http))
        yield [Side("grpc.aio echo", echo, echoes=True), Side("Triton", triton.grpc_port), Side("dlproxy", ours)]


def _measure(question: Question, sides: list[Side], repeats: int, seconds: int, cores: Cores, folder: Path) -> Findings:
    findings = Findings(TITLE)
    rounds: dict[tuple[str, int], list[Figures]] = {}
    for calls in (AT_ONCE, 1):
        for side in sides:  # warm-up
            load(question, question.check(side.port, echoed=side.echoes), side.port, calls, 1, cores, folder)
        for number in range(repeats):
            for side in in_turn(sides, number):
                size = question.check(side.port, echoed=side.echoes)
                figures = load(question, size, side.port, calls, seconds, cores, folder)
                rounds.setdefault((side.name, calls), []).append(figures)
                words = f"{figures.calls_per_s:,.0f}/s, p50 {figures.p50_ms:.3f} ms, p99 {figures.p99_ms:.3f} ms"
                print(f"  {calls} at once, {side.name}: {words}", flush=True)
    for (name, calls), found in rounds.items():
        rate = statistics.median(figures.calls_per_s for figures in found)
        p50, p99 = (statistics.median(getattr(figures, field) for figures in found) for field in ("p50_ms", "p99_ms"))
        findings.details.append(f"- {name}, {calls} at once: {rate:,.0f} calls/s, p50 {p50:.3f} ms, p99 {p99:.3f} ms")
    echo, triton, ours = (rounds[side.name, AT_ONCE] for side in sides)
    for what, goal, other in (
        (f"{AT_ONCE} at once: rate by the echo's", ECHO_SHARE, echo),
        (f"{AT_ONCE} at once: rate by Triton's (aim {TRITON_AIM:g})", TRITON_TIMES, triton),
    ):
        ratios = [mine.calls_per_s / its.calls_per_s for mine, its in zip(ours, other, strict=True)]
        findings.at_least(what, goal, statistics.median(ratios), note=spread(ratios))
    pairs = zip(rounds["dlproxy", 1], rounds[sides[0].name, 1], strict=True)
    ratios = [mine.p50_ms / its.p50_ms for mine, its in pairs]
    findings.at_most("one at a time: p50 by the echo's", ONE_CLIENT, statistics.median(ratios), note=spread(ratios))
    return findings


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("grpc", __doc__)
    add_rounds(parser, seconds=3, repeats=5)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args(arguments)
    if shutil.which("h2load") is None:
        print("h2load is not installed; on Debian: apt-get install nghttp2-client", file=sys.stderr)
        return EXIT_UNUSABLE

    def measure(children: Children, cores: Cores, folder: Path) -> Iterator[Findings]:
        venvs.ensure(TRITON, children, fresh=False)
        stay_off_the_servers_core(cores)
        model = build_mlp(folder / "mlp.onnx")
        question = question_for(model, "mlp")
        with _servers(model, children, cores, folder) as sides:
            yield _measure(question, sides, options.repeats, options.seconds, cores, folder)

    return find("grpc", measure, lambda found, machine: PAGE.write_text(_page(*found, machine)) if options.write else None)


def _page(findings: Findings, machine: str) -> str:
    package = venvs.versions(TRITON)["nvidia-pytriton"]
    about = f"""\
784-256-128-10 in FP32, 3,136 bytes in and 40 out, raw contents. dlproxy: defaults. Triton: the one inside nvidia-pytriton
{package}, with its Python backend, which runs ONNX Runtime on one thread once a batch, dynamic batching without delay. Echo:
`grpc.aio` with a generic handler and no protobuf, which answers the request's own bytes. h2load, one connection; before each
load the answer is compared with ONNX Runtime's. Medians of the rounds, in each of which all three are measured."""
    lead = ["# gRPC", "", f"`python -m benchmarks.grpc` on {minute(utc_now())}; {machine}."]
    return as_page(lead, [(findings.title, about, findings.checks, findings.details)])


if __name__ == "__main__":
    sys.exit(main())
