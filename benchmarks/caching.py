"""What the result cache gives and costs, over HTTP and within the process: `python -m benchmarks.caching`.

The servers share one core, the load has another. Exits with 1 if an answer is wrong or a goal is missed. `--write` writes
CACHING.md. Which policy keeps what: tests/policy/caching.
"""

import asyncio
import gc
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any
from urllib.request import urlopen

import numpy as np
from msgspec import Struct
from xxhash import xxh3_128_digest

from benchmarks.harness.checks import Findings, as_page
from benchmarks.harness.live import Live
from benchmarks.harness.options import Names, add_rounds, add_write, checked, minute, options_of, utc_now
from benchmarks.harness.processes import Children, Cores, stay_off_the_servers_core
from benchmarks.harness.running import find, wrk_is_missing
from benchmarks.harness.sample import Sample, sample_for
from benchmarks.harness.servers import Launcher, Server
from benchmarks.harness.turns import in_turn, spread
from benchmarks.harness.wrk import Load, Mode, rate_and_cost, wrk_is_installed
from benchmarks.models import build_mlp
from dlproxy.config import CacheConfig, ModelConfig
from dlproxy.message import DType, Failure, Request, Response, Signature, Tensor, TensorSpec, Ticket, Timing
from dlproxy.serve.caching.caches import Caches
from dlproxy.serve.caching.layer import CacheLayer
from dlproxy.telemetry.stats import AnsweredBatch, ModelStats

PAGE = Path(__file__).with_name("CACHING.md")
BARE = Path(__file__).with_name("bare_server.py")
CONNECTIONS = 64
HITS_SHARE, IDLE_SHARE = 0.85, 0.99  # of the bare server's rate where all are hits; of that of "off" where auto watches
LOOKUP_US, TURNS = 3.0, 10_000  # beside the hash; requests until auto is on, and until it is off
MODEL_S, KEYS, ZIPF, CLIENTS = 0.020, 1000, 1.0, 8  # few: those that are answered after the end count, too
TOLERANCE = 0.1  # of the throughput that follows from the hit ratio
RUN_S = 0.001  # what the model within the process says that it took
CHUNK, CHUNKS = 250, 200  # requests that are timed together; the least of so many: others use this machine, too


class Side(Struct):
    """A server that wrk asks, and what each round has shown: requests per second, CPU seconds a request."""

    name: str
    rates: list[float] = []
    costs: list[float] = []


class Stage(Struct):
    """Where everything runs, and for how long."""

    children: Children
    cores: Cores
    folder: Path
    seconds: int
    repeats: int


def _round(stage: Stage, side: Side, server: Server, sample: Sample, mode: Mode) -> None:
    load = Load(CONNECTIONS, stage.seconds, sample, mode)
    sample.check_answer(server.port)
    rate, cost = rate_and_cost(server.child, server.url(sample.path), load, stage.cores, stage.folder)
    side.rates.append(rate)
    side.costs += cost
    print(f"  {side.name}: {rate:,.0f}/s{''.join(f', {each * 1e6:.1f} us of CPU a request' for each in cost)}", flush=True)


@contextmanager
def _served(stage: Stage, model: Path, switches: Sequence[str]) -> Iterator[list[Server]]:
    """A dlproxy for each of these settings of `cache`."""
    live = Live(stage.children, stage.cores, stage.folder)
    servers = []
    with ExitStack() as stack:
        for switch in switches:
            served = stack.enter_context(live.serve(f'[models.{model.stem}]\npath = "{model}"\ncache = "{switch}"'))
            servers.append(Server(served.child, int(served.url.rpartition(":")[2]), 0.0))
        yield servers


