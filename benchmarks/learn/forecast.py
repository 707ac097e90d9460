"""Forecasts of arrivals: what they lose on held-out blocks beside their baselines, and whether autoscaling by them pays.

Called by `python -m benchmarks.learn --only forecast`; `--trace FILE` adds recorded arrivals.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import inf
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from benchmarks.autoscaling.days import DAY_S, MOST, OBJECTIVE, SERVICE, START_S, Outcome, ahead, simulate, two_days
from benchmarks.harness.options import minute, utc_now
from benchmarks.harness.running import progress
from dlproxy.fleet.forecasts import forecast_of
from dlproxy.lab.learn.experiment import find
from dlproxy.lab.learn.forecast.backtest import autocorrelation, bootstrap
from dlproxy.lab.learn.forecast.days import counts, habits
from dlproxy.lab.learn.forecast.series import blocked
from dlproxy.lab.learn.forecast.training import LINEAR, LSTM, Scores, Settings, load, trace_of
from dlproxy.lab.learn.train import interval, train
from dlproxy.lab.load.arrivals import read_trace
from dlproxy.lab.report.chart import Chart, linear, logarithmic, standalone
from dlproxy.policy.forecast import DAY_STEP_S, Forecast, HoltWinters
from dlproxy.policy.scaling import Rule

HERE = Path(__file__).parent
Floats = NDArray[np.float64]
SHARES = (0.6,)  # of the capacity: more room at all times, which is what a forecast must be better than
FROM_S, FOR_S, WARM_S = 8 * 3600, 5400, 600  # of the day after the one that the forecasts have seen
BLOCK = 120  # examples that the bootstrap keeps together; of a trace, one is a second
RATE = 8.0  # of the made-up sites that instances are simulated for
NAMES = {"trace": "The trace", "days": "Made-up days, sites that it was trained on", "other days": "Made-up days, other sites"}


def measure(options: argparse.Namespace) -> str:
    """FORECAST.md; with `--write` its pictures too."""
    parts, folders = [], {}
    for name in ("forecast-days", *(["forecast-trace"] if options.trace else [])):
        experiment = replace(find(name), seeds=options.seeds)
        if options.trace and name == "forecast-trace":
            experiment = replace(experiment, settings=experiment.settings | {"arrivals": {"trace": str(options.trace)}})
        folders[name] = options.folder / name
        with progress(name):
            train(experiment, folders[name], threads=1, tell=lambda text: None)
        seeds = [load(folders[name] / f"seed-{seed}" / "scores.npz") for seed in range(1, options.seeds + 1)]
        given = Settings(source="days")
        parts += [of_set(name, seeds, given) for name in dict.fromkeys(key.split("/")[0] for key in seeds[0])]
        if options.write:
            (HERE / f"{name}.svg").write_text(picture(seeds, given), "utf-8")
        parts.append(f"![pinball loss by horizon]({name}.svg)")
    if options.trace:
        parts.append(nothing_to_learn(options.trace, seeds, given))
    outcomes = autoscaled(options, folders)
    parts.append(autoscaling(outcomes))
    if options.write:
        (HERE / "forecast-pareto.svg").write_text(pareto(next(iter(outcomes.values()))), "utf-8")
    command = f"python -m benchmarks.learn --only forecast --seeds {options.seeds} --write"
    head = (
        f"# Forecasts of arrivals\n\n`{command}{' --trace FILE' if options.trace else ''}` on {minute(utc_now())}.\n\n{ABOUT}"
    )
    return "\n\n".join([head, *parts]) + "\n"


ABOUT = """Pinball losses of the quantiles 0.5, 0.9 and 0.99 of the arrivals in the 5 s that begin 2, 10 and 60 s ahead, as \
shares of the site's mean rate; ± is half of a 95 % interval over the seeds, which differ in the made-up days and in the \
network's first weights. Every method was fitted on the training blocks and tuned on the validation blocks that lie between \
these and the ones that are told of here, with gaps. *Always the same* gives the quantiles of the training blocks whatever has \
just been. *Holt-Winters* is `forecast = "trend"` (or `"daily"`) as it is served. *Linear quantiles* is the LSTM's network \
without the LSTM. Made-up days are made up: a daily pattern, weekends, drift, noise, and bursts of which a part comes at the \
same time every day and a part swells; *other sites* are from ranges that no training site reaches."""


