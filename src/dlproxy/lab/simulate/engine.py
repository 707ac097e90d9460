"""Nodes in virtual time: a heap of what happens next drives the production lanes, as serve/driver.py does from the loop.

Called by lab/simulate/run.py, experiments and tests. Not aware of: configuration files, reports.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any, Protocol

from msgspec import Struct, structs

from dlproxy.lab.report.result import Tally
from dlproxy.lab.simulate.cache import SimulatedCache
from dlproxy.lab.simulate.instance import SimulatedInstance
from dlproxy.lab.simulate.pipelines import SimulatedPipeline
from dlproxy.lab.simulate.service_times import ServiceTimes
from dlproxy.message import FailureKind, Ticket
from dlproxy.policy.arbiter import Arbiter
from dlproxy.policy.balancing import Balancer
from dlproxy.policy.events import (
    Arrived,
    BatchDone,
    Cancelled,
    Command,
    Complete,
    Dispatch,
    Event,
    InstanceExpected,
    InstanceLost,
    InstanceRetired,
    InstanceUp,
    PassTurn,
    Reject,
    TimerFired,
    TurnGranted,
    WakeAt,
    WantTurn,
)
from dlproxy.policy.lane import Lane
from dlproxy.policy.partition import parts, split
from dlproxy.policy.scaling import MISSED
from dlproxy.serve.driver import GATHER_MOST, timer_delay_s
from dlproxy.serve.turns import Taker, Turns

Answer = Callable[[FailureKind | None, float, float], None]
ANY_LENGTH = (0,)  # the family of requests that say how long they are


class LoopCosts(Struct, frozen=True):
    """Seconds that a node's event loop spends on a request: reading and checking it, and writing its answer.

    `path_s` is spent outside of the node, in the network and the client. All 0: the loop is infinitely quick.
    `shares_core`: batches on threads run on the loop's own core, and last longer by what it does meanwhile. Two such batches
    do not slow one another.
    """

    read_s: float = 0.0
    write_s: float = 0.0
    path_s: float = 0.0
    shares_core: bool = False


class Hears(Protocol):
    """Whoever counts what one model does."""

    def arrived(self, now: float) -> None: ...

    def batch(self, rows: int, seconds: float) -> None: ...

    def ended(self, ticket: Ticket, failure: FailureKind | None, now: float) -> None: ...


class Call(Struct, eq=False):
    """One simulated request: what it asks for, and when it was due. Those that differ in `length` may be padded.

    Scheduling aims at `timeout_s` after its arrival; its client waits no longer than `patience_s`, and leaves after `leaves_s`.
    `heard_at`: when the lane of a recorded run heard of it, a little after it had come. `like`: the recorded ticket.
    `key`: equal ones ask for the same; None: nobody else does.
    """

    model: str
    rows: int
    timeout_s: float
    due_at: float
    length: int = 1
    patience_s: float = inf
    leaves_s: float = inf
    heard_at: float = -inf
    like: Ticket | None = None
    key: int | None = None


class Heap:
    """Virtual time: actions in the order of their instants, those of one instant in the order in which they were put."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[Any, float], None], Any]] = []
        self._count = 0

    def at(self, instant: float, action: Callable[[Any, float], None], argument: Any) -> None:
        """Call `action(argument, instant)` then."""
        self._count += 1
        heappush(self._heap, (instant, self._count, action, argument))

    def run_until(self, instant: float) -> None:
        """Everything that happens up to this instant."""
        heap = self._heap
        while heap and heap[0][0] <= instant:
            now, _, action, argument = heappop(heap)
            action(argument, now)


