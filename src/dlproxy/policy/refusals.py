"""What clients are told when the lane gives them no answer. Called by policy/lane.py.

Not aware of: when a request is refused, protocols' status codes.
"""

from dlproxy.message import Failure, FailureKind, Ticket


def unavailable(why: str) -> Failure:
    """Nothing is there to run it, or it may not run again."""
    return Failure(FailureKind.UNAVAILABLE, why, retry_after_s=1.0)


def lost(reason: str, how: str) -> Failure:
    """Its instance is gone."""
    return unavailable(f"the instance was lost while it ran the request{how}: {reason}")


def to_blame(crashes: int, reason: str) -> Failure:
    """It was alone in an instance that crashed, and not for the first time."""
    return Failure(FailureKind.MODEL_FAILED, f"{crashes} instances crashed while they ran this request: {reason}")


def of_a_shared_batch(failure: Failure, size: int) -> Failure:
    """What each request of it is told, as nobody knows for which of them it failed."""
    message = f"a batch of {size} requests, this one among them, failed and was not run again in parts: {failure.message}"
    return Failure(FailureKind.MODEL_FAILED, message)


def expired(ticket: Ticket, now: float) -> Failure:
    """It waited for too long, or would be late even if it started now."""
    waited_ms = (now - ticket.arrived_at) * 1e3
    kind = FailureKind.LATE if ticket.answer_by <= now else FailureKind.DEADLINE
    return Failure(kind, f"Request timeout expired: it had waited {waited_ms:.1f} ms", retry_after_s=waited_ms / 1e3)


def overran(ticket: Ticket, now: float) -> Failure:
    """Its client's own deadline has passed and it runs still."""
    since_ms = (now - ticket.arrived_at) * 1e3
    message = f"Request timeout expired while the model ran, {since_ms:.1f} ms after the request had arrived"
    return Failure(FailureKind.LATE, message)


def stood_too_long(ticket: Ticket, now: float) -> Failure:
    """CoDel sheds it."""
    waited_ms = (now - ticket.arrived_at) * 1e3
    message = f"shed after {waited_ms:.1f} ms, because the queue does not drain"
    return Failure(FailureKind.OVERLOADED, message, retry_after_s=waited_ms / 1e3)


def above_limit(under_way: int, limit: int) -> Failure:
    """The adaptive limit has no room for it."""
    message = f"{under_way} requests are under way, the model answers {limit} in good time"
    return Failure(FailureKind.OVERLOADED, message, retry_after_s=1.0)


def displaced() -> Failure:
    """It gave its place in a full queue to another."""
    message = "displaced from a full queue by a more urgent request"
    return Failure(FailureKind.QUEUE_FULL, message, retry_after_s=1.0)