# Losses


def methods(scores: Scores, name: str, channel: str) -> list[str]:
    return [key.split("/")[2] for key in scores if key.startswith(f"{name}/{channel}/")]


def of_set(name: str, seeds: list[Scores], given: Settings) -> str:
    """The tables of one test set."""
    form = given.form
    columns = [f"{horizon:g} s, {level:g}" for horizon in form.horizons_s for level in form.quantiles]
    head = f"| | {' | '.join(columns)} | all |\n|---|{'---:|' * (len(columns) + 1)}"
    rows, covered, bursts = [head], [head.replace(" all |", "").removesuffix("---:|")], []
    for method in methods(seeds[0], name, "rate"):
        tested = [scores[f"{name}/rate/{method}"] for scores in seeds]
        cells = np.array([one.losses.mean(0).ravel() for one in tested])
        rows.append(f"| {method} | {' | '.join(map(shown, cells.T))} | {shown(cells.mean(1))} |")
        shares = np.array([one.coverage.ravel() for one in tested]).mean(0)
        covered.append(f"| {method} | {' | '.join(f'{share:.3f}' for share in shares)} |")
    for method in methods(seeds[0], name, "burst"):
        cells = np.array([scores[f"{name}/burst/{method}"].losses.mean((0, 2)) for scores in seeds])
        bursts.append(f"| {method} | {' | '.join(map(shown, cells.T))} |")
    of_bursts = "\n".join(
        [f"| burstiness | {' | '.join(f'{one:g} s' for one in form.horizons_s)} |\n|---|---:|---:|---:|", *bursts]
    )
    text = [
        f"## {NAMES[name]}",
        "Pinball loss:",
        "\n".join(rows),
        against_best(name, seeds),
        "Share covered:",
        "\n".join(covered),
    ]
    return "\n\n".join([*text, "Pinball loss of the variance over the mean of the seconds of a step:", of_bursts])


def shown(values: Floats) -> str:
    mean, half = interval(values.tolist())
    return f"{mean:.4f}" + (f" ± {half:.4f}" if half > 5e-5 else "")


def best_baseline(scores: list[Scores], name: str) -> str:
    """By the validation blocks. Networks are none."""
    found = [method for method in methods(scores[0], name, "rate") if method not in (LSTM, LINEAR)]
    return min(found, key=lambda method: sum(one[f"{name}/rate/{method}"].validation for one in scores))


def against_best(name: str, seeds: list[Scores]) -> str:
    """Differences of each seed on the same examples, so that what is hard for all does not count."""
    best = best_baseline(seeds, name)
    means = {method: [one[f"{name}/rate/{method}"].losses.mean() for one in seeds] for method in (LSTM, LINEAR, best)}
    text = []
    for method in (best, LINEAR):
        gains = [1.0 - ours / other for ours, other in zip(means[LSTM], means[method], strict=True)]
        mean, half = interval(gains)
        text.append(f"{mean:+.1%} ± {half:.1%} beside *{method}*")
    return f"The LSTM's gain in pinball loss is {', and '.join(text)} (the baseline that was best on the validation blocks)."


def nothing_to_learn(trace: Path, seeds: list[Scores], given: Settings) -> str:
    """What shows whether the trace tells anything of what comes."""
    losses = {
        method: np.mean([scores[f"trace/rate/{method}"].losses for scores in seeds], axis=0).mean(-1)
        for method in methods(seeds[0], "trace", "rate")
    }
    rows = []
    for place, horizon_s in enumerate(given.form.horizons_s):
        for ours, other in (
            (LSTM, "always the same"),
            (LSTM, "linear AR"),
            ("linear AR", "always the same"),
            ("linear AR", "last value"),
        ):
            mean, low, high = bootstrap(losses[ours][:, place] - losses[other][:, place], BLOCK)
            rows.append(f"| {horizon_s:g} s | {ours} | {other} | {mean:+.4f} | {low:+.4f} to {high:+.4f} |")
    site = trace_of(replace(given, source="trace", arrivals=replace(given.arrivals, trace=str(trace))))
    steps = site.mean(np.arange(0, len(site.counts) - 5, 5), 5)
    lags = ", ".join(f"{autocorrelation(steps, lag):.2f} at {5 * lag} s" for lag in (1, 2, 3, 6, 12, 24))
    head = "| ahead | method | beside | difference in pinball loss | 95 % interval |\n|---|---|---|---:|---:|"
    text = f"""### Is there anything to learn?

Differences of the mean over the seeds, with intervals by the circular block bootstrap over blocks of {BLOCK} s; below 0 is \
better. \
Autocorrelation of the arrivals in 5 s: {lags}; chance alone stays within ±{2.0 / np.sqrt(len(steps)):.2f}."""
    return "\n\n".join([text, "\n".join([head, *rows])])


