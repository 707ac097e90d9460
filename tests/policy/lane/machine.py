"""A state machine that throws everything at a lane, under every combination of knobs; observer.py checks each answer.

Used by test_invariants.py, on the real lane and on lanes with a seeded bug.
"""

from itertools import count, product
from math import inf
from typing import Any, ClassVar

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from dlproxy.message import Ticket
from dlproxy.policy.balancing import BALANCERS
from dlproxy.policy.events import (
    Arrived,
    BatchDone,
    Cancelled,
    Closing,
    Command,
    Event,
    FirstPart,
    InstanceExpected,
    InstanceLost,
    InstanceUp,
    KnobsChanged,
    Reject,
    TimerFired,
    TurnGranted,
)
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.partition import split
from dlproxy.policy.queueing import DISCIPLINES

from .fixtures import LINE, PLAIN, remembered, warmed
from .observer import Observer

NAMES = "abcd"
MAX_TICKET_ROWS = 4  # no more than any queue bound below, so that the bound is strict
VALUES: dict[str, tuple[Any, ...]] = {
    "max_batch": (8, 2, 1),
    "max_queue_rows": (MAX_TICKET_ROWS, 6),
    "slo_s": (0.040, 0.100),
    "max_wait_s": (0.020, 0.005),
    "max_batch_s": (0.012,),
    "discipline": DISCIPLINES,
    "starvation_s": (0.010, 60.0),
    "ageing_s": (0.001, 60.0),
    "tenant_weights": ({"x": 5.0}, {"x": 0.1, "y": 2.0}),
    "balancer": BALANCERS,
    "slow_start_s": (0.1, 30.0),
    "codel_target_s": (0.001, 0.010),
    "adaptive_limit": (True,),
    "retry_budget": (0.0, 1.0),
    "hedge": (True,),
    "eject_after": (1, 0),
    "arbitrated": (True,),
    "leased": (True,),
}
CHANGES = st.lists(st.sampled_from([(name, value) for name, values in VALUES.items() for value in values]), max_size=8)
# ((seconds to the deadline, to that of the client), shape, rows, (priority, tenant, affinity)), the plainest first
DUE_S = ((inf, inf), (0.040, inf), (0.015, inf), (0.0, inf), (0.040, 0.040), (0.015, 0.060), (0.0, 0.0))
CLIENTS = ((0, "", ""), (1, "x", "k"), (8, "y", "l"), (6, "x", ""))
TICKETS = list(product(DUE_S, ((), (9,)), (1, 2, MAX_TICKET_ROWS), CLIENTS))
ARRIVALS = st.lists(st.sampled_from(TICKETS), min_size=1, max_size=6)
STEPS_S = st.sampled_from([0.001, 0.010, 0.016, 0.100, 12.0])


def numbers(least: int, most: int) -> st.SearchStrategy[int]:
    """Drawn alike whatever else is imported: hypothesis mixes constants of the code that it sees into integers."""
    return st.sampled_from(range(least, most + 1))


PICK = numbers(0, 11)  # taken modulo how many there are
NONE_TO_STEP = st.sampled_from([0.0, 0.0, 0.003, 0.020, 0.060])
WAITS_S = st.sampled_from([-inf, 0.0, 0.020, 5.0])
WEIGHTS = st.sampled_from([1.0, 0.2, 5.0])
REFUSALS = ("no_instance", "closing", "queue_full", "predicted_late", "adaptive_limit")
Change = tuple[str, Any]


