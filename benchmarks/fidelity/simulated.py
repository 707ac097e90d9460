"""The simulated half: every part of a recording again in virtual time, and both halves' figures over all parts.

Called by benchmarks/fidelity/__main__.py. Not aware of: servers, processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from benchmarks.fidelity.live import Cell, Recording, Run, Subject
from dlproxy.config import ModelConfig
from dlproxy.lab.report.histogram import Histogram
from dlproxy.lab.report.result import Result
from dlproxy.lab.simulate.engine import LoopCosts
from dlproxy.lab.simulate.recording import answers
from dlproxy.lab.simulate.run import ModelPlan, Scenario, plan_model, simulate
from dlproxy.lab.simulate.service_times import Measured, Sample
from dlproxy.lab.simulate.shared_core import separate

Seconds = NDArray[np.float64]

BANDS = {"rate": 0.05, "p50": 0.15, "p99": 0.15}
QUANTILES = 1000  # at which the path is known


@dataclass(frozen=True)
class Row:
    """One load: figures over all runs of its parts, live and simulated.

    `predicted`: each part with the batch times of the parts before and after it. `explained`: with its own.
    `again`: the last repeat alone, beside `first`: how well the machine predicts itself.
    """

    subject: str
    arrivals: str
    load: float
    live: dict[str, float]
    predicted: dict[str, float]
    explained: dict[str, float]
    first: dict[str, float]
    again: dict[str, float]


def apart(figures: dict[str, float], reference: dict[str, float]) -> dict[str, float]:
    """By how much of the reference the figures differ from it."""
    return {name: figures[name] / reference[name] - 1.0 if reference[name] else inf for name in BANDS}


def agrees(figures: dict[str, float], reference: dict[str, float]) -> bool:
    """Every one of them is within its band."""
    return all(abs(difference) <= BANDS[name] for name, difference in apart(figures, reference).items())


def figures(results: Sequence[Result]) -> dict[str, float]:
    """Rate in 1/s, quantiles in ms and the share of failures, as if the runs had been one."""
    histogram = Histogram.decode(results[0].histogram)
    for result in results[1:]:
        histogram.merge(Histogram.decode(result.histogram))
    sent = sum(result.sent for result in results)
    return {
        "rate": sum(result.rate_rps * result.duration_s for result in results) / sum(result.duration_s for result in results),
        "p50": histogram.quantile_s(0.5) * 1e3,
        "p99": histogram.quantile_s(0.99) * 1e3,
        "shed": sum(result.failed for result in results) / sent if sent else 0.0,
    }


def _latencies(result: Result) -> Seconds:
    """Of each answer, in rising order."""
    steps = Histogram.decode(result.histogram).steps()
    return np.repeat([latency_s for latency_s, _ in steps], [times for _, times in steps])


class Simulator:
    """Simulates the runs of a recording.

    Batch times come from the event log, less what the loop did on the same core meanwhile, which is simulated. The path of a
    request, between client and loop and back, is what the clients of the runs next to it saw beyond what the loop and the lane
    did, quantile by quantile; so it is added to the simulated latencies.
    """

    def __init__(self, subject: Subject, recording: Recording, log: Path) -> None:
        self._subject = subject
        self._recording = recording
        self._plan = plan_model(subject.name, ModelConfig(**subject.knobs), str(log)).plan
        self._answers = answers(log)

    @property
    def path_s(self) -> float:
        """Median of the seconds that a request spends between client and loop, both ways, at the least load."""
        return float(np.median([self._path_s(run) for run in self._recording.runs[0]]))

    def predict(self, run: Run, others: Sequence[Run]) -> Result:
        """With the batch times of the two runs of other parts that were next to it."""
        around = nearest(run, others)
        return self._simulate(run, [sample for other in around for sample in self._during(other)], around)

    def explain(self, run: Run, others: Sequence[Run]) -> Result:
        """With its own; the path is that of the others."""
        return self._simulate(run, self._during(run), nearest(run, others))

    def compare(self, cell: Cell, runs: Sequence[Run]) -> Row:
        """All runs of one cell."""
        once = len(runs) // self._recording.repeats
        return Row(
            self._subject.name,
            cell.kind,
            cell.load,
            figures([run.result for run in runs]),
            figures([self.predict(run, runs) for run in runs]),
            figures([self.explain(run, runs) for run in runs]),
            figures([run.result for run in runs[:once]]),
            figures([run.result for run in runs[-once:]]),
        )

    def _during(self, run: Run) -> list[Sample]:
        """The batches that began in its time."""
        return [sample for sample in self._recording.batches if run.began_at <= sample.at_s < run.ended_at]

    def _path_s(self, run: Run) -> Seconds:
        """At each of so many quantiles: what the clients saw, less what the loop and the lane did."""
        found, shares = self._answers, _shares(QUANTILES)
        inside = found[(found[:, 0] >= run.began_at) & (found[:, 0] < run.ended_at), 1]
        arrival_s, _ = separate(self._during(run), self._recording.arrivals)
        path_s: Seconds = np.quantile(_latencies(run.result), shares) - np.quantile(inside, shares) - arrival_s
        return path_s.clip(min=0.0)

    def _simulate(self, run: Run, batches: list[Sample], around: Sequence[Run]) -> Result:
        subject, part = self._subject, run.part
        arrival_s, alone = separate(batches, self._recording.arrivals)
        model = ModelPlan(self._plan, lambda seed: Measured(alone, seed=seed), f"{len(batches)} batches")
        result = simulate(
            Scenario(
                models={subject.name: model},
                arrivals=part.arrivals,
                duration_s=part.seconds,
                rows=subject.rows,
                timeout_s=subject.deadline_s,
                objective_s=subject.deadline_s,
                costs=LoopCosts(read_s=arrival_s, shares_core=True),
            )
        )
        inside = _latencies(result)
        path_s = np.mean([self._path_s(other) for other in around], axis=0)
        histogram = Histogram()
        histogram.add(inside + np.interp(_shares(inside.size), _shares(QUANTILES), path_s))
        return structs.replace(result, histogram=histogram.encode())


def nearest(run: Run, others: Sequence[Run]) -> list[Run]:
    """The two of other parts that began next to it."""
    return sorted(
        (other for other in others if other.part is not run.part), key=lambda other: abs(other.began_at - run.began_at)
    )[:2]


def _shares(count: int) -> Seconds:
    """So many shares of a distribution, evenly spaced."""
    shares: Seconds = (np.arange(count) + 0.5) / count
    return shares
