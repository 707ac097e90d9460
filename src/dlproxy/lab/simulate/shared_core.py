"""What an event loop that shares a core with a model's batches costs them, learnt from a recording.

Used by lab/simulate/run.py for `--loop recorded` and by benchmarks/fidelity. Not aware of: event logs, lanes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dlproxy.lab.simulate.service_times import Sample

Floats = NDArray[np.float64]

ROUNDS = 5  # of leaving out what lies far off, and fitting again
FAR = 4.0  # median deviations; a batch that far off met something else: a pause of the machine, a garbage collection


def separate(batches: Sequence[Sample], arrivals: Floats) -> tuple[float, list[Sample]]:
    """Seconds that one arrival adds to the batch which runs then, and the batches less what arrivals added to them.

    `arrivals`: instants in rising order, on the clock of the batches' `at_s`. The seconds are a coefficient of least squares:
    service time = base + row * rows + seconds * arrivals. They are 0 where arrivals cost batches nothing: on their own cores.
    """
    rows = np.array([batch.rows for batch in batches], np.float64)
    began_at = np.array([batch.at_s for batch in batches])
    service_s = np.array([batch.service_s for batch in batches])
    hand_over_s = np.array([batch.hand_over_s for batch in batches])
    ended_at = began_at + service_s
    before, during, after = (np.searchsorted(arrivals, at, "right") for at in (began_at, ended_at, ended_at + hand_over_s))
    arrival_s = _arrival_s(service_s, rows, during - before)
    if arrival_s == 0.0:
        return 0.0, list(batches)
    quickest_s = {size: service_s[rows == size].min() for size in np.unique(rows).tolist()}
    floor_s = np.array([quickest_s[size] for size in rows.tolist()])
    alone_s = np.maximum(service_s - arrival_s * (during - before), floor_s)  # many at once cost less each than one
    heard_s = np.maximum(hand_over_s - arrival_s * (after - during), 0.0)
    return arrival_s, [
        batch._replace(service_s=service, hand_over_s=hand_over)
        for batch, service, hand_over in zip(batches, alone_s.tolist(), heard_s.tolist(), strict=True)
    ]


def _arrival_s(service_s: Floats, rows: Floats, arrivals: NDArray[np.int64]) -> float:
    terms = np.stack([np.ones_like(rows), rows, arrivals], axis=1)
    kept = np.ones(rows.size, np.bool_)
    arrival_s = 0.0
    for _ in range(ROUNDS):
        if kept.sum() <= terms.shape[1] or not arrivals[kept].any():
            break
        coefficients, *_ = np.linalg.lstsq(terms[kept], service_s[kept], rcond=None)
        arrival_s = float(coefficients[2])
        deviation_s = np.abs(service_s - terms @ coefficients)
        kept = deviation_s <= FAR * np.median(deviation_s)
    return max(arrival_s, 0.0)
