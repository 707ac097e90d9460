"""All that a simulated cluster is at one instant, as numbers and arrays: what Numba compiles loops over.

Made by cluster.py. Not aware of: what changes it.
"""

from math import log, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.scale.compiled import compiled_class

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Int32s = NDArray[np.int32]

RANDOM, ROUND_ROBIN, TWO, LEAST, REPORTED, HASHED = range(6)  # policies
BINS, FIRST_BIN_S, BIN_RATIO = 2400, 1e-4, 1.005  # of latencies: 0.1 ms to 16 s in steps of 0.5 %
SENT, TRIES, ANSWERED, IN_TIME, FAILED, REFUSED, TIMED_OUT, HITS, LOST, COUNTS = range(10)
WAYS = 8  # places in which a key may be in a node's cache


class Rules(NamedTuple):
    """What does not change. A batch of b rows takes base_s + row_s * b, times a log-normal factor of variation `cv`.

    `age_s`: between two reports of a node; `corrected`: fronts add what they have sent since. `bound`: of hashing, infinite
    for none. `refuses`: nodes refuse what would be late. `watched`: clients give up after the objective. `share`: retry budget.
    `hit_s`: what an answer from a cache takes of its node's loop. `subset`: nodes that each front sends to.
    """

    nodes: int
    fronts: int
    rate: float
    base_s: float
    row_s: float
    cv: float
    sigma: float
    most_batch: int
    slo_s: float
    policy: int
    choices: int
    age_s: float
    corrected: bool
    bound: float
    bound_by_all: bool
    refuses: bool
    watched: bool
    share: float
    most_tries: int
    patience_s: float
    eject_after: int
    measure_from_s: float
    keys: int
    hit_s: float
    subset: int


_NAMES = {
    (np.int64, 2): "seconds latencies since_number earned spent cached_at",
    (
        np.int32,
        1,
    ): "alive head queued size in_flight reported ready_count free tries front at_node key timeout_slot ring_place ring_owner",
    (
        np.float64,
        1,
    ): "slow learnt loop_free_at began_at busy_s report_phase usual_s due_at sent_at heap_at timeout_at popularity",
    (np.int32, 2): "queue running own since ready place streak doublings cached",
    (np.int64, 1): "serial rows batches report_number own_sum turn bucket sending heap_what timeout_sending",
    (np.float64, 2): "expected_s expected_at",
    (np.int64, 0): "free_slots heap_size timeout_head timeout_tail",
    (np.float64, 0): "arrival_at",
}
FIELDS = {name: kind for kind, names in _NAMES.items() for name in names.split()}
"""The type and the axes of each attribute of State."""


@compiled_class(FIELDS)
class State:
    """What changes. A slot holds one try of a request."""

    def __init__(self, rules: Rules, seconds: int, queue: int, slots: int, sets: int) -> None:
        self.arrival_at = 0.0
        self.free_slots = slots
        self.heap_size = self.timeout_head = self.timeout_tail = 0
        self.seconds = np.zeros((seconds, COUNTS), np.int64)
        self.latencies = np.zeros((seconds, BINS), np.int64)
        self._have_nodes(rules.nodes, rules.most_batch, queue, sets)
        self._have_fronts(rules.fronts, rules.nodes, rules.subset, rules.nodes if rules.corrected else 1)
        self._have_slots(slots, slots if rules.watched else 1, slots + rules.nodes * (4 + rules.fronts))
        self.popularity = np.ones(1)
        self.ring_place = np.zeros(1, np.int32)
        self.ring_owner = np.zeros(1, np.int32)

    def _have_nodes(self, nodes: int, most_batch: int, queue: int, sets: int) -> None:
        self.alive = np.ones(nodes, np.int32)
        self.slow = np.ones(nodes)
        self.learnt = np.ones(nodes)
        self.loop_free_at = np.zeros(nodes)
        self.queue = np.zeros((nodes, queue), np.int32)
        self.head = np.zeros(nodes, np.int32)
        self.queued = np.zeros(nodes, np.int32)
        self.running = np.zeros((nodes, most_batch), np.int32)
        self.size = np.zeros(nodes, np.int32)
        self.serial = np.zeros(nodes, np.int64)
        self.began_at = np.zeros(nodes)
        self.busy_s = np.zeros(nodes)
        self.rows = np.zeros(nodes, np.int64)
        self.batches = np.zeros(nodes, np.int64)
        self.in_flight = np.zeros(nodes, np.int32)
        self.reported = np.zeros(nodes, np.int32)
        self.report_number = np.zeros(nodes, np.int64)
        self.report_phase = np.zeros(nodes)
        self.cached = np.full((nodes if sets else 1, max(sets, 1) * WAYS), -1, np.int32)
        self.cached_at = np.zeros((nodes if sets else 1, max(sets, 1) * WAYS), np.int64)

    def _have_fronts(self, fronts: int, nodes: int, subset: int, corrected: int) -> None:
        """And what each knows of each node."""
        self.own = np.zeros((fronts, nodes), np.int32)
        self.own_sum = np.zeros(fronts, np.int64)
        self.expected_s = np.full((fronts, nodes), -1.0)
        self.expected_at = np.full((fronts, nodes), -1.0)
        self.usual_s = np.zeros(fronts)
        self.turn = np.zeros(fronts, np.int64)
        self.since = np.zeros((fronts, corrected), np.int32)
        self.since_number = np.zeros((fronts, corrected), np.int64)
        self.ready = np.zeros((fronts, nodes), np.int32)
        self.place = np.zeros((fronts, nodes), np.int32)
        for front in range(fronts):
            for node in range(nodes):
                self.ready[front, node] = self.place[front, node] = node
        self.ready_count = np.full(fronts, subset, np.int32)
        self.streak = np.zeros((fronts, nodes), np.int32)
        self.doublings = np.zeros((fronts, nodes), np.int32)
        self.earned = np.zeros((fronts, 12), np.int64)
        self.spent = np.zeros((fronts, 12), np.int64)
        self.bucket = np.zeros(fronts, np.int64)

    def _have_slots(self, slots: int, watched: int, events: int) -> None:
        self.free = np.arange(slots).astype(np.int32)
        self.due_at = np.zeros(slots)
        self.sent_at = np.zeros(slots)
        self.tries = np.zeros(slots, np.int32)
        self.front = np.zeros(slots, np.int32)
        self.at_node = np.zeros(slots, np.int32)
        self.key = np.zeros(slots, np.int32)
        self.sending = np.zeros(slots, np.int64)
        self.heap_at = np.zeros(events)
        self.heap_what = np.zeros(events, np.int64)
        self.timeout_at = np.zeros(watched)
        self.timeout_slot = np.zeros(watched, np.int32)
        self.timeout_sending = np.zeros(watched, np.int64)


