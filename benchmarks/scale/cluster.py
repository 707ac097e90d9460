"""The cluster's loop: requests come at fronts, fronts choose nodes, nodes run batches, clients try again within a budget.

Called by scenarios.py and fidelity.py, for stretches of virtual time between which a scenario may break things.
Not aware of: what is compared, pages.
"""

from math import floor, inf, log

import numpy as np

from benchmarks.scale.balancers import choose, earn, ejected_for_s, observe, set_ready, spend, take_report
from benchmarks.scale.compiled import compiled
from benchmarks.scale.nodes import admits, draw_s, keep, learn, look_up, p99_s, pop, push
from benchmarks.scale.state import (
    ANSWERED,
    BIN_RATIO,
    BINS,
    FAILED,
    FIRST_BIN_S,
    HITS,
    IN_TIME,
    LOST,
    REFUSED,
    SENT,
    TIMED_OUT,
    TRIES,
    Rules,
    State,
)
from dlproxy.client.retries import FIRST_S

RESET_S = 1e-3  # until a front hears that a node is gone
BATCH, RETRY, BACK, LOSS, HIT = range(5)  # what happens later
KINDS = 8
LOG_RATIO = log(BIN_RATIO)
GIVEN_UP = -1  # in place of the tries of a slot whose client has left


@compiled
def later(state: State, at: float, kind: int, which: int) -> None:
    """Put something on the heap."""
    place = state.heap_size
    state.heap_size += 1
    times, what = state.heap_at, state.heap_what
    while place > 0:
        parent = (place - 1) // 2
        if times[parent] <= at:
            break
        times[place], what[place] = times[parent], what[parent]
        place = parent
    times[place], what[place] = at, which * KINDS + kind


@compiled
def take_next(state: State) -> int:
    """Take the first from the heap."""
    times, what = state.heap_at, state.heap_what
    first = what[0]
    size = state.heap_size - 1
    state.heap_size = size
    at, moved, place = times[size], what[size], 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and times[child + 1] < times[child]:
            child += 1
        if times[child] >= at:
            break
        times[place], what[place] = times[child], what[child]
        place = child
    times[place], what[place] = at, moved
    return int(first)


@compiled
def count(state: State, slot: int, what: int) -> None:
    """One more in the second in which the request was first sent."""
    second = min(int(state.due_at[slot]), len(state.seconds) - 1)
    state.seconds[second, what] += 1


@compiled
def new_slot(state: State) -> int:
    free = state.free_slots - 1
    if free < 0:
        raise MemoryError("more requests under way than the simulation has slots for")
    state.free_slots = free
    return int(state.free[free])


@compiled
def release(state: State, slot: int) -> None:
    state.sending[slot] += 1
    state.free[state.free_slots] = slot
    state.free_slots += 1


@compiled
def leave(rules: Rules, state: State, slot: int, ok: bool, now: float) -> None:
    """The try is over at its node and known at its front."""
    node, front = state.at_node[slot], state.front[slot]
    state.own[front, node] -= 1
    state.own_sum[front] -= 1
    observe(state, front, node, now - state.sent_at[slot], ok, now)


@compiled
def answered(rules: Rules, state: State, slot: int, now: float) -> None:
    """To the client's satisfaction."""
    latency_s = now - state.due_at[slot]
    count(state, slot, ANSWERED)
    if latency_s <= rules.slo_s:
        count(state, slot, IN_TIME)
    second = min(int(state.due_at[slot]), len(state.seconds) - 1)
    place = int(log(max(latency_s, FIRST_BIN_S) / FIRST_BIN_S) / LOG_RATIO)
    state.latencies[second, min(place, BINS - 1)] += 1
    release(state, slot)


@compiled
def failed(rules: Rules, state: State, slot: int, at_once: bool, now: float, random: np.random.Generator) -> None:
    """A try failed: again after a pause (Retries.pause_s), elsewhere at once if its node is gone, or not at all."""
    tries = state.tries[slot]
    pause_s = 0.0 if at_once else FIRST_S * 2.0 ** (tries - 1) * (0.5 + 0.5 * random.random())
    left_s = state.due_at[slot] + rules.patience_s - now
    if tries >= rules.most_tries or pause_s >= left_s or not spend(rules, state, state.front[slot], now):
        count(state, slot, FAILED)
        release(state, slot)
    elif pause_s > 0.0:
        later(state, now + pause_s, RETRY, slot)
    else:
        send(rules, state, slot, now, random)


