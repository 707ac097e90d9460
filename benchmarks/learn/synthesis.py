"""Made-up load beside recorded load: what models of arrivals are worth. Called by __main__.py; a part of the trace is held out.

Not aware of: how they are fitted.
"""

import argparse
import sys
from collections.abc import Callable

import numpy as np
from msgspec import structs

from benchmarks.harness.page import paragraph, table
from dlproxy.lab.learn.experiment import Place, find
from dlproxy.lab.learn.synthesis.likeness import Load, compare
from dlproxy.lab.learn.synthesis.training import FITS, About, Parts, load_of
from dlproxy.lab.learn.synthesis.transfer import ENOUGH, KNOBS_ON, Machine, cores_for, on_cores, serve, tune
from dlproxy.lab.learn.train import Result, train

LIKENESS = {
    "ks": "KS",
    "wasserstein": "Wasserstein",
    "acf_gaps": "order of gaps",
    "acf_counts": "order of counts",
    "dispersion": "dispersion",
    "longest_burst": "longest burst",
    "peak": "peak",
}
TRANSFER = {"tuned": "in time, tuned", "tuned_p99": "p99, tuned", "cores": "cores", "cores_in_time": "in time on these"}
INTRO = """
Models of arrivals are fitted to the first 60 % of {what} ({known:,} arrivals); the rest ({real:,}) is held out. Each of
{seeds} seeds draws one load as long as the rest. What had to be chosen (the length of blocks, the stage of the network's
training) was chosen by the last quarter of the first part. Mean ± half of the 95 % interval over seeds; `python -m
benchmarks.learn --only synthesis --trace FILE`.
"""
MODELS = """
The models: independent gaps (`poisson`; `gamma`, most likely; `gamma-cv`, with the trace's coefficient of variation), Poisson
processes with two or three hidden rates (`mmpp`, by expectation and maximisation), `blocks` of the recorded gaps (stationary
bootstrap), and a network (`gan`: dilated convolutions, WGAN-GP). *recorded* is the first part itself beside the rest: a model
that is as near is as good as can be expected.
"""
HOW_LIKE = """
Distance from the held-out part, 0 is equal. KS and Wasserstein (decades) of the logarithms of gaps; mean difference of
autocorrelations (gaps: lags 1 to 50; counts per 0.1, 1 and 10 s: lags 1 to 10); absolute logarithms of ratios: index of
dispersion (seven scales from 0.1 to 60 s), longest burst (gaps below 50 ms), highest second over the mean.
"""
WORTH = """
A simulated model (`{service}`, p99 within {slo:g} ms). Knobs (max_batch, max_wait, instances and threads on {cores} cores)
are chosen on the made-up load and used on the held-out part: answers in time and p99, as shares of what knobs chosen on the
recorded first part give there ({in_time:.3f} and {p99:.0f} ms). Cores: the fewest with which {enough:.0%} of the made-up load
is answered in time, and the share that they answer in time of the held-out part, which needs {needed}.
"""


def measure(options: argparse.Namespace) -> str:
    trace = "" if options.trace is None else str(options.trace)
    results: dict[str, Result] = {}
    for name in (*FITS, "gan"):
        experiment = find("load-gan" if name == "gan" else "load-blocks")
        settings = experiment.settings | {"trace": trace} | ({} if name == "gan" else {"model": name})
        experiment = structs.replace(experiment, seeds=options.seeds, settings=settings)
        results[name] = train(experiment, options.folder / f"load-{name}", threads=1, tell=_tell(name))
    parts = load_of(About(trace=trace), Place(folder=options.folder, seed=0, threads=1, tell=_tell("recorded")))
    return page(
        results,
        parts,
        options.trace.name if options.trace else "a made-up load of quiet, busy and hectic spells",
        options.seeds,
    )


def page(results: dict[str, Result], parts: Parts, what: str, seeds: int) -> str:
    figures = {name: result.figures() for name, result in results.items()}
    recorded = compare(Load(parts.known), Load(parts.real))
    rows = [[name, *[_both(found[key]) for key in LIKENESS]] for name, found in figures.items()]
    rows.append(["*recorded*", *[f"{recorded[key]:.3g}" for key in LIKENESS]])
    machine = Machine()
    served = serve(machine, parts.real, tune(machine, parts.known), KNOBS_ON)
    cores = cores_for(machine, parts.known)
    worth = [[name, *[_both(found[key]) for key in TRANSFER]] for name, found in figures.items()]
    worth.append(["*recorded*", "1", "1", str(cores), f"{on_cores(machine, parts.real, cores).in_time:.3g}"])
    blocks = sorted({run.figures["block"] for run in results["blocks"].runs})
    seconds = {name: np.mean([run.seconds for run in result.runs]) for name, result in results.items()}
    slowest = max(seconds, key=lambda name: seconds[name])
    worth_text = WORTH.format(
        service=machine.service,
        slo=machine.slo_s * 1e3,
        cores=KNOBS_ON,
        in_time=served.in_time,
        p99=served.p99_s * 1e3,
        enough=ENOUGH,
        needed=cores_for(machine, parts.real),
    )
    return "\n\n".join(
        [
            "# Made-up load beside recorded load",
            paragraph(INTRO.format(what=what, known=len(parts.known), real=len(parts.real), seeds=seeds)),
            paragraph(MODELS),
            "## How like it is",
            paragraph(HOW_LIKE),
            table(["model", *LIKENESS.values()], rows),
            f"Blocks that were chosen: {', '.join([f'{length:g}' for length in blocks])} gaps.",
            "## What tuning on it is worth",
            paragraph(worth_text),
            table(["model", *TRANSFER.values()], worth),
            f"The slowest, {slowest}, took {seconds[slowest]:.0f} s a seed, its simulations included.\n",
        ]
    )


def _both(found: tuple[float, float]) -> str:
    mean, half = found
    return f"{mean:.3g}" + (f" ± {half:.2g}" if half > 0.0 else "")


def _tell(name: str) -> Callable[[str], None]:
    return lambda text: print(f"{name}: {text}", file=sys.stderr)
