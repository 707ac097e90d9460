"""The vocabulary that every part of dlproxy speaks: tensors, requests, tickets, responses, failures.

Hot-path messages are msgspec Structs: built in C, about three times faster than a slotted dataclass.
Not aware of: wire formats, runtimes, policies.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from math import inf, prod
from types import MappingProxyType
from typing import Any, Literal, Protocol

from msgspec import Struct


class DType(Enum):
    """An element type by its Open Inference Protocol name; `itemsize` is bytes per element, 0 for BYTES (it varies)."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    BF16 = "BF16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"

    itemsize: int

    __hash__ = object.__hash__  # Enum's own hashes the name in Python code; members are singletons, so identity will do

    def __init__(self, code: str) -> None:
        bits = "".join(filter(str.isdigit, code))
        self.itemsize = 1 if code == "BOOL" else int(bits or 0) // 8


class Tensor(Struct):
    """Elements in C order, little-endian, as a zero-copy view. BYTES elements are each a u32 length and that many bytes."""

    name: str
    dtype: DType
    shape: Sequence[int]
    data: memoryview | bytes


class TensorSpec(Struct, frozen=True):
    """One input or output as a model declares it. -1 in `shape` stands for any size; `axes` are the names of such sizes, where
    the model has any: sizes of one name are equal.

    `text`: BYTES elements must be UTF-8, and the model takes them as str; else they are opaque, and it takes bytes.
    If the model batches, `rows` is the axis that counts rows, None for what all rows of a batch share. `counts`: the output
    that says how many elements of that axis belong to each row, empty where it is one each. `default`: the elements of an
    input that may be left out. `padded`: the axis along which requests of a batch may differ in length; inputs are filled up
    with `pad` there, outputs cut back. None where they must be equal.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    text: bool = False
    axes: tuple[str, ...] = ()
    rows: int | None = 0
    counts: str = ""
    default: bytes | None = None
    padded: int | None = None
    pad: float = 0.0

    @property
    def sizes(self) -> list[str]:
        """The shape for people: an open size by the model's own name for it, N where it counts rows, else A, B, C and so on."""
        names = self.axes or ("",) * len(self.shape)
        letters = (letter for letter in "ABCDEFGHIJKLMOPQRSTUVWXYZ" * len(names) if letter not in names)
        return [
            str(size) if size >= 0 else name or ("N" if axis == self.rows else next(letters))
            for axis, (size, name) in enumerate(zip(self.shape, names, strict=True))
        ]

    @property
    def is_mask(self) -> bool:
        """Whether its name says that it marks what counts."""
        return "mask" in self.name.lower()

    @property
    def is_length(self) -> bool:
        """Whether name, type and shape say that it tells how long each row is."""
        one_each = all(size == 1 for axis, size in enumerate(self.shape) if axis != self.rows)
        integer = "INT" in self.dtype.value
        return integer and self.rows is not None and one_each and "len" in self.name.lower()


Strategy = Literal["", "oldest", "direct"]


