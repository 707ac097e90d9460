"""What happens to a lane (events) and what it wants done (commands): plain data, so that a log of them replays.

Written by serve/driver.py and lab/simulate, answered by policy/lane.py, stored by telemetry/event_log.py.
"""

from typing import Literal

from msgspec import Struct

from dlproxy.message import Failure, Ticket
from dlproxy.policy.hops import Load
from dlproxy.policy.knobs import LaneKnobs

DispatchReason = Literal["idle", "turn", "retry", "hedge", "probe"]
"""Why a batch starts now: an instance is idle; the arbiter's turn; it runs again, after an error, a loss or a crash; it runs a
second time beside a run that is late; one request tries an instance that was slow."""

RefusalReason = Literal["no_instance", "closing", "queue_full", "displaced", "predicted_late", "adaptive_limit"]
GivenUpReason = Literal["expired", "client_deadline", "early_drop", "codel", "cancelled"]
FailedReason = Literal["failed", "instance_lost", "no_second_run", "to_blame"]
RejectReason = RefusalReason | GivenUpReason | FailedReason
"""By which rule a request gets no answer: on arrival or for another's sake, while it waits, because of what became of its
batch."""

WakeReason = Literal["fill", "other_instance", "deadline", "client_deadline", "instance_expected", "hedge", "probe"]
"""What a lane waits for if nothing happens before."""


class Arrived(Struct, tag="arrived"):
    """Requests that came in one turn of the event loop, oldest first."""

    tickets: list[Ticket]


class Cancelled(Struct, tag="cancelled"):
    """The client of this ticket has gone."""

    ticket_id: int


class BatchDone(Struct, tag="batch_done"):
    """An instance finished a batch in `service_s` seconds; `error` says why it has no answers.

    `failure`: the error as another server classed it; None is the model's own failure. `load`: what a node said of itself.
    """

    batch_id: int
    service_s: float
    error: str | None = None
    failure: Failure | None = None
    load: Load | None = None


class FirstPart(Struct, tag="first_part"):
    """An instance has the first part of a batch's answers, after `service_s` seconds. The others follow as they are asked for,
    and keep the instance busy: BatchDone comes when they have ended, with the time that all of it took.
    """

    batch_id: int
    service_s: float


class InstanceUp(Struct, tag="instance_up"):
    """An instance is ready and takes up to `capacity` batches at a time; `weight` is its share of the work beside others."""

    instance: str
    capacity: int = 1
    weight: float = 1.0


class InstanceLost(Struct, tag="instance_lost"):
    """An instance is gone, with whatever it was running.

    `crashed`: it ended by itself, perhaps because of what it ran.
    """

    instance: str
    reason: str
    crashed: bool = False


class InstanceRetired(Struct, tag="instance_retired"):
    """An instance takes no more batches; what it runs will end as usual. `reason`: empty if somebody wished it."""

    instance: str
    reason: str = ""


class InstanceExpected(Struct, tag="instance_expected"):
    """An instance is being started: requests may wait for it until then. Replaces what was said before; -inf: none is any more;
    inf: requests may come, and one is started for the first of them.

    To be told before the InstanceLost whose instance it replaces.
    """

    until: float


class Closing(Struct, tag="closing"):
    """The model goes: what waits and runs is finished, and who comes now is refused for this reason."""

    reason: str


class TimerFired(Struct, tag="timer"):
    """The time that the last WakeAt named has come."""


class TurnGranted(Struct, tag="turn"):
    """The arbiter lets the lane start one batch now: the answer to a WantTurn. Dispatch or PassTurn is among the commands.

    `instance`: on this one, which was leased for it; empty: on any.
    """

    instance: str = ""


class KnobsChanged(Struct, tag="knobs"):
    """New values for the lane's knobs; they hold from now on, for queued requests too."""

    knobs: LaneKnobs


Event = (
    Arrived
    | Cancelled
    | BatchDone
    | FirstPart
    | InstanceUp
    | InstanceLost
    | InstanceRetired
    | InstanceExpected
    | Closing
    | TimerFired
    | TurnGranted
    | KnobsChanged
)


class Dispatch(Struct, tag="dispatch"):
    """Run these tickets as one batch on this instance; answer with BatchDone (or InstanceLost)."""

    batch_id: int
    instance: str
    tickets: list[Ticket]
    reason: DispatchReason


class Complete(Struct, tag="complete"):
    """Send these tickets of a batch their answers, or the first part of them."""

    batch_id: int
    tickets: list[Ticket]
    reason: Literal["done", "first_part"] = "done"


class Reject(Struct, tag="reject"):
    """Send this ticket a failure. If it is to blame for the end of two instances, refuse its like from now on."""

    ticket: Ticket
    failure: Failure
    reason: RejectReason


class WakeAt(Struct, tag="wake_at"):
    """Send TimerFired at this time, or before if an earlier one is pending; one is pending at a time."""

    at: float
    reason: WakeReason


class WantTurn(Struct, tag="want_turn"):
    """The lane has a batch for an instance and waits for the arbiter; replaces what it wanted before.

    `cost_s`: how long the batch will take; deadline and priority are those of its most urgent request; `instances`: where
    they are leased, those that it could run on now.
    """

    cost_s: float
    deadline_at: float
    priority: int
    reason: Literal["first", "more_urgent", "other_instances"]
    instances: tuple[str, ...] = ()


class PassTurn(Struct, tag="pass_turn"):
    """The turn is somebody else's: the lane has nothing to run or takes no turns any more, or the instance is not ready."""

    reason: Literal["nothing_to_run", "not_arbitrated", "not_ready"]


Command = Dispatch | Complete | Reject | WakeAt | WantTurn | PassTurn