def _side_by_side(stage: Stage, sides: Sequence[tuple[Side, Server | None]], model: Path, mode: Mode) -> None:
    """In turn, after a warm-up. None: the bare server, in a fresh process each time."""
    sample = sample_for(model, with_id=mode == "unique")
    launcher = Launcher(stage.children, stage.cores, stage.folder, BARE)
    for number in range(-1, stage.repeats):
        for side, server in in_turn(sides, max(number, 0)):
            if server is not None:
                _round(stage, side, server, sample, mode)
            else:
                with launcher.bare(model) as bare:
                    _round(stage, side, bare, sample, mode)
            if number < 0:
                side.rates, side.costs = [], []


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [mine / its for mine, its in zip(ours, theirs, strict=True)]


def _add_rate(findings: Findings, what: str, goal: float, ours: Side, theirs: Side) -> None:
    ratios = _ratios(ours.rates, theirs.rates)
    findings.at_least(what, goal, statistics.median(ratios), digits=3, note=spread(ratios, 3))


def _add_sides(findings: Findings, sides: Sequence[Side]) -> None:
    for side in sides:
        words = f"- {side.name}: {statistics.median(side.rates):,.0f} requests/s"
        if side.costs:
            words += f", {statistics.median(side.costs) * 1e6:.1f} us of CPU a request"
        findings.details.append(words)


def hits(stage: Stage) -> Findings:
    """Every request the same."""
    findings = Findings("Every request a hit")
    model = build_mlp(stage.folder / "mlp.onnx")
    with _served(stage, model, ("on", "off")) as (with_cache, without):
        on, off, bare = Side("cache on"), Side("cache off"), Side("bare")
        _side_by_side(stage, [(on, with_cache), (bare, None), (off, without)], model, "same")
        _require_hits(with_cache, model.stem)
    _add_rate(findings, "rate by the bare server's, which runs the model", HITS_SHARE, on, bare)
    _add_rate(findings, "rate by that with the cache off", 1.0, on, off)
    _add_sides(findings, (on, off, bare))
    return findings


def auto_off(stage: Stage) -> Findings:
    """No request comes twice: auto watches one of 32 or 64, and never turns on."""
    findings = Findings("Auto, where nothing repeats")
    model = build_mlp(stage.folder / "mlp.onnx")
    with _served(stage, model, ("auto", "off")) as (watching, without):
        auto, off = Side("cache = auto"), Side("cache = off")
        _side_by_side(stage, [(auto, watching), (off, without)], model, "unique")
    _add_rate(findings, "rate by that with the cache off", IDLE_SHARE, auto, off)
    _add_sides(findings, (auto, off))
    if auto.costs and off.costs:
        costs = _ratios(auto.costs, off.costs)
        findings.details.append(
            f"- CPU a request by that with the cache off: {statistics.median(costs):.3f} ({spread(costs, 3)})"
        )
    return findings


def _counts(server_url: str, model: str) -> tuple[int, int]:
    """Requests that were answered, rows that were run."""
    with urlopen(f"{server_url}/v2/models/{model}/stats") as reply:
        entry: dict[str, Any] = json.load(reply)["model_stats"][0]
    return int(entry["inference_stats"]["success"]["count"]), int(entry["inference_count"])


def _require_hits(server: Server, model: str) -> None:
    answered, run_rows = _counts(server.url("").rstrip("/"), model)
    if run_rows > answered / 100:
        raise RuntimeError(f"{run_rows} of {answered} requests were run")


