"""Configurations that stay as they are, searched for by NSGA-II, which keeps those that nothing dominates.

Used by benchmarks/learn/pareto.py. Not aware of: policies that turn knobs.
"""

import warnings

import optuna

from dlproxy.lab.learn.pareto.front import Point, front
from dlproxy.lab.learn.pareto.runs import outcome
from dlproxy.lab.simulate.scenario import MOST_BATCH, Scenario, Static, ways

POPULATION = 12
WAITS = (0.0, 1.0 / 64.0, 1.0 / 16.0, 1.0 / 4.0)  # of the objective


def search(scenario: Scenario, seed: int, *, trials: int, phase_s: float) -> list[Static]:
    """Those on the front after so many runs in the simulator (Deb et al., "A fast and elitist multiobjective genetic
    algorithm: NSGA-II", IEEE Transactions on Evolutionary Computation 6, 2002; as optuna has it).
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
        study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    found: dict[Static, Point] = {}

    def run(trial: optuna.Trial) -> Point:
        static = _drawn(trial, scenario)
        if static not in found:
            found[static] = outcome(scenario, static, seed, phase_s=phase_s)
        return found[static]

    study.optimize(run, n_trials=trials)
    best = front(list(found.values()))
    return [static for static, point in found.items() if point in best]


def _drawn(trial: optuna.Trial, scenario: Scenario) -> Static:
    found = ways(scenario.cores)
    instances, threads = found[trial.suggest_int("way", 0, len(found) - 1)]
    rows = min(2 ** trial.suggest_int("doublings", 0, 8), MOST_BATCH)
    wait = trial.suggest_categorical("wait", WAITS)
    return instances, threads, rows, wait * scenario.objective_s
