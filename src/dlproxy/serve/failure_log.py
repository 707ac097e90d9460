"""Says in the log why batches failed: the first of each kind with its traceback, then rarely, so that no flood fills it.

Called by serve/driver.py when a batch has failed, never when one has not. Not aware of: lanes, retries, replies.
"""

import logging
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from dlproxy.instance.batch import BatchResult
from dlproxy.instance.tracebacks import as_text, printable
from dlproxy.message import FailureKind, Request

BURST = 5.0  # different ones that are logged at once: a failed batch is halved some times, and each half may say it otherwise
PER_S = 1.0
REPEAT_S = 10.0  # the same again is logged this often
IDS = 8  # requests of a batch that are named
MOST_CHARS = 1000
MOST_ID_CHARS = 80

log = logging.getLogger(__name__)


class LeftOut(Struct, frozen=True):
    """What was not logged before this: failures with the same text, and others."""

    same: int
    others: int


class FailureLimiter:
    """Which failures are logged: at most BURST, then PER_S, and the same text once in REPEAT_S. All others are counted."""

    def __init__(self) -> None:
        self._allowance = BURST
        self._at = 0.0
        self._logged: dict[str, tuple[float, int]] = {}  # by text: when, and how often since
        self._others = 0

    def admit(self, text: str, now: float) -> LeftOut | None:
        """None: leave it out. Else what has been left out so far, which is then forgotten."""
        before = self._logged.get(text)
        if before is not None and now - before[0] < REPEAT_S:
            self._logged[text] = (before[0], before[1] + 1)
            return None
        self._allowance = min(self._allowance + (now - self._at) * PER_S, BURST)
        self._at = now
        if self._allowance < 1.0:
            if before is not None:
                self._logged[text] = (before[0], before[1] + 1)
            else:
                self._others += 1
            return None
        self._allowance -= 1.0
        self._logged[text] = (now, 0)
        self._forget(now)
        others, self._others = self._others, 0
        return LeftOut(0 if before is None else before[1], others)

    def _forget(self, now: float) -> None:
        """Texts that were logged long ago: one that differs each time must not fill the memory."""
        for text, (logged_at, count) in list(self._logged.items()):
            if now - logged_at >= 2 * REPEAT_S:
                del self._logged[text]
                self._others += count


class FailureLog:
    """Of one model. `of_stages`: a pipeline, whose stages' models log what fails there: only its own failures are left."""

    def __init__(self, model: str, *, of_stages: bool = False) -> None:
        self._model = model
        self._of_stages = of_stages
        self._limiter = FailureLimiter()

    def batch_failed(self, instance: str, requests: Sequence[Request], result: BatchResult, now: float) -> None:
        """As the model's own failure, with its traceback; or in a line, as the upstream's failure is classed."""
        assert result.error is not None
        if self._of_stages and result.failure is not None:
            return
        left_out = self._limiter.admit(result.error[:MOST_CHARS], now)
        if left_out is None:
            return
        traceback = as_text(result.origin)
        kind = FailureKind.MODEL_FAILED if result.failure is None else result.failure.kind
        classed = "" if kind is FailureKind.MODEL_FAILED else f" ({kind.value})"
        log.log(
            logging.WARNING if classed else logging.ERROR,
            "model %s: a batch failed on %s%s: %s (%s%s)%s",
            self._model,
            instance,
            classed,
            _a_line(result.error),
            _named(requests),
            _counted(left_out),
            f"\n{traceback}" if traceback else "",
            extra=requests[0].named if len(requests) == 1 else _all_named(requests),
        )

    def answer_failed(self, instance: str, request: Request, error: Exception, now: float) -> None:
        """The batch was fine, but this request's part of it was not."""
        self.batch_failed(instance, [request], BatchResult([], 0.0, 0.0, str(error) or type(error).__name__), now)


def _named(requests: Sequence[Request]) -> str:
    """By the clients' ids, or else by their tickets' numbers."""
    names = [printable(request.id[:MOST_ID_CHARS]) or str(request.ticket.id) for request in requests[:IDS]]
    more = f" and {len(requests) - IDS} more" if len(requests) > IDS else ""
    return f"request{'s' * (len(requests) > 1)} {', '.join(names)}{more}"


def _all_named(requests: Sequence[Request]) -> dict[str, Any]:
    """As one is."""
    return {"request": {"ids": [request.named["request"]["id"] for request in requests[:IDS]]}}


def _counted(left_out: LeftOut) -> str:
    same = f"; the same {left_out.same} times more since it was last logged" if left_out.same else ""
    return same + (f"; {left_out.others} other failures were not logged" if left_out.others else "")


def _a_line(text: str) -> str:
    line = printable(" ".join(text[: 2 * MOST_CHARS].split()))
    return line if len(line) <= MOST_CHARS else f"{line[:MOST_CHARS]}…"