class Signature(Struct, frozen=True):
    """What a loaded model takes and gives.

    `batched`: rows are independent and may be any number; each spec says where they stand. `even`: all inputs of a request have
    equally many; else the model may broadcast one, and such a request runs alone. `streams`: answers may come in parts.
    `sequences`: how those are run in which an answer depends on the requests before it; empty: none does.
    `told_sequences`: the model keeps the state of sequences itself, and is told of which each row is.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    platform: str
    even: bool = True
    streams: bool = False
    sequences: Strategy = ""
    told_sequences: bool = False

    @property
    def pads(self) -> bool:
        """Whether requests of different lengths may share a batch."""
        return any(spec.padded is not None for spec in self.inputs)


PINNED = -3  # before and after the instance's name in the shape_key of a pinned ticket; no size or other mark is equal to it


class Ticket(Struct, eq=False):
    """All that a policy may see of a request: no tensors, so traces and simulators can make tickets.

    Tickets with equal `shape_key` may share a batch. `deadline_at` is what scheduling aims at, +inf for nothing. `answer_by` is
    the client's own deadline, a promise: an answer or a failure by then; never before `deadline_at`. `priority`: 1 is the most
    urgent, larger is less so, 0 stands for the default. `affinity`: what a sticky balancer hashes, empty for nothing.
    `length`: what one row holds along its open axes (tokens, pixels) in the input that holds the most, or along the padded axis
    alone if there is one; 1 if none is open. `family`: equal for tickets that may share a batch if shorter ones are padded, as
    nothing but this length tells them apart; empty for one that may not be. An id below 0 is no client's: of a
    re-check (serve/recheck.py) or a shadow's request (serve/traffic.py). `part_of`: of a part of a request that was split, the
    request's id, which its first part has itself; else 0. `whole_rows`: of a part, the rows of the request; else 0.
    `pinned`: the one instance that it may run on, as what it needs is in there; empty for any. Set by `pin`.
    `once`: errors do not make it run again here, as the node that it came from has the budget for that (hops.py).
    """

    id: int
    arrived_at: float
    deadline_at: float = inf
    rows: int = 1
    priority: int = 0
    tenant: str = ""
    shape_key: tuple[int, ...] = ()
    fingerprint: bytes | None = None
    affinity: str = ""
    length: int = 1
    family: tuple[int, ...] = ()
    answer_by: float = inf
    part_of: int = 0
    whole_rows: int = 0
    pinned: str = ""
    once: bool = False

    def pin(self, instance: str) -> None:
        """It may run on this instance alone, once, and shares batches only with those that are pinned to it as well."""
        place = (PINNED, *instance.encode(), PINNED)
        self.pinned, self.shape_key = instance, place + self.shape_key
        self.family = place + self.family if self.family else ()

    @property
    def of_client(self) -> bool:
        """Whether somebody waits for it; else it is a comparison of our own."""
        return self.id >= 0

    @property
    def follows(self) -> bool:
        """Whether it is a part of a request, and not the first one."""
        return self.part_of not in (0, self.id)


Scope = Literal["infer", "read", "metrics", "admin"]
"""What one may do: ask models; see which there are and how they are; see metrics; change what is served, and all of these but
the first.
"""


class Grant(Struct, frozen=True):
    """What somebody may do, and with which models: names, or patterns with * for any text."""

    scopes: frozenset[Scope]
    models: tuple[str, ...] = ("*",)

    def allows(self, scope: Scope, model: str = "") -> bool:
        """`model`: empty for what is about none of them."""
        if scope not in self.scopes and ("admin" not in self.scopes or scope == "infer"):
            return False
        if not model:
            return True
        for pattern in self.models:  # noqa: SIM110  any() takes four times as long, and this is asked for every request
            if pattern == "*" or fits(pattern, model):
                return True
        return False


def fits(pattern: str, name: str) -> bool:
    """Whether the name is what the pattern says, in which * stands for any text."""
    first, *others = pattern.split("*")
    if not others:
        return name == pattern
    if not name.startswith(first) or not name.endswith(others[-1]) or len(name) < len(first) + len(others[-1]):
        return False
    at, end = len(first), len(name) - len(others[-1])
    for part in others[:-1]:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


LEAST_RATE = 1e-6  # one in 11 days: slower rates would tell clients to wait for times that no header can hold


class Quota(Struct, frozen=True):
    """What one may send: sustained rates, how many seconds of each at once after a pause, and how many requests may be under
    way at a time.
    """

    requests_per_s: float = inf
    rows_per_s: float = inf
    burst_s: float = 1.0
    concurrent: float = inf

    def __post_init__(self) -> None:
        """Raises ValueError for what could never admit, or never refuse."""
        for name, rate in (("requests_per_s", self.requests_per_s), ("rows_per_s", self.rows_per_s)):
            if not rate >= LEAST_RATE:
                raise ValueError(f"{name} is {rate}; it must be at least {LEAST_RATE}")
        if not 0.0 <= self.burst_s < inf:
            raise ValueError(f"burst_s is {self.burst_s}; it must be finite and not negative")
        if not self.concurrent >= 1:
            raise ValueError(f"concurrent is {self.concurrent}; it must be at least 1")


class Principal(Struct, frozen=True):
    """Who asks, as far as that is proven; `name` is empty for an anonymous client.

    `tenant`: whose quota and share its requests use; empty if each request may say that itself. `grant`: None for everything.
    `quota`: its own, beside its tenant's; None if it has none.
    """

    name: str = ""
    tenant: str = ""
    grant: Grant | None = None
    quota: Quota | None = None


ANONYMOUS = Principal()  # compared by identity


class Trace(Struct, frozen=True):
    """Under which names others know a request: the client's own id, and its place in a trace (W3C Trace Context), as text.

    Each empty if the client did not say it, or not as it should be. `span`: of a request that is traced here, the innermost of
    ours that all that is done for it belongs below (serve/tracing.py); `parent` then names one of ours.
    """

    request_id: str = ""
    parent: str = ""
    state: str = ""
    span: Any = None

    @property
    def sampled(self) -> bool:
        """Whether somebody records what becomes of it, as the last digit of the parent's flags says."""
        return bool(self.parent) and self.parent[-1] in "13579bdf"


NO_TRACE = Trace()  # compared by identity
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class InSequence(Struct, frozen=True):
    """What a request says of its sequence: which it is (0 or empty: none), and whether it is its first, or its last.

    `slot`: the sequence's own number on its instance, from 0, for as long as it lives; -1 if it has none.
    """

    id: int | str = 0
    start: bool = False
    end: bool = False
    slot: int = -1