@compiled
def begin(rules: Rules, state: State, node: int, now: float, random: np.random.Generator) -> None:
    """A batch of what waits, without what would be late (Shedding.sift)."""
    rows = 0
    finish_at = now + state.learnt[node] * p99_s(rules, min(state.queued[node], rules.most_batch))
    while rows < rules.most_batch and state.queued[node] > 0:
        slot = pop(state, node)
        deadline_at = state.sent_at[slot] + rules.slo_s
        others = rows + state.queued[node] > 0
        if rules.refuses and ((deadline_at < finish_at and others) or deadline_at <= now):
            change_load(rules, state, node, -1, now)
            own_end(rules, state, slot)
            count(state, slot, REFUSED)
            later(state, now, LOSS, slot * 2)  # heard of once this batch is chosen
            continue
        state.running[node, rows] = slot
        rows += 1
    state.size[node] = rows
    if rows == 0:
        return
    service_s = draw_s(rules, state, node, rows, random)
    state.began_at[node] = now
    state.serial[node] += 1
    later(state, now + service_s, BATCH, state.serial[node] % 1048576 * 1048576 + node)


@compiled
def own_end(rules: Rules, state: State, slot: int) -> None:
    """Refused after it had waited: its front has it no more in flight, and blames nobody for it."""
    front = state.front[slot]
    state.own[front, state.at_node[slot]] -= 1
    state.own_sum[front] -= 1


@compiled
def change_load(rules: Rules, state: State, node: int, by: int, now: float) -> None:
    if rules.age_s > 0.0:
        take_report(rules, state, node, now)
    state.in_flight[node] += by


@compiled
def sent(rules: Rules, state: State, slot: int) -> None:
    """One more in flight, as its front sees it."""
    front, node = state.front[slot], state.at_node[slot]
    state.own[front, node] += 1
    state.own_sum[front] += 1
    if rules.corrected:
        if state.since_number[front, node] != state.report_number[node]:
            state.since_number[front, node], state.since[front, node] = state.report_number[node], 0
        state.since[front, node] += 1


@compiled
def send(rules: Rules, state: State, slot: int, now: float, random: np.random.Generator) -> None:
    """One try of a request, at the node that its front chooses."""
    front = state.front[slot]
    node = choose(rules, state, front, state.key[slot], now, random)
    state.at_node[slot], state.sent_at[slot] = node, now
    state.tries[slot] += 1
    count(state, slot, TRIES)
    if state.alive[node] == 0:
        sent(rules, state, slot)
        later(state, now + RESET_S, LOSS, slot * 2 + 1)
        return
    if rules.keys > 0 and look_up(state, node, state.key[slot]):
        count(state, slot, HITS)
        change_load(rules, state, node, 1, now)
        sent(rules, state, slot)
        state.loop_free_at[node] = max(state.loop_free_at[node], now) + rules.hit_s
        later(state, state.loop_free_at[node], HIT, slot)
        return
    if not admits(rules, state, node, now, rules.slo_s):
        count(state, slot, REFUSED)
        later(state, now, LOSS, slot * 2)
        return
    change_load(rules, state, node, 1, now)
    sent(rules, state, slot)
    if rules.watched:
        tail = state.timeout_tail
        place = tail % len(state.timeout_at)
        state.timeout_at[place] = now + rules.slo_s
        state.timeout_slot[place], state.timeout_sending[place] = slot, state.sending[slot]
        state.timeout_tail = tail + 1
    push(state, node, slot)
    if state.size[node] == 0:
        begin(rules, state, node, now, random)


@compiled
def arrive(rules: Rules, state: State, now: float, random: np.random.Generator) -> None:
    """A request comes at one of the fronts."""
    state.arrival_at = now + random.exponential(1.0 / rules.rate)
    slot = new_slot(state)
    front = int(random.random() * rules.fronts)
    state.front[slot], state.due_at[slot], state.tries[slot] = front, now, 0
    if rules.keys > 0:
        state.key[slot] = np.searchsorted(state.popularity, random.random(), side="right")
    count(state, slot, SENT)
    if rules.share > 0.0:
        earn(state, front, now)
    send(rules, state, slot, now, random)


@compiled
def end_batch(rules: Rules, state: State, node: int, now: float, random: np.random.Generator) -> None:
    rows = state.size[node]
    service_s = now - state.began_at[node]
    learn(rules, state, node, service_s)
    if now >= rules.measure_from_s:
        state.busy_s[node] += min(service_s, now - rules.measure_from_s)
        state.batches[node] += 1
    state.rows[node] += rows
    change_load(rules, state, node, -rows, now)
    state.size[node] = 0
    for place in range(rows):
        slot = int(state.running[node, place])
        if rules.keys > 0:
            keep(state, node, state.key[slot])
        if state.tries[slot] == GIVEN_UP:
            release(state, slot)
            continue
        leave(rules, state, slot, True, now)
        if rules.eject_after and state.streak[state.front[slot], node] > 0:
            ejected_for_s(rules, state, state.front[slot], node, True)
        answered(rules, state, slot, now)
    if state.queued[node] > 0:
        begin(rules, state, node, now, random)


