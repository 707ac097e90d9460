"""The tuner beside an exhaustive search: `python -m benchmarks.tune` (or `make bench-tune ARGS=...`).

The search: in the simulator of each model's measured batch times, at the rate of its capacity, every configuration is valued
once, then the search runs with several seeds on the same values. Live, at rates that two cores can send and serve: the choice
beside the exhaustive search's best three, and a whole tuning: what it then predicts of its choice, beside the median of fresh
runs of it (and their range). `--write` writes RESULTS.md.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from benchmarks.harness.options import Names, minute, options_of, positive, utc_now
from benchmarks.harness.running import progress, run, workplace
from benchmarks.models import build_cnn, build_mlp, build_small_resnet, build_transformer
from dlproxy.config import ModelConfig
from dlproxy.cores import usable_cores
from dlproxy.lab.load.run import Interrupt
from dlproxy.lab.report import wording
from dlproxy.lab.tune.search.calibrate import calibrate
from dlproxy.lab.tune.search.evolve import evolve
from dlproxy.lab.tune.search.live import LiveServer
from dlproxy.lab.tune.search.predict import Predictor
from dlproxy.lab.tune.search.problem import Load, Outcome, Point, Problem, Space, better_first, layouts, make_space
from dlproxy.lab.tune.search.state import State
from dlproxy.lab.tune.search.tune import MOST_SHARE, Tuning

PAGE = Path(__file__).parent / "RESULTS.md"
OBJECTIVE_SINGLES, LEAST_OBJECTIVE_S = 8.0, 0.02
PYTHON = f"{Path(__file__).with_name('python_model.py')}:Scorer"
MODELS: dict[str, Callable[[Path], object]] = {
    "mlp": build_mlp,
    "cnn": build_cnn,
    "resnet": build_small_resnet,
    "transformer": build_transformer,
    "python": lambda path: None,
}
SEEDS = 20
LIVE_SHARE, MOST_LIVE_RATE = 0.3, 1000.0  # of capacity; one load process and the server share the cores
BEST = 3
FRESH = 5  # runs of the tuned point
GOAL, NEAR = 0.95, 0.15
HEAD = (
    "| model | objective | rate | configurations | simulated by the search | of the best goodput, worst and median of seeds | "
    "live: of the best of three | tuned at | p99 predicted | p99 measured | off by |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


class Line(Struct):
    """One model. `ratios`, `counts`: of each seed; `live_ratio`: None where nothing ran live."""

    model: str
    objective_s: float
    rate: float
    total: int
    ratios: list[float]
    counts: list[int]
    live_ratio: float | None = None
    tuned_rate: float = 0.0
    predicted_s: float = 0.0
    measured_s: list[float] = []

    @property
    def error(self) -> float | None:
        return self.predicted_s / statistics.median(self.measured_s) - 1.0 if self.measured_s else None

    def cells(self) -> list[str]:
        cells = [self.model, _ms(self.objective_s), wording.rate(self.rate), f"{self.total:,}"]
        cells += [f"{max(self.counts)} ({max(self.counts) / self.total:.1%})"]
        cells += [f"{min(self.ratios):.1%}, {statistics.median(self.ratios):.1%}"]
        cells += ["-" if self.live_ratio is None else f"{self.live_ratio:.1%}"]
        if self.error is None:
            return [*cells, "-", "-", "-", "-"]
        low, middle, high = min(self.measured_s), statistics.median(self.measured_s), max(self.measured_s)
        measured = f"{_ms(middle)} ({_ms(low)} to {_ms(high)})"
        return [*cells, wording.rate(self.tuned_rate), _ms(self.predicted_s), measured, f"{self.error:+.0%}"]


def _ms(seconds: float) -> str:
    return wording.duration(seconds * 1e3)


def measure(options: argparse.Namespace, lines: list[Line]) -> None:
    with workplace("tune") as (_, folder), Interrupt() as interrupt:
        for name in options.models:
            with progress(name):
                lines.append(_of_model(name, folder, options, interrupt))
            print(as_table(lines[-1:]).splitlines()[-1], file=sys.stderr)
            if interrupt.pressed:
                raise KeyboardInterrupt


def _of_model(name: str, folder: Path, options: argparse.Namespace, interrupt: Interrupt) -> Line:
    path = folder / f"{name}.onnx"
    config = ModelConfig(path=str(path) if MODELS[name](path) else PYTHON, slo="p99=1s")
    predictor, space = _calibrated(name, config, options)
    problem = predictor.problem
    rate = max(predictor.most(layout) for layout in predictor.times)
    table = {point: predictor.at(point, rate) for point in space.points()}
    line = Line(name, problem.objective_s, rate, len(table), [], [])
    best = max(outcome.goodput for outcome in table.values())
    for seed in range(SEEDS):
        most = int(len(table) * MOST_SHARE)
        found = evolve(space, table.__getitem__, objective_s=problem.objective_s, most=most, going=lambda: True, seed=seed)
        line.ratios.append(found[_choice(found, problem)].goodput / best)
        line.counts.append(len(found))
        if seed == 0:
            chosen = _choice(found, problem)
    if options.live:
        line.live_ratio = _live(problem, table, chosen, min(rate, MOST_LIVE_RATE), options.seconds, interrupt)
        load = Load(rate=float(f"{min(LIVE_SHARE * rate, MOST_LIVE_RATE):.2g}"))
        half = Problem(name=name, config=problem.config, objective_s=problem.objective_s, load=load, cores=problem.cores)
        tuning = Tuning(half, State(None, {}), budget_s=options.budget, show=_Silent(), interrupt=interrupt)
        tuned = tuning.run()
        line.tuned_rate, line.predicted_s = tuned.rate, tuned.predictor.at(tuned.chosen, tuned.rate).p99_s
        with LiveServer(half, tuned.chosen, record=False) as server:
            for seed in range(FRESH):
                line.measured_s.append(server.load(tuned.rate, 2 * options.seconds, seed, interrupt).p99_s)
    return line


def _calibrated(name: str, config: ModelConfig, options: argparse.Namespace) -> tuple[Predictor, Space]:
    """With an objective that suits the model: some times what one row takes alone."""
    problem = Problem(name=name, config=config, objective_s=1.0, load=Load(), cores=usable_cores())
    times = {layout: calibrate(problem, layout, options.seconds) for layout in layouts(config, problem.cores)}
    single_s = min(Predictor(problem, times).single_s(layout) for layout in times)
    objective_ms = float(f"{1e3 * max(OBJECTIVE_SINGLES * single_s, LEAST_OBJECTIVE_S):.2g}")
    problem = Problem(
        name=name,
        config=ModelConfig(path=config.path, slo=f"p99={objective_ms:g}ms"),
        objective_s=objective_ms / 1e3,
        load=Load(),
        cores=problem.cores,
    )
    return Predictor(problem, times, requests=options.requests), make_space(
        problem, list(times), batched=any(one.batched for one in times.values())
    )


def _choice(found: dict[Point, Outcome], problem: Problem) -> Point:
    best = max(outcome.goodput for outcome in found.values())
    return min(found, key=lambda point: (better_first(point, found[point], problem.objective_s, best), point))


def _live(
    problem: Problem, table: dict[Point, Outcome], chosen: Point, rate: float, seconds: float, interrupt: Interrupt
) -> float:
    """Goodput of the choice over that of the best of the exhaustive search's best three, all of them on servers."""
    top = sorted(table, key=lambda point: (-table[point].goodput, table[point].p99_s, point))[:BEST]
    goodput: dict[Point, float] = {}
    for point in dict.fromkeys((chosen, *top)):
        with LiveServer(problem, point, record=False) as server:
            goodput[point] = server.load(rate, 2 * seconds, 1, interrupt).goodput
    return goodput[chosen] / max(max(goodput[point] for point in top), 1e-9)


