"""Trains and compares detectors of faults: control charts, an isolation forest, an autoencoder. A Train of experiment.py.

Everything that is chosen is chosen on normal scenarios: charts' limits and networks on some, thresholds on others; which faults
there are is known to the figures alone.
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from statistics import median

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from dlproxy.lab.learn.anomalies.autoencoder import Autoencoder, Shape, errors, export, fit, scores, spans
from dlproxy.lab.learn.anomalies.judge import Found, Scores, area, judged, limit
from dlproxy.lab.learn.anomalies.scenarios import FAULTS, Recorded, Trace, told, traces
from dlproxy.lab.learn.experiment import Experiment, Place, Run, settings
from dlproxy.policy.watch.detectors import WEIGHT, Charts
from dlproxy.policy.watch.features import NAMES

LEAST_LIMIT = 4.0  # of a chart, in its standard deviations: of features that normal scenarios never move
LEAST_FAILED = 6.0  # here no request fails without a fault, but elsewhere one may

Floats = NDArray[np.float32]
Detect = Callable[[Floats], Scores]
"""[windows, features] to [windows]: 1 and more is unusual."""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Scenarios: so many that are normal to train on, to choose thresholds by and to test on, and so many with each fault."""

    train: int = 16
    validate: int = 12
    normal: int = 16
    each_fault: int = 4
    normal_s: float = 1200.0
    fault_s: float = 720.0
    trees: int = 100
    network: Shape = Shape()


class Data(Struct):
    """Of one seed."""

    train: list[Trace]
    validate: list[Trace]
    test: list[Trace]


def train(experiment: Experiment, place: Place) -> Run:
    wanted: Settings = settings(experiment, Settings)
    import torch

    torch.set_num_threads(place.threads)
    data = _data(wanted, place)
    known, held_out, test = (list(map(told, part)) for part in (data.train, data.validate, data.test))
    network, losses, checks = fit(_spans(known), _spans(held_out), wanted.network, place.seed)
    normal = [record.off for record in (*known, *held_out)]
    limits = chart_limits(normal)
    network_limits(network, normal)
    export(network, place.folder / "model.onnx")
    detectors: dict[str, Detect] = {
        "autoencoder": lambda off: scores(network, off),
        "charts": lambda off: chart_scores(off, limits),
        "forest": forest(normal, wanted.trees, place.seed),
    }
    figures: dict[str, float] = {}
    for name, of in detectors.items():
        figures |= {f"{name} {what}": value for what, value in _figures([of(record.off) for record in test], test).items()}
    figures |= {f"limit {feature}": value for feature, value in limits.items()}
    return Run(seed=place.seed, figures=figures, curves={"training": losses, "validation": checks})


def chart_limits(normal: Sequence[Floats]) -> dict[str, float]:
    """Of each feature's chart, in its standard deviations."""
    found = {}
    for name in NAMES:
        alone = {other: 1.0 if other == name else 1e9 for other in NAMES}
        found[name] = max(limit([chart_scores(off, alone) for off in normal]), _least(name))
    return found


def network_limits(network: Autoencoder, normal: Sequence[Floats]) -> None:
    """Set those of each feature's mean error, in spreads."""
    found = [errors(network, off) for off in normal]
    for place, name in enumerate(NAMES):
        most = limit([one[:, place] for one in found])
        network.limits[place] = max(most, _least(name) * sqrt(WEIGHT / (2.0 - WEIGHT)))


def _least(name: str) -> float:
    return LEAST_FAILED if name == "failed" else LEAST_LIMIT


def chart_scores(off: Floats, limits: Mapping[str, float]) -> Scores:
    """As a server has them."""
    charts = Charts(limits)
    return np.asarray([charts.observe(row, 0.0) for row in off.tolist()])


def forest(normal: Sequence[Floats], trees: int, seed: int) -> Detect:
    """An isolation forest (Liu, Ting, Zhou, ICDM 2008) over the newest window and the means of the last 4 and 16."""
    from sklearn.ensemble import IsolationForest

    seen = [_summary(off) for off in normal]
    found = IsolationForest(n_estimators=trees, random_state=seed).fit(np.concatenate(seen))
    most = limit(
        [-found.score_samples(summary) for summary in seen], 1.0
    )  # such scores end at 1: there is no room for a margin

    def of(off: Floats) -> Scores:
        return -np.asarray(found.score_samples(_summary(off)), np.float64) / most

    return of


def _data(wanted: Settings, place: Place) -> Data:
    """Simulated once, kept beside the model."""
    path = place.folder / "scenarios.pickle"
    shape = structs.astuple(structs.replace(wanted, trees=0, network=Shape()))
    if path.is_file():
        of, data = pickle.loads(path.read_bytes())  # our own file
        if of == shape and isinstance(data, Data):
            return data
    seed = place.seed
    data = Data(
        list(traces(wanted.train, wanted.normal_s, None, (seed, 1))),
        list(traces(wanted.validate, wanted.normal_s, None, (seed, 2))),
        list(traces(wanted.normal, wanted.normal_s, None, (seed, 3))),
    )
    place.tell(f"simulated {len(data.train) + len(data.validate) + len(data.test)} normal scenarios")
    for number, fault in enumerate(FAULTS):
        data.test += traces(wanted.each_fault, wanted.fault_s, fault, (seed, 4, number))
    place.tell(f"simulated {wanted.each_fault} scenarios of each of {len(FAULTS)} faults")
    path.write_bytes(pickle.dumps((shape, data)))
    return data


def _spans(kept: Sequence[Recorded]) -> NDArray[np.float32]:
    return np.concatenate([spans(record.off) for record in kept])


def _summary(off: Floats) -> NDArray[np.float32]:
    summed = np.concatenate([np.zeros((1, off.shape[1])), np.cumsum(off, axis=0, dtype=np.float64)])
    means = []
    for span in (4, 16):
        since = np.maximum(np.arange(1, len(off) + 1) - span, 0)
        until = np.arange(1, len(off) + 1)
        means.append((summed[until] - summed[since]) / (until - since)[:, None])
    return np.concatenate([off, *means], axis=1).astype(np.float32)


def _figures(found: Sequence[Scores], test: Sequence[Recorded]) -> dict[str, float]:
    faults, false_per_week = judged(found, test, 1.0)
    told = {"area": area(found, test), "false alarms a week": false_per_week, **_delays(faults)}
    for fault in FAULTS:
        of_it = [one for one in faults if one.fault == fault]
        if of_it:
            told |= {f"{fault} {what}": value for what, value in _delays(of_it).items()}
            kept = [place for place, record in enumerate(test) if record.fault in (fault, None)]
            told[f"{fault} area"] = area([found[place] for place in kept], [test[place] for place in kept])
    return told


def _delays(faults: Sequence[Found]) -> dict[str, float]:
    """Share that was detected; median and p90 of the delay over all."""
    delays = sorted(one.delay_s for one in faults)
    return {
        "detected": sum(one.detected for one in faults) / len(faults),
        "delay s": median(delays),
        "p90 delay s": delays[min(len(delays) * 9 // 10, len(delays) - 1)],
    }
