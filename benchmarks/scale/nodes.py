"""One node of the simulated cluster: admission, batches and shedding as the production lane has them, for equal requests.

Used by cluster.py. Not aware of: who sends, what becomes of requests that are refused.
"""

from math import exp

import numpy as np

from benchmarks.scale.compiled import compiled
from benchmarks.scale.state import WAYS, Rules, State
from dlproxy.policy.fitting import SIGMAS

LEARNS = 0.2  # weight of one more batch in what a node takes its own batches to last


@compiled
def mean_s(rules: Rules, rows: int) -> float:
    """LatencyModel.mean."""
    return rules.base_s + rules.row_s * rows


@compiled
def p99_s(rules: Rules, rows: int) -> float:
    """LatencyModel.p99 of a line whose spread is known."""
    return mean_s(rules, rows) * (1.0 + SIGMAS * rules.cv)


@compiled
def admits(rules: Rules, state: State, node: int, now: float, left_s: float) -> bool:
    """Admission.admit: a place in the queue, and no prediction that it would be late."""
    queued = state.queued[node]
    if queued >= state.queue.shape[1]:
        return False
    if not rules.refuses:
        return True
    if left_s <= 0.0:
        return False
    if state.size[node] == 0 and queued == 0:
        return True
    slower, most = state.learnt[node], rules.most_batch
    before, left_over = queued // most, queued % most
    wait_s = before * mean_s(rules, most)
    own = min(left_over + 1, most)
    busy_s = 0.0
    if state.size[node] > 0:
        busy_s = max(state.began_at[node] + slower * mean_s(rules, state.size[node]) - now, 0.0)
    return bool(busy_s + slower * (wait_s + p99_s(rules, own)) <= left_s)


@compiled
def push(state: State, node: int, slot: int) -> None:
    places = state.queue.shape[1]
    state.queue[node, (state.head[node] + state.queued[node]) % places] = slot
    state.queued[node] += 1


@compiled
def pop(state: State, node: int) -> int:
    slot = state.queue[node, state.head[node]]
    state.head[node] = (state.head[node] + 1) % state.queue.shape[1]
    state.queued[node] -= 1
    return int(slot)


@compiled
def draw_s(rules: Rules, state: State, node: int, rows: int, random: np.random.Generator) -> float:
    """Seconds that a batch takes."""
    factor = exp(rules.sigma * random.standard_normal() - rules.sigma * rules.sigma / 2.0)
    return float(mean_s(rules, rows) * factor * state.slow[node])


@compiled
def learn(rules: Rules, state: State, node: int, service_s: float) -> None:
    """How much longer than expected batches take; a node that is as it always was stays at 1 but for its spread."""
    slower = service_s / mean_s(rules, state.size[node])
    state.learnt[node] += LEARNS * (slower - state.learnt[node])


@compiled
def set_of(state: State, key: int) -> int:
    """Where in a cache a key's places begin."""
    sets = state.cached.shape[1] // WAYS
    return int(key) * 2654435761 % 4294967296 % sets * WAYS


@compiled
def look_up(state: State, node: int, key: int) -> bool:
    """Whether the node has the key's answer, which then counts as just used."""
    first = set_of(state, key)
    for place in range(first, first + WAYS):
        if state.cached[node, place] == key:
            state.cached_at[node, place] = state.rows[node] + 1
            return True
    return False


@compiled
def keep(state: State, node: int, key: int) -> None:
    """Remember the key's answer in the place of the least recently used of its set."""
    first = set_of(state, key)
    oldest = first
    for place in range(first, first + WAYS):
        if state.cached[node, place] == key:
            return
        if state.cached_at[node, place] < state.cached_at[node, oldest]:
            oldest = place
    state.cached[node, oldest] = key
    state.cached_at[node, oldest] = state.rows[node] + 1