class _Silent:
    def stage(self, text: str, total: int) -> None:
        """Nothing is shown."""

    def step(self, text: str = "") -> None:
        """Nothing is shown."""


def as_table(lines: list[Line]) -> str:
    return "\n".join([HEAD, *("| " + " | ".join(line.cells()) + " |" for line in lines)])


def verdict(lines: list[Line]) -> str:
    reached = sum(min(line.ratios) >= GOAL for line in lines)
    errors = [abs(line.error) for line in lines if line.error is not None]
    said = (
        f"{reached} of {len(lines)} models: the worst of {SEEDS} seeds reached {GOAL:.0%} of the exhaustive search's goodput."
    )
    if errors:
        near = sum(error <= NEAR for error in errors)
        said += f" p99 was predicted within {NEAR:.0%} for {near} of {len(errors)}."
    return said


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = options_of("tune", __doc__)
    parser.add_argument("--models", action=Names, known=MODELS, help="some of the models (default: all)")
    parser.add_argument("--seconds", type=positive(float), default=2.0, help="of batch times for each layout (default 2)")
    parser.add_argument("--requests", type=positive(int), default=1000, help="of each simulation (default 1000)")
    parser.add_argument("--budget", type=positive(float), default=120.0, help="seconds of each whole tuning (default 120)")
    parser.add_argument("--no-live", dest="live", action="store_false", help="the simulator alone")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_options(arguments)
    began = minute(utc_now())
    lines: list[Line] = []
    code = run(lambda: measure(options, lines))
    if lines:
        print(as_table(lines))
        print(verdict(lines))
    if options.write and not code:
        command = f"python -m benchmarks.tune --seconds {options.seconds:g} --requests {options.requests}"
        command += f" --budget {options.budget:g}" if options.live else " --no-live"
        about = ["# The tuner beside an exhaustive search", "", f"`{command}` on {began}, {usable_cores()} cores.", ""]
        PAGE.write_text(
            "\n".join([*about, (__doc__ or "").partition("\n\n")[2].replace(" `--write` writes RESULTS.md.", "")]), "utf-8"
        )
        with PAGE.open("a", encoding="utf-8") as file:
            file.write("\n".join(["", as_table(lines), "", verdict(lines), ""]))
    return code


if __name__ == "__main__":
    sys.exit(main())