class LaneMachine(RuleBasedStateMachine):
    """Each rule is an event. `begins_with` are knobs to start with, `always` are knobs that never change."""

    lane_class: type[Lane] = Lane
    observer_class: type[Observer] = Observer
    begins_with: ClassVar[dict[str, Any]] = {}
    always: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.sound = False

    @initialize(changes=CHANGES, instances=numbers(1, len(NAMES)), capacity=numbers(1, 2))
    def start(self, changes: list[Change], instances: int, capacity: int) -> None:
        self.first_knobs = self.knobs_with([*changes, *self.begins_with.items()])
        self.observer = self.observer_class(warmed(self.lane_class(self.first_knobs, LINE)), self.first_knobs)
        for name in NAMES[:instances]:
            self.tell(InstanceUp(name, capacity))

    # Events

    @rule(arrivals=ARRIVALS)
    def arrive(self, arrivals: list[tuple[tuple[float, float], tuple[int, ...], int, tuple[int, str, str]]]) -> None:
        now, first = self.observer.now, len(self.observer.tickets)
        new = []
        for number, ((left_s, own_s), shape, rows, (priority, tenant, affinity)) in enumerate(arrivals, start=first):
            times = {"deadline_at": now + left_s, "answer_by": now + own_s}
            new.append(
                Ticket(number, now, rows=rows, priority=priority, tenant=tenant, shape_key=shape, affinity=affinity, **times)
            )
        self.tell(Arrived(new))

    @precondition(lambda self: self.observer.tickets)  # part_of = 0 says that it is no part
    @rule(ticket=st.sampled_from(TICKETS), rows=numbers(2, MAX_TICKET_ROWS), part_rows=numbers(1, 2))
    def arrive_in_parts(
        self, ticket: tuple[tuple[float, float], tuple[int, ...], int, tuple[int, str, str]], rows: int, part_rows: int
    ) -> None:
        """As one request, which is taken in as a whole or not at all."""
        now, first = self.observer.now, len(self.observer.tickets)
        (left_s, own_s), shape, _, (priority, tenant, affinity) = ticket
        whole = Ticket(first, now, now + left_s, rows, priority, tenant, shape, affinity=affinity, answer_by=now + own_s)
        tickets = split(whole, part_rows, count(first + 1))
        self.tell(Arrived(tickets))
        commands = msgspec.msgpack.decode(self.observer.log[-1][2], type=list[Command])
        refused = [command for command in commands if isinstance(command, Reject) and command.reason in REFUSALS]
        assert len(refused) in (0, len(tickets)), "a request was taken in with some of its parts only"

    @rule(pick=numbers(0, 40))
    def cancel_anyone(self, pick: int) -> None:
        self.tell(Cancelled(pick))  # waiting, running, answered, or never seen

    @precondition(lambda self: self.observer.unanswered())
    @rule(pick=PICK)
    def cancel_unanswered(self, pick: int) -> None:
        unanswered = self.observer.unanswered()
        self.tell(Cancelled(unanswered[pick % len(unanswered)]))

    @precondition(lambda self: self.observer.running)
    @rule(pick=PICK, step_s=NONE_TO_STEP, slowness=st.sampled_from([1.0, 0.3, 4.0]))
    def finish(self, pick: int, step_s: float, slowness: float) -> None:
        self.observer.now += step_s
        self.end_batch(pick, slowness=slowness)

    @rule(pick=PICK, step_s=NONE_TO_STEP, slowness=st.sampled_from([1.0, 0.3, 4.0]))
    def begins_to_answer_in_parts(self, pick: int, step_s: float, slowness: float) -> None:
        fresh = [number for number, run in self.observer.running.items() if run.first_s is None]
        self.observer.now += step_s
        if fresh:
            number = fresh[pick % len(fresh)]
            self.tell(FirstPart(number, slowness * (0.010 + 0.001 * self.observer.running[number].rows)))

    @precondition(lambda self: self.observer.running)
    @rule(pick=PICK)
    def fail(self, pick: int) -> None:
        self.end_batch(pick, error="the model raised ValueError")

    @precondition(lambda self: self.observer.running)
    @rule(name=st.sampled_from(NAMES), count=numbers(1, 6), error=st.sampled_from([None, "out of memory"]))
    def turns_bad(self, name: str, count: int, error: str | None) -> None:
        """All that this instance runs and gets from then on fails, or takes very long."""
        for _ in range(count):
            batches = list(self.observer.running.values())
            places = [place for place, run in enumerate(batches) if run.batch.instance == name]
            if places:
                self.end_batch(places[0], slowness=1.0 if error else 40.0, error=error)

    @rule(pick=PICK)
    def finish_what_does_not_run(self, pick: int) -> None:
        if pick not in self.observer.running:
            self.tell(BatchDone(pick, 0.010))

    @precondition(lambda self: len(self.observer.names_in_use()) < len(NAMES))
    @rule(pick=PICK, capacity=numbers(1, 2), weight=WEIGHTS)
    def instance_comes_up(self, pick: int, capacity: int, weight: float) -> None:
        down = [name for name in NAMES if name not in self.observer.names_in_use()]
        self.tell(InstanceUp(down[pick % len(down)], capacity, weight))

    @precondition(lambda self: self.observer.instances)
    @rule(name=st.sampled_from(NAMES), crashed=st.booleans())
    def instance_is_lost(self, name: str, crashed: bool) -> None:
        self.tell(InstanceLost(name, "killed", crashed))  # which may be down already

    @rule(wait_s=WAITS_S)
    def instance_is_expected(self, wait_s: float) -> None:
        self.tell(InstanceExpected(self.observer.now + wait_s))

    @rule(really=st.sampled_from([*[False] * 19, True]))
    def model_goes(self, really: bool) -> None:
        if really:
            self.tell(Closing("the model is being unloaded"))

    @precondition(lambda self: self.observer.running)
    @rule(pick=PICK, wait_s=WAITS_S, back=st.booleans())
    def instance_crashes_in_mid_batch(self, pick: int, wait_s: float, back: bool) -> None:
        self.tell(InstanceExpected(self.observer.now + wait_s))
        batches = list(self.observer.running.values())
        name = batches[pick % len(batches)].batch.instance
        self.tell(InstanceLost(name, "killed", crashed=True))
        if back:
            self.tell(InstanceUp(name))

    @rule(changes=CHANGES, anew=st.booleans())
    def knobs_change(self, changes: list[Change], anew: bool) -> None:
        self.tell(KnobsChanged(self.knobs_with(changes, PLAIN if anew else self.observer.knobs)))

    @precondition(lambda self: self.observer.wake_at < inf)
    @rule()
    def timer_fires_on_time(self) -> None:
        self.observer.now = max(self.observer.now, self.observer.wake_at)
        self.tell(TimerFired())

    @rule()
    def timer_fires_any_time(self) -> None:
        self.tell(TimerFired())

    @precondition(lambda self: self.observer.at_arbiter)
    @rule(pick=PICK)
    def turn_is_granted(self, pick: int) -> None:
        self.tell(self.turn(pick))  # also if what wanted it has gone, or nothing waits for turns any more

    @rule(step_s=STEPS_S)
    def time_passes(self, step_s: float) -> None:
        self.observer.now += step_s  # also past a wake-up, which then is late

    def turn(self, pick: int) -> TurnGranted:
        """On an instance that it was wanted for, or on one that is perhaps not ready any more."""
        wanted = self.observer.wanted
        if wanted is None or not wanted.instances:
            return TurnGranted()
        names = (*wanted.instances, *NAMES)
        return TurnGranted(names[pick % len(names)])

    def teardown(self) -> None:
        """Let everything finish: every ticket has had its one answer, the lane remembers nothing, and its log replays."""
        if not self.sound:  # a step has failed already, which is the failure to report
            return
        observer = self.observer
        for _ in range(1000):
            if observer.at_arbiter:
                self.tell(self.turn(0))
            elif observer.running:
                self.end_batch(0)
            elif observer.wake_at < inf:
                observer.now = max(observer.now, observer.wake_at)
                self.tell(TimerFired())
            else:
                break
        assert not observer.unanswered(), f"never answered: {observer.unanswered()}"
        assert remembered(observer.lane) == 0, "a ticket is remembered"
        again = warmed(self.lane_class(self.first_knobs, LINE))
        for event, now, commands in observer.log:
            assert msgspec.msgpack.encode(again.on(event, now)) == commands, f"{event} is answered otherwise in a replay"

    # What follows

    def knobs_with(self, changes: list[Change], before: LaneKnobs = PLAIN) -> LaneKnobs:
        return msgspec.structs.replace(before, **dict(changes) | self.always)

    def end_batch(self, pick: int, *, slowness: float = 1.0, error: str | None = None) -> None:
        batch_id = list(self.observer.running)[pick % len(self.observer.running)]
        self.tell(BatchDone(batch_id, slowness * (0.010 + 0.001 * self.observer.running[batch_id].rows), error))

    def tell(self, event: Event) -> None:
        self.sound = False
        self.observer.tell(event)
        self.sound = True
