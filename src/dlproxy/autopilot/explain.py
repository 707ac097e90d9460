"""What a pilot knows of its model and would do now, for whoever asks why it does what it does.

Called by flight.py. Not aware of: how it is shown.
"""

from collections.abc import Sequence
from copy import deepcopy
from math import inf

from msgspec import Struct

from dlproxy.autopilot.learnt import Learnt
from dlproxy.policy.tuning.duel import Duel
from dlproxy.policy.tuning.pilot import Pilot
from dlproxy.policy.tuning.protocol import KnobPolicy
from dlproxy.policy.tuning.rules import Load, Rules, share_missed
from dlproxy.policy.tuning.window import Window, joined


class WayKnown(Struct):
    """One way of running. A batch of b rows takes base_s + row_s * b, as measured or else guessed; `missed`: share of the
    requests that would miss the objective under the load of now. None where nothing tells.
    """

    instances: int
    threads: int
    present: bool
    measured: bool
    base_s: float | None
    row_s: float | None
    missed: float | None


class Explanation(Struct):
    """What was seen in the last seconds, the share of requests among it that missed the objective, what is known of each way,
    and what would be tried now if nothing stood against it; `proposal` is empty if nothing would be.
    """

    seconds: float
    rate: float
    dispersion: float
    in_flight: float
    p50_s: float
    p99_s: float
    missed: float
    ways: list[WayKnown]
    proposal: dict[str, int | float | str | bool]
    reason: str
    gain: float


def explained(policy: KnobPolicy, pilot: Pilot, windows: Sequence[Window], now: float) -> Explanation:
    """Asks a copy of the policy, which remembers nothing of it."""
    window = joined(windows)
    knobs, space = pilot.knobs, pilot.space
    proposal = deepcopy(policy).act(window, knobs, space, now)
    rate = window.arrived / window.seconds
    rows = window.rows / window.answered if window.answered else 1.0
    load = Load(rate, max(rows, 1.0), max(window.dispersion, 1.0))
    present = (int(knobs["instances"]), int(knobs["threads"]))
    book = policy.book if isinstance(policy, Rules | Duel | Learnt) else None
    ways = []
    for way in space.ways:
        cost = None if book is None else book.cost(way, space.cores)
        missed = None
        if cost is not None and space.objective_s < inf:
            max_batch, wait_s = int(knobs["max_batch"]), float(knobs["max_wait_s"])
            missed = share_missed(cost, way[0], load, space.objective_s, max_batch=max_batch, wait_s=wait_s)
        measured = book is not None and book.knows(way)
        base_s, row_s = (None, None) if cost is None else (cost.base_s, cost.row_s)
        ways.append(WayKnown(*way, present=way == present, measured=measured, base_s=base_s, row_s=row_s, missed=missed))
    return Explanation(
        seconds=window.seconds,
        rate=rate,
        dispersion=window.dispersion,
        in_flight=window.in_flight,
        p50_s=window.p50_s,
        p99_s=window.p99_s,
        missed=window.missed / max(window.ended, 1),
        ways=ways,
        proposal={} if proposal is None else {n: v for n, v in proposal.knobs.items() if knobs.get(n) != v},
        reason="" if proposal is None else proposal.reason,
        gain=0.0 if proposal is None else proposal.gain,
    )