@compiled
def lost(rules: Rules, state: State, slot: int, now: float, random: np.random.Generator) -> None:
    """Its node is gone, and its front hears of it."""
    front, node = state.front[slot], state.at_node[slot]
    count(state, slot, LOST)
    leave(rules, state, slot, False, now)
    if rules.eject_after:
        seconds = ejected_for_s(rules, state, front, node, False)
        if seconds > 0.0:
            later(state, now + seconds, BACK, front * rules.nodes + node)
    failed(rules, state, slot, True, now, random)


@compiled
def give_up(rules: Rules, state: State, now: float, random: np.random.Generator) -> None:
    """A client has waited for the whole objective: it may try again, and the node does not know."""
    head = state.timeout_head
    state.timeout_head = head + 1
    place = head % len(state.timeout_at)
    slot = int(state.timeout_slot[place])
    if state.sending[slot] != state.timeout_sending[place]:
        return
    count(state, slot, TIMED_OUT)
    leave(rules, state, slot, False, now)
    again = new_slot(state)
    state.front[again], state.due_at[again] = state.front[slot], state.due_at[slot]
    state.tries[again], state.key[again] = state.tries[slot], state.key[slot]
    state.tries[slot] = GIVEN_UP
    failed(rules, state, again, False, now, random)


@compiled
def advance(rules: Rules, state: State, until: float, random: np.random.Generator) -> None:
    """Everything up to this instant."""
    while True:
        heap_at = state.heap_at[0] if state.heap_size > 0 else inf
        gives_up_at = inf
        if state.timeout_head < state.timeout_tail:
            gives_up_at = state.timeout_at[state.timeout_head % len(state.timeout_at)]
        arrival_at = state.arrival_at
        now = min(heap_at, gives_up_at, arrival_at)
        if now > until:
            return
        if heap_at == now:
            happen(rules, state, take_next(state), now, random)
        elif gives_up_at == now:
            give_up(rules, state, now, random)
        else:
            arrive(rules, state, now, random)


@compiled
def happen(rules: Rules, state: State, what: int, now: float, random: np.random.Generator) -> None:
    """Something from the heap."""
    kind, which = what % KINDS, what // KINDS
    if kind == BATCH:
        node, serial = which % 1048576, which // 1048576
        if state.serial[node] % 1048576 == serial and state.size[node] > 0:
            end_batch(rules, state, node, now, random)
    elif kind == RETRY:
        send(rules, state, which, now, random)
    elif kind == BACK:
        front, node = which // rules.nodes, which % rules.nodes
        state.streak[front, node] = rules.eject_after - 1  # on probation: one more failure, and it is out for longer
        set_ready(state, front, node, True)
    elif kind == HIT:
        change_load(rules, state, state.at_node[which], -1, now)
        leave(rules, state, which, True, now)
        answered(rules, state, which, now)
    elif which % 2:
        lost(rules, state, which // 2, now, random)
    else:
        failed(rules, state, which // 2, False, now, random)


@compiled
def lose(rules: Rules, state: State, first: int, last: int, now: float) -> None:
    """These nodes die with all that waits and runs there."""
    for node in range(first, last):
        state.alive[node] = 0
        change_load(rules, state, node, -(state.size[node] + state.queued[node]), now)
        for place in range(state.size[node]):
            lose_slot(state, int(state.running[node, place]), now)
        while state.queued[node] > 0:
            lose_slot(state, pop(state, node), now)
        state.size[node] = 0
        state.serial[node] += 1


@compiled
def lose_slot(state: State, slot: int, now: float) -> None:
    if state.tries[slot] == GIVEN_UP:
        release(state, slot)
    else:
        later(state, now + RESET_S, LOSS, slot * 2 + 1)


def revive(state: State, first: int, last: int) -> None:
    """They are back, idle and with empty caches."""
    state.alive[first:last] = 1
    state.learnt[first:last] = 1.0
    if len(state.cached) > 1:
        state.cached[first:last] = -1
        state.cached_at[first:last] = 0


def whole_seconds(until: float) -> int:
    """Rows of counters for a run that long."""
    return floor(until) + 1