def picture(seeds: list[Scores], given: Settings) -> str:
    """Pinball loss by horizon of each method on the first test set."""
    name = next(iter(seeds[0])).split("/")[0]
    lines = {
        method: np.mean([scores[f"{name}/rate/{method}"].losses.mean((0, 2)) for scores in seeds], axis=0)
        for method in methods(seeds[0], name, "rate")
    }
    values = np.concatenate(list(lines.values()))
    chart = Chart(
        logarithmic(2.0, 100.0, "seconds ahead", lambda value: f"{value:g}"),
        linear(0.9 * float(values.min()), float(values.max()), "pinball loss", lambda value: f"{value:.3f}"),
    )
    for number, (method, line) in enumerate(lines.items(), 1):
        style = f"s{min(number, 8)}"
        chart.line(list(zip(given.form.horizons_s, line.tolist(), strict=True)), "", style)
        chart.dot(60.0, float(line[-1]), method, style)
    return standalone(chart.svg("forecast", NAMES[name], "pinball loss of each method by how far ahead it looks"))


# Autoscaling


def loads(seed: int) -> Iterator[tuple[str, Floats]]:
    """Two days each, of which the first is seen and some hours of the second are simulated; no network was trained on them."""
    yield "The day of benchmarks/autoscaling, other seeds", two_days(100 + seed)
    random = np.random.default_rng((seed, 1000))
    site = replace(habits(random, other=True), rate=RATE, factor=3.0, weekend=1.0)
    found = counts(site, 2, random)
    seconds = np.repeat(np.arange(len(found)), found.astype(np.int64))
    yield "Made-up days, other sites", np.sort(seconds + random.random(len(seconds)))


def policies(networks: Mapping[str, Path]) -> dict[str, tuple[Callable[[], Forecast] | None, Rule]]:
    found: dict[str, tuple[Callable[[], Forecast] | None, Rule]] = {"none": (None, Rule())}
    found |= {f"none, share {share:g}": (None, Rule(share=share)) for share in SHARES}
    found["trend"] = HoltWinters, Rule()
    found["daily"] = partial(HoltWinters, DAY_S, DAY_STEP_S), Rule()
    for name, path in networks.items():
        made = forecast_of("m", str(path), most_s=inf)
        assert not isinstance(made, str)
        found[name] = made, Rule()
    return found


def autoscaled(options: argparse.Namespace, folders: Mapping[str, Path]) -> dict[str, dict[str, list[Outcome]]]:
    """By load and policy, an outcome for each seed."""
    found: dict[str, dict[str, list[Outcome]]] = {}
    since = DAY_S + FROM_S
    for seed in range(1, options.seeds + 1):
        networks = {"learnt": folders["forecast-days"] / f"seed-{seed}" / "model.onnx"}
        for load_name, instants in loads(seed):
            before = np.bincount(instants[instants < since - WARM_S].astype(np.int64), minlength=since - WARM_S)
            chosen = instants[(instants >= since - WARM_S) & (instants < since + FOR_S)] - (since - WARM_S)
            for name, (forecast, rule) in policies(networks).items():
                with progress(f"{load_name}, {seed}: {name}"):
                    policy = ahead(forecast, before.astype(np.float64), rule)
                    outcome = simulate(name, policy, chosen, WARM_S, WARM_S + FOR_S, seed)
                found.setdefault(load_name, {}).setdefault(name, []).append(outcome)
        if options.trace:
            networks["learnt from its beginning"] = folders["forecast-trace"] / f"seed-{seed}" / "early.onnx"
            for name, outcome in of_trace(options.trace, networks, seed):
                found.setdefault("The trace, from where the first network's training ended", {}).setdefault(name, []).append(
                    outcome
                )
    return found


