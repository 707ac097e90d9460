"""What can be wrong with an upstream's answer, and whose fault it is: the model's, the request's, or the upstream's.

Called by the other files of this folder, and by the Python client. Not aware of: protocols, connections.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from dlproxy.instance.batch import BatchResult
from dlproxy.instance.runtime import ModelError
from dlproxy.message import Failure, FailureKind, encodable

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
    508: FailureKind.LOOP,
}
_GRPC_KINDS = {  # each as the HTTP status that TensorFlow Serving gives for it (model_servers/http_server.cc)
    "INVALID_ARGUMENT": FailureKind.INVALID_ARGUMENT,
    "FAILED_PRECONDITION": FailureKind.INVALID_ARGUMENT,
    "OUT_OF_RANGE": FailureKind.INVALID_ARGUMENT,
    "RESOURCE_EXHAUSTED": FailureKind.OVERLOADED,
    "INTERNAL": FailureKind.MODEL_FAILED,
    "UNKNOWN": FailureKind.MODEL_FAILED,  # what Python's and Java's servers make of an exception
    "DATA_LOSS": FailureKind.MODEL_FAILED,
    "UNIMPLEMENTED": FailureKind.UNSUPPORTED,
    "ABORTED": FailureKind.LOOP,
}
_OF_CLIENTS = {  # what an upstream is at odds with us about, and a client with its server
    **_KINDS,
    401: FailureKind.UNAUTHENTICATED,
    403: FailureKind.FORBIDDEN,
    404: FailureKind.NOT_FOUND,
    499: FailureKind.CANCELLED,
    504: FailureKind.LATE,
}
_GRPC_OF_CLIENTS = {
    **_GRPC_KINDS,
    "UNAUTHENTICATED": FailureKind.UNAUTHENTICATED,
    "PERMISSION_DENIED": FailureKind.FORBIDDEN,
    "NOT_FOUND": FailureKind.NOT_FOUND,
    "CANCELLED": FailureKind.CANCELLED,
    "DEADLINE_EXCEEDED": FailureKind.LATE,
}
_TOO_LARGE = re.compile(r"larger than max|exceeds maximum size")  # what C++ and Go, and Java, say of a message
_BROKEN = re.compile(r"RST_STREAM|Stream removed")  # INTERNAL and UNKNOWN also stand for a connection that broke


class UpstreamError(ModelError):
    """Carries the Failure. `gone`: nobody listens there any more, as opposed to one request that went wrong. `leaves`: it says
    itself that it takes no more, and ends what it has.

    A ModelError for whoever starts an instance; unlike others, it may be over when one tries again.
    """

    def __init__(self, message: str, kind: FailureKind = FailureKind.MODEL_FAILED, *, gone: bool = False) -> None:
        message = encodable(message)
        super().__init__(message)
        retry_after_s = RETRY_S if kind in (FailureKind.UNAVAILABLE, FailureKind.OVERLOADED) else None
        self.failure = Failure(kind, message, retry_after_s)
        self.gone = gone
        self.leaves = False


class _ErrorBody(Struct):
    error: Any


def failed(error: UpstreamError, batch_s: float) -> BatchResult:
    """The result of a batch that has no answer."""
    return BatchResult([], 0.0, batch_s, str(error), failure=error.failure)


def refusal(status: int, body: bytes | bytearray, retry_after: bytes | None) -> UpstreamError:
    """The error that an answer of another HTTP status than 200 stands for, in the upstream's own words.

    A 500 is the model's own failure and passes as it is, as if the model ran here. What is no fault of the batch
    (busy, gone, behind a gateway, not let in) is UNAVAILABLE or OVERLOADED.
    """
    error = _refused(_KINDS.get(status, FailureKind.UNAVAILABLE), status, words_of(body))
    if error.failure.retry_after_s is not None and (seconds := _seconds(retry_after)) is not None:
        error.failure = msgspec.structs.replace(error.failure, retry_after_s=seconds)
    return error


def grpc_refusal(status: str, words: str) -> UpstreamError:
    """The same for the name of a gRPC status and the text that came with it."""
    return _refused(_grpc_kind(_GRPC_KINDS, status, words), status, shortened(words))


def failure_of(status: int, body: bytes | bytearray, retry_after: bytes | None) -> Failure:
    """What an answer of another HTTP status than 200 says to a client, in the server's own words."""
    words = words_of(body) or f"the server answered {status} without a reason"
    return Failure(_OF_CLIENTS.get(status, FailureKind.UNAVAILABLE), words, _seconds(retry_after))


def grpc_failure_of(status: str, words: str) -> Failure:
    """The same for the name of a gRPC status and the text that came with it."""
    kind = _grpc_kind(_GRPC_OF_CLIENTS, status, words)
    return Failure(kind, shortened(words) or f"the server answered {status} without a reason")


def _grpc_kind(kinds: Mapping[str, FailureKind], status: str, words: str) -> FailureKind:
    kind = kinds.get(status, FailureKind.UNAVAILABLE)
    if kind is FailureKind.OVERLOADED and _TOO_LARGE.search(words):
        return FailureKind.TOO_LARGE
    if kind is FailureKind.MODEL_FAILED and _BROKEN.search(words):
        return FailureKind.UNAVAILABLE
    return kind


def _seconds(retry_after: bytes | None) -> float | None:
    if retry_after is None or not retry_after.isdigit():
        return None
    return min(float(retry_after[:9]), MAX_RETRY_S)


def _refused(kind: FailureKind, status: int | str, words: str) -> UpstreamError:
    if kind is FailureKind.MODEL_FAILED and words:
        return UpstreamError(words, kind)
    return UpstreamError(f"the upstream answered {status}: {words or 'without a reason'}", kind)


def words_of(body: bytes | bytearray) -> str:
    """The `error` of a JSON body, or the start of another body, on one line."""
    try:
        said = msgspec.json.decode(body, type=_ErrorBody).error
        text = said if isinstance(said, str) else str(said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = bytes(body[: 4 * MAX_WORDS]).decode("utf-8", errors="replace")
    return shortened(text)


def shortened(text: str) -> str:
    """On one line, and no longer than is passed on."""
    text = " ".join(text.split())
    return text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]}…"
