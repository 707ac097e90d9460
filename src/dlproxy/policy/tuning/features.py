"""What a learnt policy sees: a window of telemetry as numbers of about one that mean the same for every model and machine.

Times are in objectives and rates in capacities, so what was learnt on one model serves another. Pure. Called by agent.py.
Not aware of: networks.
"""

from collections.abc import Sequence
from math import inf, isfinite, log2

from msgspec import Struct

from dlproxy.policy.tuning.moves import MOVES, moved
from dlproxy.policy.tuning.protocol import Knobs, Proposal, Space, cores_of
from dlproxy.policy.tuning.rules import CostBook, Load, batch_within, load_in
from dlproxy.policy.tuning.window import Window

MOST = 3.0  # of every feature, to either side
FLAT_S = 1.0  # stands for an objective where there is none

_LOAD = ("answers", "missed", "missed_of_tolerated", "refused", "p50", "p99", "busy", "under_way", "dispersion", "rows")
_MODEL = ("known", "utilisation", "predicted_missed", "seen_less_predicted", "fixed_part", "single", "suiting", "batch")
_KNOBS = ("instances", "threads", "of_cores", "cores", "max_batch_of_suiting", "wait", "short_first")
_AIMS = ("prefers_cores", "prefers_rate")
_ADVICE = ("advised", "gain", "harmless", "advised_way_known", "advised_cores")

NAMES: tuple[str, ...] = (
    *_LOAD,
    *_MODEL,
    *_KNOBS,
    *_AIMS,
    *_ADVICE,
    *[f"{move.name.lower()}_misses_less" for move in MOVES[2:]],
)


def suiting(knobs: Knobs, space: Space, book: CostBook) -> int:
    """Rows of a batch that suit the objective, as the lane finds them; 0 while nothing is known."""
    cost = book.cost(_way(knobs), space.cores)
    return 0 if cost is None else batch_within(cost, min(space.objective_s, FLAT_S), space.max_batch)


class Outcome(Struct, frozen=True):
    """Of a move that turns knobs by itself: the knobs after it, None where it is not possible; and by how much fewer requests
    are predicted to miss the objective, 0 where nothing is known.
    """

    after: Knobs | None
    gain: float


def outcomes(window: Window, knobs: Knobs, space: Space, book: CostBook) -> list[Outcome]:
    """Of MOVES from the third on: all but to leave it, and what the rules advise."""
    load, suits = load_in(window), suiting(knobs, space, book)
    here = _predicted(load, knobs, space, book) if suits else 0.0
    found = []
    for move in MOVES[2:]:
        after = moved(knobs, move, space, suiting=suits)
        gain = here - _predicted(load, after, space, book) if suits and after is not None else 0.0
        found.append(Outcome(after, gain))
    return found


def features(
    window: Window,
    knobs: Knobs,
    space: Space,
    book: CostBook,
    advice: Proposal | None = None,
    known: Sequence[Outcome] | None = None,
) -> tuple[float, ...]:
    """One number for each of NAMES, finite, from -MOST to MOST. `book`: what batches cost, as seen until now. `known`: outcomes
    of these very knobs, if somebody has asked for them.
    """
    load, objective_s = load_in(window), min(space.objective_s, FLAT_S)
    known = outcomes(window, knobs, space, book) if known is None else known
    found = [
        *_of_load(window, load, objective_s, space.tolerated),
        *_of_model(window, load, knobs, space, book),
        *_of_knobs(knobs, space, book),
        float(space.prefers == "cores"),
        float(space.prefers == "rate"),
        *_of_advice(advice, knobs, space, book),
        *[outcome.gain for outcome in known],
    ]
    return tuple([_bounded(value) for value in found])


def _of_load(window: Window, load: Load, objective_s: float, tolerated: float) -> Sequence[float]:
    ended = max(window.ended, 1)
    missed = window.missed / ended
    return (
        log2(ended) / 4.0 - 1.5,
        missed,
        _doublings((missed + tolerated / 10.0) / max(tolerated, 1e-3)) / 2.0,
        window.refused / ended,
        _doublings(window.p50_s / objective_s) / 2.0,
        _doublings(window.p99_s / objective_s) / 2.0,
        window.busy / max(window.up, 1),
        _doublings((window.in_flight + 1.0) / (load.rate * load.rows * objective_s + 1.0)) / 2.0,
        _doublings(load.dispersion) / 3.0,
        _doublings(load.rows) / 3.0,
    )


def _of_model(window: Window, load: Load, knobs: Knobs, space: Space, book: CostBook) -> Sequence[float]:
    cost = book.cost(_way(knobs), space.cores)
    if cost is None:
        return (0.0,) * len(_MODEL)
    objective_s, missed = min(space.objective_s, FLAT_S), _predicted(load, knobs, space, book)
    batches = sum([count for count, _ in window.costs.values()])
    rows = sum([size * count for size, (count, _) in window.costs.items()])
    suits = suiting(knobs, space, book)
    return (
        float(book.knows(_way(knobs))),
        _doublings(load.rate * load.rows / max(book.capacity(knobs, space), 1e-9)) / 2.0,
        missed,
        window.missed / max(window.ended, 1) - missed,
        cost.base_s / max(cost.seconds(1.0), 1e-12),
        _doublings(objective_s / max(cost.seconds(1.0), 1e-12)) / 3.0,
        _doublings(suits) / 4.0,
        _doublings(rows / batches / suits) / 2.0 if batches else 0.0,
    )


def _of_knobs(knobs: Knobs, space: Space, book: CostBook) -> Sequence[float]:
    instances, threads = _way(knobs)
    objective_s = min(space.objective_s, FLAT_S)
    return (
        _doublings(instances) / 2.0,
        _doublings(threads) / 2.0,
        _doublings(cores_of(knobs) / max(space.cores, 1)) / 2.0,
        _doublings(max(space.cores, 1)) / 3.0,
        _doublings(int(knobs.get("max_batch", 1)) / (suiting(knobs, space, book) or space.max_batch)) / 3.0,
        float(knobs.get("max_wait_s", 0.0)) / objective_s,
        float(knobs.get("discipline") == "sjf"),
    )


def _of_advice(advice: Proposal | None, knobs: Knobs, space: Space, book: CostBook) -> Sequence[float]:
    if advice is None or not space.allows(advice.knobs, knobs):
        return (0.0,) * len(_ADVICE)
    known = book.knows(_way(advice.knobs))
    return 1.0, advice.gain, float(advice.harmless), float(known), _doublings(cores_of(advice.knobs) / cores_of(knobs)) / 2.0


def _predicted(load: Load, knobs: Knobs, space: Space, book: CostBook) -> float:
    return book.missed(knobs, load, space) if space.objective_s < inf else 0.0


def _way(knobs: Knobs) -> tuple[int, int]:
    return int(knobs["instances"]), int(knobs["threads"])


def _doublings(ratio: float) -> float:
    return log2(min(max(ratio, 2.0**-20), 2.0**20))


def _bounded(value: float) -> float:
    return min(max(value, -MOST), MOST) if isfinite(value) else 0.0
