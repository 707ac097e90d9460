"""What a learnt policy may do in one step: a fixed table, the same for every model, so that a network has an output for each.

Pure. Called by agent.py, and by lab/learn/agent, where the network is trained. Not aware of: networks, which move is good.
"""

from collections.abc import Mapping
from enum import StrEnum

from dlproxy.policy.tuning.protocol import Knobs, Space, Value

SHORTEST_WAIT, LONGEST_WAIT = 1.0 / 64.0, 1.0 / 4.0  # of the objective, but for none
LONGEST_S = 1.0


class Move(StrEnum):
    """Never in another order, and never one that means something else: networks that were exported count on both."""

    LEAVE = "leave it"
    ADVISED = "as the rules advise"
    NO_WAIT = "no wait"
    LONGER_WAIT = "longer wait"
    SHORTER_WAIT = "shorter wait"
    MOST_ROWS = "batches as large as can be"
    SUITING_ROWS = "batches that suit the objective"
    HALF_ROWS = "batches half as large"
    QUARTER_ROWS = "batches a quarter as large"
    TWICE_ROWS = "batches twice as large"
    MORE_INSTANCES = "more instances"
    FEWER_INSTANCES = "fewer instances"
    MORE_THREADS = "more threads"
    FEWER_THREADS = "fewer threads"
    INTO_THREADS = "threads instead of instances"
    INTO_INSTANCES = "instances instead of threads"
    ALL_INSTANCES = "as many instances as there are cores"
    ALL_THREADS = "one instance on all cores"
    SHORT_FIRST = "short requests first"
    DUE_FIRST = "urgent requests first"


MOVES: tuple[Move, ...] = tuple(Move)


def moved(knobs: Knobs, move: Move, space: Space, *, suiting: int = 0, advised: Knobs | None = None) -> Knobs | None:
    """These knobs after the move; None if it is not possible, changes nothing, or is not allowed.

    `suiting`: rows of a batch that suit the objective, 0 if unknown. `advised`: what the rules would have.
    """
    if move is Move.LEAVE:
        return None
    if move is Move.ADVISED:
        return advised if advised is not None and advised != knobs and space.allows(advised, knobs) else None
    changes = _waited(knobs, move, space) or _sized(knobs, move, space, suiting) or _run(knobs, move, space)
    if move in (Move.SHORT_FIRST, Move.DUE_FIRST):
        changes = {"discipline": "sjf" if move is Move.SHORT_FIRST else "edf"}
    after = {**knobs, **changes}
    return after if after != knobs and space.allows(after, knobs) else None


def _waited(knobs: Knobs, move: Move, space: Space) -> Mapping[str, Value]:
    wait_s, unit_s = float(knobs.get("max_wait_s", 0.0)), min(space.objective_s, LONGEST_S)
    if move is Move.NO_WAIT:
        return {"max_wait_s": 0.0}
    if move is Move.LONGER_WAIT:
        longer_s = max(2.0 * wait_s, SHORTEST_WAIT * unit_s)
        return {"max_wait_s": longer_s} if longer_s <= LONGEST_WAIT * unit_s else {}
    if move is Move.SHORTER_WAIT:
        return {"max_wait_s": wait_s / 2.0} if wait_s >= 2.0 * SHORTEST_WAIT * unit_s else {}
    return {}


def _sized(knobs: Knobs, move: Move, space: Space, suiting: int) -> Mapping[str, Value]:
    rows, most = int(knobs.get("max_batch", 1)), space.max_batch
    run = min(rows, suiting or most)  # larger bounds than what suits the objective bound nothing
    sizes = {
        Move.MOST_ROWS: most,
        Move.SUITING_ROWS: min(suiting, most) or rows,
        Move.HALF_ROWS: max(run // 2, 1),
        Move.QUARTER_ROWS: max(run // 4, 1),
        Move.TWICE_ROWS: min(2 * rows, most),
    }
    return {"max_batch": sizes[move]} if move in sizes else {}


def _run(knobs: Knobs, move: Move, space: Space) -> Mapping[str, Value]:
    instances, threads = int(knobs.get("instances", 1)), int(knobs.get("threads", 1))
    ways = space.ways
    fitting = [way for way in ways if way[0] * way[1] <= space.cores]
    found: tuple[int, int] | None = None
    if move is Move.MORE_INSTANCES:
        found = min([way for way in ways if way[0] > instances and way[1] == threads], default=None)
    elif move is Move.FEWER_INSTANCES:
        found = max([way for way in ways if way[0] < instances and way[1] == threads], default=None)
    elif move is Move.MORE_THREADS:
        found = min([way for way in ways if way[0] == instances and way[1] > threads], default=None)
    elif move is Move.FEWER_THREADS:
        found = max([way for way in ways if way[0] == instances and way[1] < threads], default=None)
    elif move is Move.INTO_THREADS:
        found = max([way for way in ways if way[0] < instances and way[1] > threads], default=None)
    elif move is Move.INTO_INSTANCES:
        found = max([way for way in ways if way[0] > instances and way[1] < threads], key=_threads_first, default=None)
    elif move is Move.ALL_INSTANCES:
        found = max(fitting, default=None)
    elif move is Move.ALL_THREADS:
        found = max(fitting, key=_threads_first, default=None)
    return {} if found is None else {"instances": found[0], "threads": found[1]}


def _threads_first(way: tuple[int, int]) -> tuple[int, int]:
    return way[1], way[0]
