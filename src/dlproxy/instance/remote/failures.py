"""What can be wrong with an upstream's answer, and whose fault it is: the model's, the request's, or the upstream's.

Called by the other files of this folder. Not aware of: protocols, connections.
"""

from typing import Any

import msgspec
from msgspec import Struct

from dlproxy.instance.batch import BatchResult
from dlproxy.instance.runtime import ModelError
from dlproxy.message import Failure, FailureKind

MAX_WORDS = 500  # characters of an upstream's own text that are passed on
RETRY_S = 1.0
MAX_RETRY_S = 3600.0
_KINDS = {
    400: FailureKind.INVALID_ARGUMENT,
    413: FailureKind.TOO_LARGE,
    415: FailureKind.INVALID_ARGUMENT,
    422: FailureKind.INVALID_ARGUMENT,
    429: FailureKind.OVERLOADED,
    500: FailureKind.MODEL_FAILED,
    501: FailureKind.UNSUPPORTED,
}


class UpstreamError(ModelError):
    """Carries the Failure. `gone`: nobody listens there any more, as opposed to one request that went wrong.

    A ModelError for whoever starts an instance; unlike others, it may be over when one tries again.
    """

    def __init__(self, message: str, kind: FailureKind = FailureKind.MODEL_FAILED, *, gone: bool = False) -> None:
        super().__init__(message)
        retry_after_s = RETRY_S if kind in (FailureKind.UNAVAILABLE, FailureKind.OVERLOADED) else None
        self.failure = Failure(kind, message, retry_after_s)
        self.gone = gone


class _ErrorBody(Struct):
    error: Any


def failed(error: UpstreamError, batch_s: float) -> BatchResult:
    """The result of a batch that has no answer."""
    return BatchResult([], 0.0, batch_s, str(error), failure=error.failure)


def refusal(status: int, body: bytes | bytearray, retry_after: bytes | None) -> UpstreamError:
    """The error that an answer of another status than 200 stands for, in the upstream's own words.

    A 500 is the model's own failure and passes as it is, as if the model ran here. What is no fault of the batch
    (busy, gone, behind a gateway, not let in) is UNAVAILABLE or OVERLOADED.
    """
    kind = _KINDS.get(status, FailureKind.UNAVAILABLE)
    words = words_of(body)
    if kind is FailureKind.MODEL_FAILED and words:
        return UpstreamError(words, kind)
    error = UpstreamError(f"the upstream answered {status}: {words or 'without a reason'}", kind)
    if error.failure.retry_after_s is not None and retry_after is not None and retry_after.isdigit():
        seconds = min(float(retry_after[:9]), MAX_RETRY_S)
        error.failure = msgspec.structs.replace(error.failure, retry_after_s=seconds)
    return error


def words_of(body: bytes | bytearray) -> str:
    """The `error` of a JSON body, or the start of another body, on one line."""
    try:
        said = msgspec.json.decode(body, type=_ErrorBody).error
        text = said if isinstance(said, str) else str(said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = bytes(body[: 4 * MAX_WORDS]).decode("utf-8", errors="replace")
    text = " ".join(text.split())
    return text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]}…"
