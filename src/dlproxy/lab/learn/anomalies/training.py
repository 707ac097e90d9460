"""Trains and compares detectors of faults: control charts, an isolation forest, an autoencoder. A Train of experiment.py.

Everything that is chosen is chosen on normal scenarios: charts' limits and networks on some, thresholds on others; which faults
there are is known to the figures alone.
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import numpy as np
from msgspec import Struct, structs
from numpy.typing import NDArray

from dlproxy.lab.learn.anomalies.autoencoder import Shape, export, fit, scores, spans
from dlproxy.lab.learn.anomalies.judge import Found, Scores, alarms_at, area, judged, threshold
from dlproxy.lab.learn.anomalies.scenarios import FAULTS, Recorded, Trace, told, traces
from dlproxy.lab.learn.experiment import Experiment, Place, Run, settings
from dlproxy.policy.watch.detectors import Charts
from dlproxy.policy.watch.features import NAMES

LEAST_LIMIT = 1.0  # of a chart, in its standard deviations: features that normal scenarios never move


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
    normal, held_out, test = (list(map(told, part)) for part in (data.train, data.validate, data.test))
    network, losses, checks = fit(_spans(normal), _spans(held_out), wanted.network, place.seed)
    limits = chart_limits(normal)
    detectors: dict[str, Callable[[NDArray[np.float32]], Scores]] = {
        "autoencoder": lambda off: scores(network, off),
        "charts": lambda off: chart_scores(off, limits),
        "forest": _forest(normal, wanted.trees, place.seed),
    }
    figures: dict[str, float] = {}
    for name, of in detectors.items():
        limit = threshold([of(record.off) for record in held_out])
        found = [of(record.off) for record in test]
        figures |= {f"{name} {what}": value for what, value in _figures(found, test, limit).items()}
        if name == "autoencoder":
            export(network, limit, place.folder / "model.onnx", ())
        elif name == "charts":
            figures |= {f"limit {feature}": limits[feature] * limit for feature in NAMES}
    return Run(seed=place.seed, figures=figures, curves={"training": losses, "validation": checks})


def chart_limits(normal: Sequence[Recorded]) -> dict[str, float]:
    """Of each feature's chart, in its standard deviations: the lowest at which these scenarios give no alarm by it alone."""
    found = {}
    for place, name in enumerate(NAMES):
        alone = {other: 1.0 if other == name else 1e9 for other in NAMES}
        worst = max(float(alarms_at(chart_scores(record.off, alone)).max()) for record in normal)
        found[name] = max(worst, LEAST_LIMIT)
    return found


def chart_scores(off: NDArray[np.float32], limits: Mapping[str, float]) -> Scores:
    """As a server has them."""
    charts = Charts(limits)
    return np.asarray([charts.observe(row, 0.0) for row in off.tolist()])


def _data(wanted: Settings, place: Place) -> Data:
    """Simulated once, kept beside the model."""
    path = place.folder / "scenarios.pickle"
    shape = structs.astuple(structs.replace(wanted, trees=0, network=Shape()))
    if path.is_file():
        of, data = pickle.loads(path.read_bytes())  # noqa: S301  our own file
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


def _forest(normal: Sequence[Recorded], trees: int, seed: int) -> Callable[[NDArray[np.float32]], Scores]:
    """An isolation forest (Liu, Ting, Zhou, ICDM 2008) over the newest window and the means of the last 4 and 16."""
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(n_estimators=trees, random_state=seed).fit(np.concatenate([_summary(record.off) for record in normal]))

    def of(off: NDArray[np.float32]) -> Scores:
        return -np.asarray(forest.score_samples(_summary(off)), np.float64)

    return of


def _summary(off: NDArray[np.float32]) -> NDArray[np.float32]:
    summed = np.concatenate([np.zeros((1, off.shape[1])), np.cumsum(off, axis=0, dtype=np.float64)])
    means = []
    for span in (4, 16):
        since = np.maximum(np.arange(1, len(off) + 1) - span, 0)
        until = np.arange(1, len(off) + 1)
        means.append((summed[until] - summed[since]) / (until - since)[:, None])
    return np.concatenate([off, *means], axis=1).astype(np.float32)


def _figures(found: Sequence[Scores], test: Sequence[Recorded], limit: float) -> dict[str, float]:
    faults, false_per_week = judged(found, test, limit)
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