def rules(
    *,
    nodes: int,
    fronts: int,
    rate: float,
    base_s: float = 5e-3,
    row_s: float = 0.5e-3,
    cv: float = 0.1,
    slo_s: float = 0.05,
    most_batch: int = 25,
    policy: int = TWO,
    choices: int = 2,
    age_s: float = 0.0,
    corrected: bool = False,
    bound: float = 1.25,
    bound_by_all: bool = False,
    refuses: bool = True,
    share: float = 0.0,
    most_tries: int = 1,
    patience_s: float = 1.0,
    eject_after: int = 5,
    measure_from_s: float = 1.0,
    keys: int = 0,
    hit_s: float = 50e-6,
    subset: int = 0,
) -> Rules:
    """With defaults: 1,000 requests a second are 70 % of what a node can do in batches of 25, the goal of its lane."""
    return Rules(
        nodes,
        fronts,
        float(rate),
        base_s,
        row_s,
        cv,
        sqrt(log(1.0 + cv * cv)),
        most_batch,
        slo_s,
        policy,
        choices,
        float(age_s),
        corrected,
        float(bound),
        bound_by_all,
        refuses,
        not refuses,
        float(share),
        most_tries,
        patience_s,
        eject_after,
        measure_from_s,
        keys,
        hit_s,
        subset or nodes,
    )


def state(
    rules: Rules,
    seconds: int,
    random: np.random.Generator,
    *,
    queue: int = 512,
    slots: int = 0,
    popularity: Floats | None = None,
    ring: tuple[Int32s, Int32s] | None = None,
    answers: int = 0,
) -> State:
    """Idle nodes, fronts that know nothing. `ring`: the places of keys, and who has each place. `answers`: a node's cache."""
    slots = slots or max(int(rules.rate * 0.5), rules.nodes * 64, 1024)
    made = State(rules, seconds, queue, slots, -(-answers // WAYS))
    made.arrival_at = random.exponential(1.0 / rules.rate)
    made.report_phase = random.random(rules.nodes) * rules.age_s
    if rules.subset < rules.nodes:
        made.ready, made.place = _subsets(rules, random)
    if popularity is not None:
        made.popularity = popularity
    if ring is not None:
        made.ring_place, made.ring_owner = ring
    return made


def _subsets(rules: Rules, random: np.random.Generator) -> tuple[Int32s, Int32s]:
    """Nodes in an order drawn anew once all have been given out, so that each has as many fronts as the others.

    Source: Beyer et al., "Site Reliability Engineering" (2016), chapter 20, deterministic subsetting.
    """
    of = rules.nodes // rules.subset
    ready, place = np.zeros((rules.fronts, rules.nodes), np.int32), np.full((rules.fronts, rules.nodes), -1, np.int32)
    order = np.arange(rules.nodes)
    for front in range(rules.fronts):
        if front % of == 0:
            order = random.permutation(rules.nodes)
        mine = order[front % of * rules.subset :][: rules.subset]
        ready[front, : rules.subset] = mine
        place[front, mine] = np.arange(rules.subset)
    return ready, place