class SimulatedModel:
    """One lane of one node with its instances, which draw their service times in turn.

    `inline`: batches run on the node's loop and hold it up. `capacity`: batches that each instance takes at a time.
    `part_rows`: requests of more rows are split; None: none is. `needs`: what each batch takes of the node's resources, if its
    lane is arbitrated.
    """

    def __init__(
        self,
        name: str,
        lane: Lane,
        times: ServiceTimes,
        instances: Iterable[str],
        *,
        inline: bool = False,
        capacity: int = 1,
        part_rows: int | None = None,
        needs: Mapping[str, float] | None = None,
    ) -> None:
        self.name = name
        self.lane = lane
        self.part_rows = inf if part_rows is None else part_rows
        self.split: dict[int, set[int]] = {}  # of requests that were: the parts that wait or run
        self.instances = {instance: SimulatedInstance(instance, times, capacity=capacity) for instance in instances}
        self.inline = inline
        self.needs = needs or {}
        self.taker: Taker | None = None  # where lanes take turns
        self.running: dict[int, str] = {}  # there: the instance of each batch
        self.arrived_rows = self.missed_rows = 0
        self.aims: dict[tuple[str, str], float] = {}
        """Of a model without an objective of its own: what steps of pipelines give their requests."""
        self.cache: SimulatedCache | None = None
        self.pipeline: SimulatedPipeline | None = None
        """What its one instance does with a request, if it is one."""
        self.hears: Hears | None = None
        self.wake: Callable[[float], None] | None = None  # where no instance is up, and a request has one started
        self.wakes_at = inf  # what the lane asked for last
        self.rings_at = inf  # when the timer for that goes off