class Request(Struct, eq=False):
    """A checked request: `inputs` stand in the order of the model's signature, `outputs` index the wanted outputs.

    `max_age_s`: how old a remembered answer may be; 0: it is computed anew, below 0: and not remembered either. `sequence`:
    None of a model without sequences, or if the request says nothing of one. `headers`: those of the client's that the model
    asks for, by names in lower case. `charged`: it is a stage's of a pipeline, whose request the quotas have counted.
    """

    ticket: Ticket
    model: str
    inputs: list[Tensor]
    outputs: Sequence[int]
    id: str = ""
    params: dict[str, Any] = {}
    principal: Principal = ANONYMOUS
    trace: Trace = NO_TRACE
    max_age_s: float = inf
    headers: Mapping[str, str] = NO_HEADERS
    charged: bool = False
    sequence: InSequence | None = None

    @property
    def named(self) -> dict[str, Any]:
        """As `extra` of a line in the log about it: its client's id for it or else ours, and its trace."""
        trace = {"trace_id": self.trace.parent[3:35]} if self.trace.sampled else {}
        return {"request": {"id": self.trace.request_id or self.id or str(self.ticket.id), **trace}}


class Timing(Struct):
    """Where a request's time went, in seconds: waiting in the lane, gathering and splitting its batch, the model itself.

    Of a request that ran in parts: of the part that was answered last, as the others were waiting for that.
    """

    queue_s: float
    batch_s: float
    compute_s: float


Cached = Literal["", "hit", "miss", "joined", "partial", "bypass"]
"""What the result cache had to do with an answer: it had it, or not; another request's run gave it; it had some of the rows; it
was told to keep out; "": there is none.
"""


class Response(Struct, eq=False):
    """The answer to one request; `outputs` in the order that the request named. `rest`: None if that is all of it.
    `variant`: the name of the model that answered in place of the one asked for; empty if none did. `load`: how busy the model
    is, as hops.py writes it, for another node that asked.
    """

    id: str
    model: str
    version: str
    outputs: list[Tensor]
    timing: Timing
    rest: "Rest | None" = None
    cache: Cached = ""
    variant: str = ""
    load: str = ""


class PartTo(Protocol):
    """Where a further part of an answer goes. Exactly one of these is called for each ask, once, on the event loop."""

    def part(self, outputs: list[Tensor]) -> None:
        """There may be more."""
        ...

    def ended(self) -> None:
        """The part before was the last."""
        ...

    def failed(self, failure: "Failure") -> None:
        """What has come stays true, but nothing more comes."""
        ...


class Rest(Protocol):
    """What follows the first part of an answer. Nothing is computed ahead of whoever reads it: one part for each ask."""

    def ask(self, to: PartTo) -> None:
        """For the next part; it may come before this returns. One at a time, and none after the end, a failure or `stop`."""
        ...

    def stop(self) -> None:
        """The reader has left; an ask that waits gets `failed(CANCELLED)`. May be called at any time, and again."""
        ...


class FailureKind(Enum):
    """Why a request got no answer; each protocol's codec maps these to its own status codes."""

    INVALID_ARGUMENT = "invalid_argument"
    NOT_FOUND = "not_found"
    QUEUE_FULL = "queue_full"
    OVERLOADED = "overloaded"
    QUOTA = "quota"
    DEADLINE = "deadline"  # it would be, or waited until it was, later than scheduling aims at
    LATE = "late"  # the client's own deadline has passed
    UNAVAILABLE = "unavailable"
    MODEL_FAILED = "model_failed"
    CANCELLED = "cancelled"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too_large"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    LOOP = "loop"  # it has come back to where it was before


class Failure(Struct, frozen=True):
    """What went wrong, in words for the client; `retry_after_s` when trying again later may help."""

    kind: FailureKind
    message: str
    retry_after_s: float | None = None


class InferenceError(Exception):
    """Raised towards callers of the Python API and by codecs; carries one Failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def invalid(message: str) -> InferenceError:
    """The error for a request that can never succeed as it is."""
    return InferenceError(Failure(FailureKind.INVALID_ARGUMENT, message))


def encodable(text: str) -> str:
    """The same as UTF-8 can carry it: a lone surrogate, as in Python's name of a file that is no UTF-8, as a backslash escape.

    For text that is not ours, where it comes in: no encoder of replies, frames or logs takes it as it is.
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def text_of(error: BaseException) -> str:
    """What an exception that is not ours says, or its type's name if it says nothing or cannot be asked."""
    try:
        text = str(error)
    except Exception:  # its own __str__ is broken
        text = ""
    return encodable(text) or type(error).__name__


def element_count(shape: Sequence[int]) -> int:
    """Number of elements of a tensor of this shape (1 for a scalar)."""
    return prod(shape)
