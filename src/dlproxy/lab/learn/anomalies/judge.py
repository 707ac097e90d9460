"""How good scores of windows are: the area under precision and recall, alarms and their delays, false alarms a week.

Called by training.py. Not aware of: what makes scores.
"""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.lab.learn.anomalies.scenarios import Fault, Recorded
from dlproxy.policy.watch.watcher import AMONG, ENOUGH, WINDOW_S, Alarm

MARGIN = 1.5  # some hours of normal scenarios do not have the worst that there is
WEEK_S = 7 * 86400.0

Scores = NDArray[np.float64]


class Found(Struct):
    """Of one scenario with a fault: whether there was an alarm while it lasted, and the seconds from its beginning until
    that, or else all that it lasted.
    """

    fault: Fault
    detected: bool
    delay_s: float


def alarms_at(scores: Scores) -> Scores:
    """The highest threshold at which each window would have begun an alarm: the ENOUGH-th largest of the last AMONG scores."""
    padded = np.concatenate([np.zeros(AMONG - 1), scores])
    view = np.lib.stride_tricks.sliding_window_view(padded, AMONG)
    found: Scores = np.sort(view, axis=1)[:, AMONG - ENOUGH]
    return found


def limit(normal: Sequence[Scores], margin: float = MARGIN) -> float:
    """So many times the lowest threshold at which these scenarios, all normal, give no alarm."""
    return margin * max(float(alarms_at(scores).max()) for scores in normal)


def area(scores: Sequence[Scores], records: Sequence[Recorded]) -> float:
    """Under the curve of precision by recall over all windows: average precision."""
    from sklearn.metrics import average_precision_score

    wrong = np.concatenate([record.wrong for record in records])
    return float(average_precision_score(wrong, np.concatenate(scores)))


def begun(scores: Scores, most: float) -> list[int]:
    """The windows in which an alarm began, as a server has it."""
    alarm, before, found = Alarm(), False, []
    for place, score in enumerate(scores):
        now = alarm.hear(float(score) / most)
        if now and not before:
            found.append(place)
        before = now
    return found


def judged(scores: Sequence[Scores], records: Sequence[Recorded], most: float) -> tuple[list[Found], float]:
    """What became of each fault, and false alarms in a simulated week of normal operation: of scenarios without a fault, and of
    the time before one in the others. An alarm that is on when a fault begins has found nothing.
    """
    found: list[Found] = []
    false, normal_s = 0, 0.0
    for one, record in zip(scores, records, strict=True):
        places = begun(one, most)
        wrong = np.flatnonzero(record.wrong)
        onset = int(wrong[0]) if len(wrong) else len(one)
        false += sum(place < onset for place in places)
        normal_s += onset * WINDOW_S
        if record.fault is not None and len(wrong):
            hits = [place for place in places if onset <= place <= wrong[-1] + 1]
            last = hits[0] if hits else int(wrong[-1])
            found.append(Found(record.fault, bool(hits), (last - onset + 1) * WINDOW_S))
    return found, false / normal_s * WEEK_S