class Node:
    """One dlproxy process: models on one event loop. `finished(ticket id, failure kind or None, instant)` hears of each end.

    Instances count as busy up to `measured_until`: what a drain takes after the run is no part of their utilisation.
    """

    def __init__(
        self,
        name: str,
        models: Iterable[SimulatedModel],
        heap: Heap,
        finished: Callable[[int, FailureKind | None, float], None],
        costs: LoopCosts = LoopCosts(),  # noqa: B008  frozen
        measured_until: float = inf,
        arbiter: Arbiter | None = None,
    ) -> None:
        self.name = name
        self._now = 0.0  # for what the arbiter grants
        self._turns = Turns(arbiter, lambda: self._now) if arbiter is not None else None
        self.models = {model.name: model for model in models}
        self.heap = heap
        self._costs = costs
        self._has_loop = costs.read_s > 0.0 or costs.write_s > 0.0 or any(model.inline for model in self.models.values())
        self._heard = finished
        self._finished = self._finish_later if self._has_loop or costs.path_s > 0.0 else finished
        self._inbox: list[tuple[SimulatedModel, Ticket, Call]] = []
        self._later: list[tuple[SimulatedModel, Event | Dispatch]] = []  # what the loop finds ready at its next turn
        self._free_at = 0.0
        self._worked_s = 0.0  # by the loop, so far
        self._turn_set = False
        self._finishing = False
        self.numbers = count(1 << 40)  # of what the steps of pipelines ask: far above those of clients
        self._asked: dict[int, Answer] = {}  # by ticket: which step of a pipeline has asked
        self._asking: dict[str, list[Ticket]] = {}  # what steps ask each model at this instant
        self._served_s = 0.0  # of the batch whose end is being told
        for model in self.models.values():
            if model.pipeline is not None:
                model.pipeline.join(self, model)
            if self._turns is not None:
                model.taker = Taker(self._turns, model.name, partial(self._granted, model))
                model.taker.join(model.needs)
            for instance in model.instances.values():
                instance.measured_until = measured_until
                model.lane.on(InstanceUp(instance.name, instance.capacity), 0.0)

    def arrive(self, number: int, call: Call, now: float) -> None:
        """A request reaches the node."""
        model = self.models[call.model]
        model.arrived_rows += call.rows
        if model.hears is not None:
            model.hears.arrived(now)
        if model.wake is not None:
            call.timeout_s = call.patience_s  # as WakeLayer has it
            model.wake(now)
        ticket = Ticket(number, now, now + call.timeout_s, call.rows, answer_by=now + call.patience_s)
        if call.length != 1:
            ticket.length, ticket.shape_key, ticket.family = call.length, (call.length,), ANY_LENGTH
        if call.like is not None:
            ticket = _like(call.like, ticket, min(call.due_at, now) - now)
        if call.leaves_s < inf:
            self.heap.at(max(call.due_at + call.leaves_s, now), self.happen, (model, Cancelled(number)))
        self._inbox.append((model, ticket, call))
        if self._has_loop:
            self._set_turn(now)
        elif len(self._inbox) == 1:
            self.heap.at(now, self._take, None)  # not at once: what comes at one instant is found in one turn

    def _take(self, _: None, now: float) -> None:
        """The infinitely quick loop takes what has come at this instant."""
        if len(self._inbox) > 1:
            self._turn(None, now)
            return
        model, ticket, call = self._inbox.pop()
        found = _look_up(model, ticket, call)
        if found is None and not self._is_refused(model, ticket, now):
            self._tell(model, Arrived(_parts(model, ticket)), now)
        elif found:
            self._answer(model, ticket, None, now)

    def happen(self, what: tuple[SimulatedModel, Event], now: float) -> None:
        """An event for a lane, which the loop gets to when it is free."""
        if self._has_loop:
            self._later.append(what)
            self._set_turn(now)
        else:
            self._tell(*what, now)

    def _set_turn(self, now: float) -> None:
        if not self._turn_set:
            self._turn_set = True
            self.heap.at(max(now, self._free_at), self._turn, None)

    def _turn(self, _: None, now: float) -> None:
        """One turn of the loop: read what has come, tell the lanes, run what was ready. Time passes meanwhile."""
        self._turn_set = False
        inbox, self._inbox = self._inbox, []
        later, self._later = self._later, []
        gathered: dict[str, list[Ticket]] = {}
        for model, ticket, call in inbox:
            now += self._costs.read_s
            self._worked_s += self._costs.read_s
            ticket.arrived_at, ticket.deadline_at, ticket.answer_by = now, now + call.timeout_s, now + call.patience_s
            found = _look_up(model, ticket, call)
            if found is not None:
                now = self._answer(model, ticket, None, now) if found else now
                continue
            if self._is_refused(model, ticket, now):
                now += self._costs.write_s
                continue
            tickets = gathered.setdefault(model.name, [])
            for part in _parts(model, ticket):
                if part.follows and part.part_of not in model.split:  # the first ones were refused
                    break
                tickets.append(part)
                if len(tickets) >= GATHER_MOST:
                    gathered[model.name] = []  # keeps its place among the models
                    now = self._tell(model, Arrived(tickets), now)
                    tickets = gathered[model.name]
        deferred, self._later = self._later, []  # by batches that ended while the loop still read
        later.sort(key=_is_no_timer)  # timers come before what else is ready
        now = self._do(later, now)
        for name, tickets in gathered.items():
            if tickets:
                now = self._tell(self.models[name], Arrived(tickets), now)
        now = self._do(deferred, now)
        self._free_at = now
        if self._inbox or self._later:
            self._set_turn(now)

    def _do(self, what: Iterable[tuple[SimulatedModel, Event | Dispatch]], now: float) -> float:
        for model, event in what:
            now = self._run_inline(model, event, now) if isinstance(event, Dispatch) else self._tell(model, event, now)
        return now

    def _tell(self, model: SimulatedModel, event: Event, now: float) -> float:
        """Carry out what the lane answers; returns when the loop is done with it."""
        if type(event) is TimerFired:
            if model.rings_at > now:  # another timer took its place
                return now
            model.wakes_at = model.rings_at = inf
        elif type(event) is BatchDone:
            self._served_s = event.service_s
        for command in model.lane.on(event, now):
            now = self._carry_out(model, command, now)
        if model.running and model.taker is not None:
            now = self._give_back(model, model.taker, event, now)
        return now

    def _carry_out(self, model: SimulatedModel, command: Command, now: float) -> float:
        if isinstance(command, Dispatch):
            return self._dispatch(model, command, now)
        if isinstance(command, Complete):
            for ticket in command.tickets:
                now = self._end_part(model, ticket, None, now) if ticket.part_of else self._end(model, ticket, None, now)
        elif isinstance(command, Reject):
            ticket, kind = command.ticket, command.failure.kind
            if kind in MISSED:
                model.missed_rows += ticket.rows
            now = self._end_part(model, ticket, kind, now) if ticket.part_of else self._end(model, ticket, kind, now)
        elif not isinstance(command, WakeAt):
            return self._arbitrate(model, command, now)
        elif command.at < model.wakes_at:
            model.wakes_at = command.at
            model.rings_at = now + timer_delay_s(command.at, now)
            self.heap.at(model.rings_at, self.happen, (model, TimerFired()))
        return now

    def _end(self, model: SimulatedModel, ticket: Ticket, failure: FailureKind | None, now: float) -> float:
        now = self._answer(model, ticket, failure, now)
        if model.cache is not None:
            for joined in model.cache.ended(ticket.part_of or ticket.id, failure):
                now = self._answer(model, joined, failure, now)
        return now

    def _answer(self, model: SimulatedModel, ticket: Ticket, failure: FailureKind | None, now: float) -> float:
        asked = self._asked.pop(ticket.part_of or ticket.id, None)
        if asked is not None:
            if model.hears is not None:
                model.hears.ended(ticket, failure, now)
            self.heap.at(now, _call, (asked, failure, self._served_s))
            return now
        now += self._costs.write_s
        self._worked_s += self._costs.write_s
        if model.hears is not None:
            model.hears.ended(ticket, failure, now)
        self._finished(ticket.part_of or ticket.id, failure, now)
        return now

    # What the steps of pipelines ask

    def _is_refused(self, model: SimulatedModel, ticket: Ticket, now: float) -> bool:
        """A pipeline tells those at once that would be late."""
        refused = None if model.pipeline is None else model.pipeline.refusal(ticket, now)
        if refused is not None:
            self._end(model, ticket, refused, now)
        return refused is not None

    def ask(self, model: SimulatedModel, ticket: Ticket, answer: Answer, now: float) -> None:
        """A step of a pipeline of this node asks: `answer(failure or None, seconds that its batch ran, instant)`."""
        model.arrived_rows += ticket.rows
        if model.hears is not None:
            model.hears.arrived(now)
        self._asked[ticket.id] = answer
        asking = self._asking.setdefault(model.name, [])
        if not asking:
            self.heap.at(now, self._have_asked, model)  # not at once: what is asked at one instant is heard of in one turn
        asking.append(ticket)

    def _have_asked(self, model: SimulatedModel, now: float) -> None:
        self.happen((model, Arrived(self._asking.pop(model.name))), now)

    def leave(self, model: SimulatedModel, numbers: Iterable[int], now: float) -> None:
        """Nobody waits for these any more."""
        for number in numbers:
            self.heap.at(now, self.happen, (model, Cancelled(number)))

    # Requests in parts, as serve/partition.py puts them together

    def _end_part(self, model: SimulatedModel, ticket: Ticket, failure: FailureKind | None, now: float) -> float:
        number = ticket.part_of
        waiting = model.split.get(number)
        if waiting is None:  # another part has failed
            return now
        waiting.discard(ticket.id)
        if failure is None and waiting:
            return now
        del model.split[number]
        if waiting:
            self.heap.at(now, self._cancel, (model, waiting))
        return self._end(model, ticket, failure, now)

    def _cancel(self, what: tuple[SimulatedModel, set[int]], now: float) -> None:
        model, numbers = what
        for number in sorted(numbers):
            self.happen((model, Cancelled(number)), now)

    # Turns on shared resources, as serve/driver.py takes them

    def _arbitrate(self, model: SimulatedModel, command: WantTurn | PassTurn, now: float) -> float:
        assert model.taker is not None
        self._now = now
        if isinstance(command, WantTurn):
            model.taker.want(command)
        else:
            model.taker.pass_on()
        return self._now

    def _granted(self, model: SimulatedModel) -> None:
        self._now = self._tell(model, TurnGranted(), self._now)

    def _give_back(self, model: SimulatedModel, taker: Taker, event: Event, now: float) -> float:
        self._now = now
        if isinstance(event, BatchDone):
            model.running.pop(event.batch_id, None)
            taker.end(event.batch_id, event.service_s)
        elif isinstance(event, InstanceLost):
            for batch_id in [number for number, instance in model.running.items() if instance == event.instance]:
                del model.running[batch_id]
                taker.lose(batch_id, self._now)
        return self._now

    def _finish_later(self, number: int, failure: FailureKind | None, now: float) -> None:
        """A loop in its turn is ahead of the others' time, and the path takes its own."""
        self.heap.at(now + self._costs.path_s, self._reached_client, (number, failure))

    def _reached_client(self, what: tuple[int, FailureKind | None], now: float) -> None:
        self._heard(*what, now)

    def _dispatch(self, model: SimulatedModel, command: Dispatch, now: float) -> float:
        if model.taker is not None:
            model.taker.start(command.batch_id, now)
            model.running[command.batch_id] = command.instance
        if model.pipeline is not None:
            model.pipeline.run(command, now)
            return now
        if model.inline:
            if not self._finishing:
                return self._run_inline(model, command, now)
            self._later.append((model, command))  # sockets get a turn between two batches that hold the loop
            return now
        done, heard_at = self._begin(model, command, now)
        if self._costs.shares_core:
            instance = model.instances[command.instance]
            self.heap.at(heard_at, self._end_unless_held_up, (model, instance, instance.deaths, done, self._worked_s))
        else:
            self.heap.at(heard_at, self.happen, (model, done))
        return now

    def _end_unless_held_up(self, what: tuple[SimulatedModel, SimulatedInstance, int, BatchDone, float], now: float) -> None:
        """A batch has had its time, but for what the loop has worked since; or its instance has died since."""
        model, instance, deaths, done, worked_s = what
        held_up_s = self._worked_s - worked_s
        if held_up_s > 0.0 and instance.deaths == deaths:
            instance.hold_up(held_up_s)
            done = BatchDone(done.batch_id, done.service_s + held_up_s, done.error)
            self.heap.at(now + held_up_s, self._end_unless_held_up, (model, instance, deaths, done, self._worked_s))
        else:
            self.happen((model, done), now)

    def _run_inline(self, model: SimulatedModel, command: Dispatch, now: float) -> float:
        done, heard_at = self._begin(model, command, now)
        self._worked_s += heard_at - now
        self._finishing = True
        now = self._tell(model, done, heard_at)
        self._finishing = False
        return now

    def _begin(self, model: SimulatedModel, command: Dispatch, now: float) -> tuple[BatchDone, float]:
        rows = sum([ticket.rows for ticket in command.tickets])
        longest = max([ticket.length for ticket in command.tickets])
        service_s, heard_at, error = model.instances[command.instance].begin(rows, now, longest)
        if model.hears is not None:
            model.hears.batch(rows, service_s)
        return BatchDone(command.batch_id, service_s, error), heard_at

    # Instances that come and go

    def expect(self, model: SimulatedModel, now: float, until: float) -> None:
        """Requests may wait for an instance until then."""
        self.happen((model, InstanceExpected(until)), now)

    def retire(self, model: SimulatedModel, instance: SimulatedInstance, now: float) -> None:
        """No more batches for it; what it runs ends as usual."""
        self.happen((model, InstanceRetired(instance.name)), now)

    def lose(self, model: SimulatedModel, instance: SimulatedInstance, now: float, *, returns: bool = False) -> None:
        """An instance dies. If it `returns`, it is a worker process that crashed and is started again."""
        instance.lose(now)
        if returns:
            self.happen((model, InstanceExpected(now + model.lane.view().knobs.outage_wait_s)), now)
        self.happen((model, InstanceLost(instance.name, "the simulated instance died", returns)), now)

    def revive(self, model: SimulatedModel, instance: SimulatedInstance, now: float) -> None:
        """It has started, or one that died is up again."""
        self.happen((model, InstanceUp(instance.name, instance.capacity)), now)


