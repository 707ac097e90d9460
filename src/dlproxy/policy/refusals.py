"""What clients are told when the lane gives them no answer, and by which of its rules. Called by policy/lane.py and its parts.

Not aware of: when a request is refused, protocols' status codes.
"""

from msgspec import Struct

from dlproxy.message import Failure, FailureKind, Ticket
from dlproxy.policy.events import RejectReason


class Refusal(Struct, frozen=True):
    """The rule, and its words for the client."""

    reason: RejectReason
    failure: Failure


CANCELLED = Refusal("cancelled", Failure(FailureKind.CANCELLED, "the client disconnected"))
DISPLACED = Refusal(
    "displaced",
    Failure(FailureKind.QUEUE_FULL, "displaced from a full queue by a more urgent request", retry_after_s=1.0),
)


def unavailable(reason: RejectReason, why: str) -> Refusal:
    """Nothing is there to run it, or it may not run again."""
    return Refusal(reason, Failure(FailureKind.UNAVAILABLE, why, retry_after_s=1.0))


NO_INSTANCE = unavailable("no_instance", "the model has no live instance")


def lost(reason: str, how: str) -> Refusal:
    """Its instance is gone."""
    return unavailable("instance_lost", f"the instance was lost while it ran the request{how}: {reason}")


def state_gone(instance: str, reason: str = "") -> Refusal:
    """It could run on this instance alone."""
    why = f" ({reason})" if reason else ""
    return unavailable(
        "instance_lost", f"the state of its sequence was on instance {instance}, which is gone{why}; begin the sequence again"
    )


def to_blame(crashes: int, reason: str) -> Refusal:
    """It was alone in an instance that crashed, and not for the first time."""
    message = f"{crashes} instances crashed while they ran this request: {reason}"
    return Refusal("to_blame", Failure(FailureKind.MODEL_FAILED, message))


def failed(failure: Failure) -> Refusal:
    """Its batch did, and it was the only one in it, or shares the failure."""
    return Refusal("failed", failure)


def of_a_shared_batch(failure: Failure, size: int) -> Refusal:
    """What each request of it is told, as nobody knows for which of them it failed."""
    message = f"a batch of {size} requests, this one among them, failed and was not run again in parts: {failure.message}"
    return Refusal("failed", Failure(FailureKind.MODEL_FAILED, message))


def came_too_late(ticket: Ticket, now: float) -> Refusal:
    """Its deadline has passed when it arrives."""
    message = "Request timeout expired before the request could be queued"
    if ticket.answer_by <= now:
        return Refusal("client_deadline", Failure(FailureKind.LATE, message))
    return Refusal("expired", Failure(FailureKind.DEADLINE, message))


def expired(ticket: Ticket, now: float) -> Refusal:
    """It waited for too long, or would be late even if it started now."""
    waited_ms = (now - ticket.arrived_at) * 1e3
    message = f"Request timeout expired: it had waited {waited_ms:.1f} ms"
    if ticket.answer_by <= now:
        return Refusal("client_deadline", Failure(FailureKind.LATE, message, retry_after_s=waited_ms / 1e3))
    failure = Failure(FailureKind.DEADLINE, message, retry_after_s=waited_ms / 1e3)
    return Refusal("expired" if ticket.deadline_at <= now else "early_drop", failure)


def overran(ticket: Ticket, now: float) -> Refusal:
    """Its client's own deadline has passed and it runs still."""
    since_ms = (now - ticket.arrived_at) * 1e3
    message = f"Request timeout expired while the model ran, {since_ms:.1f} ms after the request had arrived"
    return Refusal("client_deadline", Failure(FailureKind.LATE, message))


def stood_too_long(ticket: Ticket, now: float) -> Refusal:
    """CoDel sheds it."""
    waited_ms = (now - ticket.arrived_at) * 1e3
    message = f"shed after {waited_ms:.1f} ms, because the queue does not drain"
    return Refusal("codel", Failure(FailureKind.OVERLOADED, message, retry_after_s=waited_ms / 1e3))


def above_limit(under_way: int, limit: int) -> Refusal:
    """The adaptive limit has no room for it."""
    message = f"{under_way} requests are under way, the model answers {limit} in good time"
    return Refusal("adaptive_limit", Failure(FailureKind.OVERLOADED, message, retry_after_s=1.0))
