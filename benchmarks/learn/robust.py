"""ROBUST.md: networks under attack before and after adversarial training, and what an input guard finds, misses and costs."""

import argparse
from time import perf_counter

import numpy as np

from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.options import minute, utc_now
from benchmarks.harness.page import table
from benchmarks.harness.processes import choose_cores
from benchmarks.learn.gains import gain, seconds, share, trained
from dlproxy.lab.learn.train import Result
from dlproxy.steps.guard import Guard

ROUNDS = 300  # of which the quickest counts
ATTACKS = {"noise": "random signs", "transfer": "PGD on another network", "fgsm": "FGSM", "pgd": "PGD"}
NETWORKS = ("plain", "hardened")


def measure(options: argparse.Namespace) -> str:
    robust = trained("digits-robust", options.folder, options.seeds)
    guard = trained("digits-guard", options.folder, options.seeds)
    epsilons = [f"{epsilon:g}" for epsilon in robust.experiment.settings["epsilons"]]
    return f"""# Robustness

`python -m benchmarks.learn --only robust --seeds {options.seeds}` on {minute(utc_now())}, \
{summary(describe_machine(choose_cores()))}; trainings of {seconds(robust, guard)} in all. Written by `--write`.

Mean over {options.seeds} seeds, in per cent, with half of the 95 % interval (Student's t). Each seed holds out another fifth
of the handwritten digits, so that all of them are held out once. Epsilon is the most by which a pixel may change, on the scale
of 0 to 16 that pixels have.

## Accuracy under attack

{_attacks(robust, epsilons)}

{_sanity(robust, epsilons)}

## The input guard

{_guard(guard, epsilons)}

{_cost(options.folder / "digits-guard" / "seed-1" / "guard.npz")}
"""


def _attacks(result: Result, epsilons: list[str]) -> str:
    settings = result.experiment.settings
    rows = [["none", *_both(result, "clean")]]
    for epsilon in epsilons:
        rows += [[f"{said}, epsilon {epsilon}", *_both(result, f"{attack} {epsilon}")] for attack, said in ATTACKS.items()]
    rows.append(["PGD, epsilon 16", *_both(result, "pgd 16")])
    said = (
        f"Adversarial training is by PGD of {settings['train_steps']} steps at epsilon {settings['epsilon']:g}; "
        f"PGD here has 20 steps and 2 random starts. Trained without attacks, a seed takes "
        f"{settings['how']['epochs']} epochs; against them, {settings['hardened']['epochs']}."
    )
    return f"{table(['attack', 'trained as usual, %', 'trained against attacks, %', 'gain'], rows)}\n\n{said}"


def _both(result: Result, what: str) -> list[str]:
    shares = [share(result.runs, f"{network}, {what}") for network in NETWORKS]
    return [*shares, gain(result.runs, f"hardened, {what}", f"plain, {what}")]


def _sanity(result: Result, epsilons: list[str]) -> str:
    """Signs of gradients that are hidden and not gone (Athalye et al., 2018), each over all seeds and epsilons."""

    def holds(weaker: str, stronger: str) -> str:
        pairs = [
            run.figures[f"{network}, {stronger} {epsilon}"] <= run.figures[f"{network}, {weaker} {epsilon}"]
            for run in result.runs
            for network in NETWORKS
            for epsilon in epsilons
        ]
        return f"{sum(pairs)} of {len(pairs)}"

    most = max(run.figures[f"{network}, pgd 16"] for run in result.runs for network in NETWORKS)
    rows = [
        ["PGD leaves no more right than FGSM", holds("fgsm", "pgd")],
        ["FGSM leaves no more right than random signs of its size", holds("noise", "fgsm")],
        ["PGD leaves no more right than what deceives another network", holds("transfer", "pgd")],
        ["without bounds, PGD leaves at most so many right", f"{100 * most:.1f} %"],
    ]
    said = "An attack may fail as gradients are masked (Athalye et al., 2018). If they were, these would not hold:"
    return f"{said}\n\n{table(['', 'holds'], rows)}"


def _guard(result: Result, epsilons: list[str]) -> str:
    runs = result.runs
    names = [name.removeprefix("finds ") for name in runs[0].figures if name.startswith("finds ")]
    rows = [["**false alarms**", share(runs, "false alarms"), share(runs, "unsure, false alarms")]]
    for name in names:
        if not name.startswith(("fgsm", "pgd")):
            beside = f"unsure, finds {name}"
            rows.append([name, share(runs, f"finds {name}"), share(runs, beside) if beside in runs[0].figures else ""])
    found = table(["", "the guard refuses, %", "the network is unsure, %"], rows)
    rows = []
    for attack, said in (("fgsm", "FGSM"), ("pgd", "PGD"), ("pgd that knows", "PGD that knows the guard")):
        for epsilon in epsilons:
            of = f"{attack} {epsilon}"
            shares = [share(runs, f"{what}{of}") for what in ("finds ", "wrong by ", "wrong and passed, ")]
            rows.append([f"{said}, epsilon {epsilon}", *shares])
    attacked = table(["attack", "refused, %", "the network is wrong, %", "wrong and not refused, %"], rows)
    rate = result.experiment.settings["rate"]
    return f"""The threshold is set for false alarms of {100 * rate:g} % by examples that the guard is not fitted to. Beside
it: a guard that refuses what the network's highest probability is low for, at the same rate (Hendrycks and Gimpel, 2017).

{found}

Attacks on the network behind the guard. Unattacked, {share(runs, "wrong")} % of its answers are wrong.

{attacked}"""


def _cost(file: object) -> str:
    step, rows = Guard(file=str(file), refuse=False), np.zeros((32, 1, 8, 8), np.float32)
    best = {}
    for count in (1, len(rows)):
        times = []
        for _ in range(ROUNDS):
            began_at = perf_counter()
            step(x=rows[:count])
            times.append(perf_counter() - began_at)
        best[count] = min(times)
    return f"The guard takes {best[1] * 1e6:.0f} us for one image and {best[32] * 1e6:.0f} us for 32, on one core."