def popular(stage: Stage) -> Findings:
    """A model that takes 20 ms and answers one request at a time, asked by Zipf's law."""
    findings = Findings(f"A model of {MODEL_S * 1e3:.0f} ms, keys by Zipf's law")
    live = Live(stage.children, stage.cores, stage.folder)
    tables = [
        f'[models.{name}]\npath = "sleep:base={MODEL_S * 1e3:.0f}ms"\nmax_batch = 1\ninstances = 1\ncache = "{name}"'
        for name in ("off", "on")
    ]
    seconds = 5 * stage.seconds
    load = ["--concurrency", str(CLIENTS), "--duration", str(seconds), "--keys", str(KEYS), "--zipf", str(ZIPF)]
    shares, gains, hit_ratios = [], [], []
    with live.serve("\n".join(tables)) as served:
        for number in range(stage.repeats):
            rates: dict[str, float] = {}
            for name in in_turn(("off", "on"), number):
                answered, run_rows = _counts(served.url, name)
                result = live.load(served.url, name, [*load, "--seed", str(number)], seconds)
                answered_then, run_then = _counts(served.url, name)
                rates[name] = result.ok / result.duration_s
                if name == "on":
                    hit_ratios.append(1.0 - (run_then - run_rows) / (answered_then - answered))
            gains.append(rates["on"] / rates["off"])
            shares.append(gains[-1] * (1.0 - hit_ratios[-1]))
            print(f"  {rates['off']:.0f}/s, with the cache {rates['on']:,.0f}/s, hits {hit_ratios[-1]:.3f}", flush=True)
    measured = statistics.median(shares)
    findings.at_least("rate x (1 - hit ratio) by the rate without", 1.0 - TOLERANCE, measured, digits=3, note=spread(shares, 3))
    findings.at_most("the same", 1.0 + TOLERANCE, measured, digits=3)
    ratios = f"hit ratio, with those that joined others: {spread(hit_ratios, 3)}"
    findings.details.append(f"- {ratios}; rate with the cache by that without: {spread(gains, 1)}")
    return findings


# Within this process

SIGNATURE = Signature(
    (TensorSpec("x", DType.FP32, (-1, 784)),), (TensorSpec("y", DType.FP32, (-1, 10)),), batched=True, platform=""
)


class _Model:
    """A Service that answers at once, and says that it took RUN_S."""

    def __init__(self, stats: ModelStats) -> None:
        self._stats = stats

    def submit(self, request: Request, reply: "_Nobody") -> None:
        self._stats.batch_answered(AnsweredBatch(1, [0.0], RUN_S, 0.0, RUN_S, 0.0))
        outputs = [Tensor("y", DType.FP32, (1, 10), bytes(40))]
        reply.completed(Response(request.id, "m", "1", outputs, Timing(0.0, 0.0, RUN_S)))

    def cancel(self, request: Request) -> None:
        """It is answered already."""


class _Nobody:
    """A ReplyTo."""

    def completed(self, response: Response) -> None:
        """Nobody reads it."""

    def failed(self, failure: Failure) -> None:
        raise RuntimeError(failure.message)


def _layer(cache: str) -> tuple[CacheLayer, _Model]:
    stats = ModelStats()
    model = _Model(stats)
    layer = Caches(CacheConfig(), monotonic).before(model, "m", ModelConfig(path="m", cache=cache), SIGNATURE, stats)  # type: ignore[arg-type]
    assert layer is not None
    return layer, model


def _requests(keys: int, count: int) -> list[Request]:
    """So many, of which each has one of so many inputs: as it comes, or every one its own."""
    rng = np.random.default_rng(0)
    bodies = [rng.random((1, 784), np.float32).tobytes() for _ in range(keys)]
    return [
        Request(Ticket(number, monotonic()), "m", [Tensor("x", DType.FP32, (1, 784), memoryview(bodies[which]))], (0,))
        for number, which in enumerate(range(count) if keys == count else rng.integers(0, keys, count))
    ]


def _us_each(do: Callable[[Request], object], requests: Sequence[Request]) -> float:
    """The least of all chunks."""
    least = float("inf")
    for start in range(0, len(requests), CHUNK):
        chunk = requests[start : start + CHUNK]
        began_at = perf_counter()
        for request in chunk:
            do(request)
        least = min(least, (perf_counter() - began_at) / len(chunk))
    return least * 1e6


def look_ups(_stage: Stage) -> Findings:
    """Of a 3 KB input, with nothing around the cache."""
    findings = Findings("A look-up")
    asyncio.run(_look_ups(findings))
    return findings


