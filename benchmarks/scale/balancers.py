"""The production balancers, retry budget and ejection once more, over arrays: each decides as its original does.

Used by cluster.py; tests/benchmarks/test_scale.py compares them with `dlproxy.policy` decision by decision. Not aware of: time.
"""

from math import ceil, exp, floor, inf

import numpy as np

from benchmarks.scale.compiled import compiled
from benchmarks.scale.state import HASHED, LEAST, RANDOM, REPORTED, ROUND_ROBIN, Rules, State
from dlproxy.policy.balancing.latency import DECAY_S, ERROR_PENALTY, INITIAL_S, MAX_PENALTY, MAX_PENALTY_S, USUAL_GAIN
from dlproxy.policy.ejection import BASE_S, LONGEST_S, MOST_OUT
from dlproxy.policy.retry_budget import BUCKETS

BUCKET_S, LEAST_SPENT = 1.0, 30.0  # of RetryBudget() as clients and lanes make it
DOUBLINGS = 5


@compiled
def expected_s(state: State, front: int, node: int, now: float) -> float:
    """PeakEwma.expected_s."""
    value, at = state.expected_s[front, node], state.expected_at[front, node]
    if value < 0.0:
        usual_s = state.usual_s[front]
        value = min(usual_s, INITIAL_S) if usual_s > 0.0 else INITIAL_S
        if at < 0.0:
            state.expected_at[front, node] = at = now
    return value * exp((at - now) / DECAY_S)


@compiled
def observe(state: State, front: int, node: int, service_s: float, ok: bool, now: float) -> None:
    """PeakEwma.observe, with what Penalty lets it count as."""
    value, at = state.expected_s[front, node], state.expected_at[front, node]
    if value < 0.0:
        value, at = 0.0, now
    usual_s = state.usual_s[front]
    if ok:
        state.usual_s[front] = usual_s + (service_s - usual_s) * (USUAL_GAIN if usual_s > 0.0 else 1.0)
    else:
        usual_s = usual_s if usual_s > 0.0 else INITIAL_S
        most_s = max(MAX_PENALTY_S, MAX_PENALTY * usual_s)
        service_s = max(service_s, min(ERROR_PENALTY * max(value, usual_s), most_s))
    if service_s < value:
        keep = exp((at - now) / DECAY_S)
        service_s = keep * value + (1.0 - keep) * service_s
    state.expected_s[front, node], state.expected_at[front, node] = service_s, now


@compiled
def power_of_two(state: State, front: int, now: float, random: np.random.Generator) -> int:
    """PowerOfTwo(latency_aware=True).choose."""
    count = state.ready_count[front]
    ready = state.ready[front]
    if count == 1:
        return int(ready[0])
    first, second = int(random.random() * count), int(random.random() * (count - 1))
    second += second >= first
    one, other = ready[first], ready[second]
    cost = (state.own[front, one] + 1) * expected_s(state, front, one, now)
    return int(one if cost <= (state.own[front, other] + 1) * expected_s(state, front, other, now) else other)


@compiled
def least_peak_ewma(state: State, front: int, now: float) -> int:
    """LeastPeakEwma.choose."""
    least, chosen = inf, 0
    for place in range(state.ready_count[front]):
        node = state.ready[front, place]
        cost = (state.own[front, node] + 1) * expected_s(state, front, node, now)
        if cost < least:
            least, chosen = cost, int(node)
    return chosen


@compiled
def hashed(rules: Rules, state: State, front: int, key: int) -> int:
    """ConsistentHash.choose, of nodes of weight 1; what is in flight at ejected ones counts, too.

    `rules.bound_by_all`: by what all fronts have in flight, which no front can know; the paper has one that does.
    """
    per_node = inf
    if rules.bound < inf:
        busy = np.int64(0)
        if rules.bound_by_all:
            for each in range(rules.fronts):
                busy += state.own_sum[each]
        else:
            busy = state.own_sum[front]
        per_node = ceil(rules.bound * (busy + 1) / state.ready_count[front])
    places = len(state.ring_owner)
    for step in range(places):
        node = state.ring_owner[(state.ring_place[key] + step) % places]
        load = state.in_flight[node] if rules.bound_by_all else state.own[front, node]
        if state.place[front, node] >= 0 and load < per_node:
            return int(node)
    return int(state.ready[front, 0])


@compiled
def take_report(rules: Rules, state: State, node: int, now: float) -> None:
    """Bring what it last reported up to date; called before its number changes, and when somebody looks."""
    number = np.int64(floor((now - state.report_phase[node]) / rules.age_s))
    if number > state.report_number[node]:
        state.report_number[node] = number
        state.reported[node] = state.in_flight[node]