def of_trace(trace: Path, networks: Mapping[str, Path], seed: int) -> Iterator[tuple[str, Outcome]]:
    """What no network has seen of it, neither to learn nor to choose by."""
    instants = np.concatenate(list(read_trace(trace).chunks(float("inf"))))
    source = Settings(source="trace").arrivals
    split = next(iter(blocked(int(instants[-1]) + 1, origins=source.origins, test=source.test, gap=source.gap_s)))
    for name, (forecast, rule) in policies(networks).items():
        if name != "daily":  # it lasts an hour
            policy = ahead(forecast, np.zeros(0), rule)
            yield name, simulate(name, policy, instants, split.test.start, float(instants[-1]), seed)


def autoscaling(outcomes: Mapping[str, Mapping[str, list[Outcome]]]) -> str:
    text = [
        f"""## Autoscaling by them

`{SERVICE}`, objective {OBJECTIVE}, 1 to {MOST} instances, of which each takes {START_S:g} s to start and is paid for \
meanwhile; {FOR_S / 3600:g} hours of a day, after a day that the forecasts have seen. *share* is of an instance's capacity \
that may be used (0.7 else): more room at all times, which a forecast must be better than. A policy that another one beats in \
both figures has its name beside it."""
    ]
    for load_name, by_policy in outcomes.items():
        rows = ["| forecast | instances on average | missed the objective | beaten by |\n|---|---:|---:|---|"]
        means = {
            name: tuple(np.mean([(one.instances, one.missed) for one in seeds], axis=0)) for name, seeds in by_policy.items()
        }
        for name, seeds in by_policy.items():
            count, missed = interval([one.instances for one in seeds]), interval([one.missed for one in seeds])
            better = [other for other, mean in means.items() if dominates(mean, means[name])]
            cells = f"{count[0]:.2f} ± {count[1]:.2f} | {missed[0]:.3%} ± {missed[1]:.3%} | {', '.join(better) or '-'}"
            rows.append(f"| {name} | {cells} |")
        text += [f"### {load_name}", "\n".join(rows), beside_none(by_policy)]
    return "\n\n".join([*text, "![instances against misses](forecast-pareto.svg)"])


def beside_none(by_policy: Mapping[str, list[Outcome]]) -> str:
    """What the learnt forecast changes on the same load, seed by seed."""
    pairs = list(zip(by_policy["learnt"], by_policy["none"], strict=True))
    count, half = interval([ours.instances - other.instances for ours, other in pairs])
    missed, around = interval([ours.missed - other.missed for ours, other in pairs])
    better = sum(dominates((ours.instances, ours.missed), (other.instances, other.missed)) for ours, other in pairs)
    return (
        f"*learnt* less *none*, seed by seed: {count:+.2f} ± {half:.2f} instances, {missed:+.3%} ± {around:.3%} misses; "
        f"better in both with {better} of {len(pairs)} seeds."
    )


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def pareto(by_policy: Mapping[str, list[Outcome]]) -> str:
    points = {
        name: (interval([one.instances for one in seeds])[0], max(interval([one.missed for one in seeds])[0], 1e-6))
        for name, seeds in by_policy.items()
    }
    low, high = min(x for x, _ in points.values()), max(x for x, _ in points.values())
    x = linear(max(low - 0.5, 0.0), high + 1.0, "instances on average", lambda value: f"{value:g}")
    y = logarithmic(
        min(y for _, y in points.values()), max(y for _, y in points.values()), "missed the objective", "{:g}".format
    )
    chart = Chart(x, y)
    chart.line(sorted(point for name, point in points.items() if name.startswith("none")), "", "under")
    for name, point in points.items():
        chart.dot(*point, name, "under" if name.startswith("none") else "main" if name == "learnt" else "second")
    return standalone(chart.svg("pareto", "Autoscaling by forecasts", "instances against misses; left and below is better"))