async def _look_ups(findings: Findings) -> None:
    nobody = _Nobody()
    known, new = _requests(200, CHUNK * CHUNKS), _requests(10_000, 10_000)
    gc.collect()
    gc.freeze()
    hash_us = _us_each(lambda request: xxh3_128_digest(request.inputs[0].data, 1), known)
    for cache in ("on", "auto"):
        layer, model = _layer(cache)
        if cache == "auto":
            _turned_on(layer, known, nobody)
        hit_us = _us_each(lambda request, layer=layer: layer.submit(request, nobody), known)  # type: ignore[misc]
        findings.at_most(f"us of a hit beside the hash, cache = {cache}", LOOKUP_US, hit_us - hash_us)
    layer, model = _layer("on")
    miss_us = _us_each(lambda request: layer.submit(request, nobody), new)
    model_us = _us_each(lambda request: model.submit(request, nobody), new)
    findings.details.append(
        f"- the hash of 3,136 bytes: {hash_us:.2f} us; a miss, which keeps its answer: {miss_us - model_us:.1f} us"
    )
    layer, model = _layer("auto")
    off_us = _us_each(lambda request: layer.submit(request, nobody), new)
    findings.details.append(
        f"- cache = auto while it is off and does not watch: {max(off_us - model_us, 0.0):.2f} us a request"
    )
    layer, _ = _layer("auto")
    until_on = _turned_on(layer, known, nobody)
    findings.at_most("requests for 200 keys until auto is on", TURNS, until_on, digits=0)
    until_off = 0
    fresh = iter(_requests(2 * TURNS, 2 * TURNS))
    while layer.watch.state == "auto: on" and until_off < 2 * TURNS:
        layer.submit(next(fresh), nobody)
        until_off += 1
    findings.at_most("requests of which none comes twice until it is off", TURNS, until_off, digits=0)


def _turned_on(layer: CacheLayer, requests: Sequence[Request], nobody: _Nobody) -> int:
    """After how many requests."""
    for number, request in enumerate(requests):
        if layer.watch.state == "auto: on":
            return number
        layer.submit(request, nobody)
    return len(requests)


PARTS: dict[str, Callable[[Stage], Findings]] = {"look-ups": look_ups, "hits": hits, "popular": popular, "auto": auto_off}


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("caching", __doc__)
    add_rounds(parser, seconds=3, repeats=7)
    parser.add_argument("--only", action=Names, known=PARTS, help=f"parts: {', '.join(PARTS)}")
    add_write(parser, PAGE)
    options = checked(parser, arguments, PARTS)
    if not wrk_is_installed():
        return wrk_is_missing()

    def measure(children: Children, cores: Cores, folder: Path) -> Iterator[Findings]:
        stay_off_the_servers_core(cores)
        for name in options.only:
            print(name, flush=True)
            yield PARTS[name](Stage(children, cores, folder, options.seconds, options.repeats))

    return find("caching", measure, lambda found, machine: PAGE.write_text(_page(found, machine)) if options.write else None)


ABOUT = {
    "hits": """784-256-128-10 in FP32, one row a request, binary tensors over HTTP/1.1, 64 connections, by wrk: one request over
and over. The bare server knows no cache, and batches.""",
    "auto": "As above, but each request has an id and a tensor of its own.",
    "popular": f"""It sleeps for so long and takes one request at a time. {CLIENTS} clients ask for {KEYS} keys with exponent
{ZIPF:g} (`dlproxy bench --keys --zipf`); nothing is remembered in the first round, and what was in each that follows. A request
that joins another which is run counts as a hit.""",
    "look-ups": f"""Within one process, 3,136 bytes in and 40 out: the least of {CHUNKS} times {CHUNK} requests. The model says
that it takes {RUN_S * 1e3:.0f} ms.""",
}


def _page(found: Sequence[Findings], machine: str) -> str:
    lead = [
        "# The result cache",
        "",
        f"`python -m benchmarks.caching` on {minute(utc_now())}; {machine}. Medians of rounds, in",
    ]
    lead += ["which all sides are measured in turn."]
    sections = [(each.title, ABOUT[name], each.checks, each.details) for name, each in zip(PARTS, found, strict=True)]
    return as_page(lead, sections)


if __name__ == "__main__":
    sys.exit(main())