def _like(recorded: Ticket, ticket: Ticket, since_s: float) -> Ticket:
    """The recorded ticket with the number and the terms of this one, which came so many seconds from now: before it."""
    return structs.replace(
        recorded,
        id=ticket.id,
        arrived_at=ticket.arrived_at + since_s,
        deadline_at=ticket.deadline_at + since_s,
        answer_by=ticket.answer_by + since_s,
    )


def _look_up(model: SimulatedModel, ticket: Ticket, call: Call) -> bool | None:
    return None if model.cache is None or call.key is None else model.cache.look_up(call.key, ticket)


def _parts(model: SimulatedModel, ticket: Ticket) -> list[Ticket]:
    """What the lane hears of the request."""
    if ticket.rows <= model.part_rows:
        return [ticket]
    tickets = split(ticket, int(model.part_rows), count(ticket.id + 1))
    model.split[ticket.id] = {part.id for part in tickets}
    return tickets


def _call(what: tuple[Answer, FailureKind | None, float], now: float) -> None:
    answer, failure, seconds = what
    answer(failure, seconds, now)


def _is_no_timer(what: tuple[SimulatedModel, Event | Dispatch]) -> bool:
    return not isinstance(what[1], TimerFired)


class Simulation:
    """Nodes behind one balancer, and the tally of what became of every request."""

    def __init__(self, tally: Tally, *, balancer: Balancer) -> None:
        self.heap = Heap()
        self.nodes: dict[str, Node] = {}
        self._names: list[str] = []
        self._tally = tally
        self._balancer = balancer
        self._open: dict[int, tuple[float, str]] = {}
        self._in_flight: dict[str, int] = {}
        self._count = 0

    def add(
        self,
        name: str,
        models: Iterable[SimulatedModel],
        costs: LoopCosts = LoopCosts(),  # noqa: B008  frozen
        arbiter: Arbiter | None = None,
    ) -> Node:
        """One more node behind the balancer. Its models share what `arbiter` grants."""
        node = self.nodes[name] = Node(name, models, self.heap, self._finished, costs, self._tally.end_at, arbiter)
        self._names.append(name)
        self._in_flight[name] = 0
        self._balancer.add(name, 0.0)
        return node

    def send(self, call: Call, now: float) -> None:
        """A client sends a request; what was due before it has happened."""
        names = self._names
        name = names[0] if len(names) == 1 else self._balancer.choose(names, self._in_flight, now)
        self._count = number = self._count + 1
        part_rows = self.nodes[name].models[call.model].part_rows
        if call.rows > part_rows:
            self._count += len(parts(call.rows, int(part_rows))) - 1  # the others have numbers of their own
        self._open[number] = (call.due_at, name)
        self._in_flight[name] += 1
        self._tally.sent_one(call.due_at, now)
        self.nodes[name].arrive(number, call, now)

    def run(self, calls: Iterable[Call], *, drain_s: float = inf) -> None:
        """Send every call when it is due, then let what is under way end, for at most `drain_s` seconds."""
        run_until, send = self.heap.run_until, self.send
        sent_at = -1.0  # before everything
        for call in calls:
            due_at = call.due_at if call.like is None else call.heard_at
            if due_at > sent_at:  # what is due at one instant is sent before anybody gets to it
                sent_at = due_at
                run_until(sent_at)
            send(call, sent_at)
        self.heap.run_until(sent_at + drain_s)
        for due_at, _ in self._open.values():
            self._tally.failed("no answer", due_at, max(sent_at + drain_s, due_at))

    def _finished(self, number: int, failure: FailureKind | None, now: float) -> None:
        due_at, name = self._open.pop(number)
        self._in_flight[name] -= 1
        if failure is None:
            self._tally.answered(due_at, now)
        else:
            self._tally.failed(failure.value, due_at, now)
        if len(self._names) > 1:
            self._balancer.observe(name, now - due_at, ok=failure is None, now=now)


def utilisation(nodes: Mapping[str, Node], seconds: float) -> dict[str, dict[str, dict[str, float]]]:
    """What each instance of each node did in the first `seconds`."""
    return {
        name: {
            instance.name: instance.usage(seconds) for model in node.models.values() for instance in model.instances.values()
        }
        for name, node in nodes.items()
    }
