"""Detectors of faults in telemetry beside each other, on planted faults in simulation: ANOMALIES.md.

Called by benchmarks.learn. Not aware of: how scenarios and detectors are made (dlproxy.lab.learn.anomalies).
"""

import argparse
from collections.abc import Iterator

from msgspec import structs

from dlproxy.lab.learn.anomalies.scenarios import FAULTS
from dlproxy.lab.learn.anomalies.training import Settings
from dlproxy.lab.learn.experiment import find, settings
from dlproxy.lab.learn.train import Result, train
from dlproxy.policy.watch.features import NAMES

DETECTORS = {"charts": "control charts (EWMA)", "autoencoder": "autoencoder", "forest": "isolation forest"}
WORDS = {
    "slow": "one instance 2 to 12 times slower",
    "leak": "batches slower and slower, up to 1.5 to 5 times",
    "storm": "more than can be answered for 30 s, and clients that send again",
    "poison": "a tenth to all of the batches fail",
    "inputs": "8 rows instead of 1, or 4 times as long, in 30 to 80 % of the requests",
    "stampede": "the cache forgets all, again and again",
    "stalls": "everything stands still for 0.3 s, every 4 s",
}


def measure(options: argparse.Namespace) -> str:
    """The page. Trains what is not trained yet."""
    experiment = structs.replace(find("telemetry-autoencoder"), seeds=options.seeds)
    result = train(experiment, options.folder / experiment.name, threads=1, tell=print)
    return "\n".join(_page(result, settings(experiment, Settings))) + "\n"


def _page(result: Result, of: Settings) -> Iterator[str]:
    figures = result.figures()

    def told(name: str, form: str = ".2f") -> str:
        mean, half = figures[name]
        return f"{mean:{form}} ± {half:{form}}"

    seeds = len(result.runs)
    yield "# Anomalies in telemetry"
    yield ""
    yield "`python -m benchmarks.learn --only anomalies --write` writes this page."
    yield ""
    yield (
        f"Each of {seeds} seeds: {of.train + of.validate} normal scenarios of {of.normal_s / 60:.0f} simulated minutes "
        f"to learn from and to set limits by; for the figures {of.normal} more, and {of.each_fault} with each of "
        f"{len(FAULTS)} faults of {of.fault_s / 60:.0f} minutes. Load, bursts, shifts, the model, a cache (in 3 of 10) and an "
        "autopilot that turns knobs (in 4 of 10) are drawn at random. Limits and networks know normal scenarios alone; what a "
        "score is and the margin of limits (1.5) were settled on scenarios of another seed, with faults. Windows of 2 s; an "
        "alarm is 3 unusual ones of 4. ± is half of a 95 % interval over the seeds. A fault that was missed counts in the "
        "delays with all of the time that it lasted."
    )
    yield ""
    yield "| | area under precision and recall | found | delay, median | delay, p90 | false alarms in a week |"
    yield "|---|---|---|---|---|---|"
    for name, words in DETECTORS.items():
        columns = (
            ("area", ".3f"),
            ("detected", ".0%"),
            ("delay s", ".0f"),
            ("p90 delay s", ".0f"),
            ("false alarms a week", ".0f"),
        )
        cells = [told(f"{name} {what}", form) + (" s" if what.endswith(" s") else "") for what, form in columns]
        yield f"| {words} | {' | '.join(cells)} |"
    yield ""
    yield "## By fault"
    yield ""
    yield "| fault | " + " | ".join(f"{words}: area; found; median delay" for words in DETECTORS.values()) + " |"
    yield "|---|" + "---|" * len(DETECTORS)
    for fault in FAULTS:
        cells = [
            f"{told(f'{one} area')}; {figures[f'{one} detected'][0]:.0%}; {told(f'{one} delay s', '.0f')} s"
            for one in [f"{name} {fault}" for name in DETECTORS]
        ]
        yield f"| {fault}: {WORDS[fault]} | {' | '.join(cells)} |"
    yield ""
    yield "## Limits of the charts"
    yield ""
    yield "In standard deviations of each chart; those in `policy/watch/detectors.py` are these means."
    yield ""
    yield "| " + " | ".join(NAMES) + " |"
    yield "|" + "---|" * len(NAMES)
    yield "| " + " | ".join(told(f"limit {name}", ".1f") for name in NAMES) + " |"
    yield ""
    yield (
        "A slow instance among several shows little here, as the lane gives it little to do: what is left are slower answers "
        "of few requests. What is normal holds bursts that are too much for a moment: an alarm that one raises counts as false."
    )