@compiled
def load_of(rules: Rules, state: State, front: int, node: int, now: float) -> int:
    """What a front believes that is in flight there."""
    if rules.age_s <= 0.0:
        return int(state.in_flight[node])
    take_report(rules, state, node, now)
    load = state.reported[node]
    if rules.corrected and state.since_number[front, node] == state.report_number[node]:
        load += state.since[front, node]
    return int(load)


@compiled
def least_reported(rules: Rules, state: State, front: int, now: float, random: np.random.Generator) -> int:
    """The least loaded by reports of `choices` drawn nodes (of all, if that is as many), from a place drawn at random."""
    count = state.ready_count[front]
    all_of_them = rules.choices >= count
    first = int(random.random() * count)
    chosen = int(state.ready[front, first])
    least = load_of(rules, state, front, chosen, now)
    for number in range(1, min(rules.choices, count)):
        if all_of_them:
            place = (first + number) % count
        else:
            place = int(random.random() * (count - 1))
            place += place >= first
        node = int(state.ready[front, place])
        load = load_of(rules, state, front, node, now)
        if load < least:
            least, chosen = load, node
    return chosen


@compiled
def choose(rules: Rules, state: State, front: int, key: int, now: float, random: np.random.Generator) -> int:
    """The node that gets a front's next request."""
    if rules.policy == RANDOM:
        return int(state.ready[front, int(random.random() * state.ready_count[front])])
    if rules.policy == ROUND_ROBIN:
        state.turn[front] += 1
        return int(state.ready[front, (state.turn[front] - 1) % state.ready_count[front]])
    if rules.policy == LEAST:
        return least_peak_ewma(state, front, now)
    if rules.policy == REPORTED:
        return least_reported(rules, state, front, now, random)
    if rules.policy == HASHED:
        return hashed(rules, state, front, key)
    return power_of_two(state, front, now, random)


@compiled
def set_ready(state: State, front: int, node: int, ready: bool) -> None:
    place, last = state.place[front, node], state.ready_count[front] - 1
    if ready and place < 0:
        state.ready[front, last + 1] = node
        state.place[front, node] = last + 1
        state.ready_count[front] = last + 2
    elif not ready and place >= 0:
        moved = state.ready[front, last]
        state.ready[front, place] = moved
        state.place[front, moved] = place
        state.place[front, node] = -1
        state.ready_count[front] = last


@compiled
def ejected_for_s(rules: Rules, state: State, front: int, node: int, ok: bool) -> float:
    """OutlierEjection.observe for errors in a row: how long it is out, 0 if it is not. Longer each time, never over half."""
    if ok:
        state.streak[front, node] = 0
        return 0.0
    state.streak[front, node] += 1
    out = rules.subset - state.ready_count[front]
    if state.streak[front, node] < rules.eject_after or state.place[front, node] < 0:
        return 0.0
    if out + 1 > int(rules.subset * MOST_OUT):
        return 0.0
    set_ready(state, front, node, False)
    seconds = min(BASE_S * 2.0 ** state.doublings[front, node], LONGEST_S)
    state.doublings[front, node] = min(state.doublings[front, node] + 1, DOUBLINGS)
    return seconds


@compiled
def advance_budget(state: State, front: int, now: float) -> None:
    """RetryBudget._advance; the twelfth places hold the sums."""
    bucket, before = np.int64(floor(now / BUCKET_S)), state.bucket[front]
    for passed in range(max(before, bucket - BUCKETS - 1) + 1, bucket + 1):
        index = passed % (BUCKETS + 1)
        state.earned[front, BUCKETS + 1] -= state.earned[front, index]
        state.spent[front, BUCKETS + 1] -= state.spent[front, index]
        state.earned[front, index] = state.spent[front, index] = 0
    state.bucket[front] = bucket


@compiled
def earn(state: State, front: int, now: float) -> None:
    """RetryBudget.earn of one request."""
    advance_budget(state, front, now)
    state.earned[front, state.bucket[front] % (BUCKETS + 1)] += 1
    state.earned[front, BUCKETS + 1] += 1


@compiled
def spend(rules: Rules, state: State, front: int, now: float) -> bool:
    """RetryBudget.spend of one request; an infinite share is no budget at all."""
    if rules.share <= 0.0:
        return False
    advance_budget(state, front, now)
    if rules.share < inf and state.spent[front, BUCKETS + 1] + 1 > rules.share * state.earned[front, BUCKETS + 1] + LEAST_SPENT:
        return False
    state.spent[front, state.bucket[front] % (BUCKETS + 1)] += 1
    state.spent[front, BUCKETS + 1] += 1
    return True
