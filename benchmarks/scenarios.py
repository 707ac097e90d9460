"""The comparisons A to G: the two subjects of each take turns, so that a noisy machine disturbs both alike."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.harness.processes import BenchmarkError
from benchmarks.harness.report import Goal, Run
from benchmarks.harness.sample import sample_for
from benchmarks.harness.servers import constant, find_nginx
from benchmarks.harness.wrk import Load

DIGITS = Path(__file__).parent.parent / "src" / "dlproxy" / "lab" / "digits" / "digits.onnx"
BUSY_CONNECTIONS = 64
MANY_CONNECTIONS = 256
SLOW_CONNECTIONS = 8
SHORTER = 3  # one connection, many, and the slow model are timed in so many times more, shorter pairs: how fast an idle core
# wakes, how much of the last-level cache is left and what else computes on the same silicon changes by the second
LAUNCHES = 5
SERVED_SECONDS = 1


def _pairs_with_bare(bench: Bench, scenario: str, what: str, load: Load, pairs: int) -> Iterator[tuple[Run, Run]]:
    with bench.launcher.dlproxy({"mlp": bench.mlp}) as proxy:
        bench.warm_up(proxy, load)

        def one_each(number: int) -> tuple[Run, Run]:
            ours = bench.measure(scenario, "dlproxy", what, proxy, load)
            return ours, bench.beside_idle(proxy, lambda: bench.measure_bare(scenario, what, bench.mlp, load))

        yield from bench.rounds(pairs, one_each)


def busy(bench: Bench) -> None:
    load = bench.load(BUSY_CONNECTIONS, bench.mlp)
    what = _mlp(load)
    for ours, bare in _pairs_with_bare(bench, "A", what, load, bench.pairs(5)):
        rate = ours.figures.requests_per_s / bare.figures.requests_per_s
        bench.report.add_ratio("A", f"{what}: dlproxy / bare", rate, Goal(0.6, at_least=True, aim=0.72))
        tail = ours.figures.p99_ms / ours.figures.p50_ms
        bench.report.add_ratio("A", f"{what}: dlproxy p99 / p50", tail, Goal(5, at_least=False))


def many_connections(bench: Bench) -> None:
    few, many = (_shorter(bench.load(connections, bench.mlp)) for connections in (BUSY_CONNECTIONS, MANY_CONNECTIONS))
    with bench.launcher.dlproxy({"mlp": bench.mlp}) as proxy:
        bench.warm_up(proxy, many)

        def ours(load: Load) -> Run:
            return bench.measure("B", "dlproxy", _mlp(load), proxy, load)

        def bare(load: Load) -> Run:
            return bench.beside_idle(proxy, lambda: bench.measure_bare("B", _mlp(load), bench.mlp, load))

        def both_loads(measure: Callable[[Load], Run], number: int) -> tuple[Run, Run]:
            if number % 2:
                with_few, with_many = measure(few), measure(many)
            else:
                with_many, with_few = measure(many), measure(few)
            return with_few, with_many

        pairs = SHORTER * bench.pairs(3)
        what = f"at {many.connections} / at {few.connections} connections"
        for our_pair, bare_pair in zip(
            bench.rounds(pairs, partial(both_loads, ours)), bench.rounds(pairs, partial(both_loads, bare)), strict=True
        ):
            bench.report.add_ratio("B", f"mlp: dlproxy {what}", _kept(*our_pair), Goal(0.9, at_least=True))
            bench.report.add_ratio("B", f"mlp: bare {what}", _kept(*bare_pair))


def _kept(with_few: Run, with_many: Run) -> float:
    return with_many.figures.requests_per_s / with_few.figures.requests_per_s


def _mlp(load: Load) -> str:
    return f"mlp, {load.connections} connections"


def _shorter(load: Load) -> Load:
    return replace(load, seconds=max(1, load.seconds // SHORTER))


def one_connection(bench: Bench) -> None:
    what = "mlp, one connection"
    load = _shorter(bench.load(1, bench.mlp))
    for ours, bare in _pairs_with_bare(bench, "C", what, load, SHORTER * bench.pairs(5)):
        slower = ours.figures.p50_ms / bare.figures.p50_ms
        bench.report.add_ratio("C", f"{what}: p50 dlproxy / bare", slower, Goal(1.15, at_least=False))


def slow_model(bench: Bench) -> None:
    what = f"slow, {SLOW_CONNECTIONS} connections"
    load = _shorter(bench.load(SLOW_CONNECTIONS, bench.slow, "steady"))
    with bench.launcher.dlproxy({"slow": bench.slow}) as proxy:
        bench.warm_up(proxy, load)

        def one_each(number: int) -> tuple[Run, Run]:
            ours = bench.measure("D", "dlproxy", what, proxy, load)
            return ours, bench.beside_idle(proxy, lambda: bench.measure_ort_loop("D", "slow", bench.slow, load.seconds))

        for ours, loop in bench.rounds(SHORTER * bench.pairs(3), one_each):
            used = ours.figures.requests_per_s / loop.figures.requests_per_s
            bench.report.add_ratio("D", f"{what}: dlproxy / ORT loop", used, Goal(0.97, at_least=True))


def unique_requests(bench: Bench) -> None:
    what = f"mlp, unique ids and tensors, {BUSY_CONNECTIONS} connections"
    load = bench.load(BUSY_CONNECTIONS, bench.mlp, "unique")
    for ours, bare in _pairs_with_bare(bench, "E", what, load, bench.pairs(3)):
        rate = ours.figures.requests_per_s / bare.figures.requests_per_s
        bench.report.add_ratio("E", "mlp, unique ids and tensors: dlproxy / bare", rate)


def other_ceilings(bench: Bench) -> None:
    bench.measure_ort_loop("F", "mlp, one item at a time", bench.mlp, bench.seconds)
    if find_nginx() is None:
        bench.report.notes.append("F  nginx: not installed")
        return
    load = bench.load(BUSY_CONNECTIONS, bench.mlp)
    get = Load(BUSY_CONNECTIONS, bench.seconds)
    with bench.launcher.dlproxy({"mlp": bench.mlp}) as proxy:
        bench.warm_up(proxy, load)
        with bench.launcher.nginx(constant(sample_for(bench.mlp).check_answer(proxy.port))) as nginx:

            def one_each(number: int) -> tuple[Run, Run]:
                ours = bench.measure("F", "dlproxy", f"mlp, {load.connections} connections", proxy, load)
                what = f"equal reply, {get.connections} connections"
                return ours, bench.beside_idle(proxy, lambda: bench.measure("F", "nginx", what, nginx, get))

            for ours, static in bench.rounds(bench.pairs(3), one_each):
                share = ours.figures.requests_per_s / static.figures.requests_per_s
                bench.report.add_ratio("F", "mlp: dlproxy / nginx static", share)


def footprint(bench: Bench) -> None:
    if not DIGITS.exists():
        raise BenchmarkError(f"the digits model is missing: {DIGITS}")
    load = Load(BUSY_CONNECTIONS, SERVED_SECONDS, sample_for(DIGITS))
    for _ in range(bench.pairs(LAUNCHES)):
        with bench.launcher.dlproxy({"digits": DIGITS}) as proxy:
            what = "digits: dlproxy, launch to ready"
            bench.report.add_ratio("G", what, proxy.seconds_to_ready, Goal(1.5, at_least=False), "s")
            bench.warm_up(proxy, load)  # memory counts once it has served, not when it has only started
            resident = proxy.child.resident_megabytes()
            if resident is None:
                raise BenchmarkError("resident memory needs /proc")
            what = "digits: dlproxy, resident memory after serving"
            bench.report.add_ratio("G", what, resident, Goal(130, at_least=False), "MB")


SCENARIOS: Mapping[str, Callable[[Bench], None]] = {
    "A": busy,
    "B": many_connections,
    "C": one_connection,
    "D": slow_model,
    "E": unique_requests,
    "F": other_ceilings,
    "G": footprint,
}
