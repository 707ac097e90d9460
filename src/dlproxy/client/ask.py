"""What a client asks for, what comes back, and the way between: implemented by http.py and grpc.py. Called by awaited.py.

Not aware of: how a user's values become tensors, when a call is tried again.
"""

import re
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, Protocol

from msgspec import Struct
from numpy.typing import NDArray

from dlproxy import tensors
from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.remote.oip_model import Metadata
from dlproxy.message import DType, Failure, FailureKind, InferenceError, Tensor, TensorSpec, invalid
from dlproxy.tensors import Answer

_TENANT = re.compile(r"[^\x00-\x1f\x7f]*")
_CACHE_CONTROL = re.compile(r"(no-cache|no-store|max-age=[0-9]+)?")


class Ask(Struct, frozen=True):
    """One request. `outputs`: those that are wanted. `deadline`: whether the server is told by when it must be answered.

    `typed`: the model's outputs, for answers that do not say of what type they are. `sequence`: the parameters that say of
    which it is, and that it begins or ends; such a request is sent once.
    """

    model: str
    version: str
    inputs: Sequence[Tensor]
    outputs: Sequence[str]
    typed: Sequence[TensorSpec] = ()
    deadline: bool = False
    priority: int = 0
    tenant: str = ""
    cache_control: str = ""
    sequence: Mapping[str, int | str | bool] = {}

    def headers(self, left_s: float) -> list[tuple[str, str]]:
        """Names in lower case, for HTTP as for gRPC."""
        found = []
        if self.deadline:  # whole milliseconds where it matters little: a server recognises headers that repeat
            left_ms = max(left_s * 1e3, 1e-3)
            found.append(("x-request-deadline-ms", str(ceil(left_ms)) if left_ms > 10 else f"{left_ms:.3f}"))
        if self.priority:
            found.append(("x-request-priority", str(self.priority)))
        if self.tenant:
            found.append(("x-tenant-id", self.tenant))
        if self.cache_control:
            found.append(("cache-control", self.cache_control))
        return found


class ListedModel(Struct, frozen=True):
    """A model that the server has. `state`: READY, or what keeps it from that, which `reason` says."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


class CallError(InferenceError):
    """`again_after_s`: the same call may be sent once more, so much later: it never ran. None if nobody knows that."""

    def __init__(self, failure: Failure, again_after_s: float | None = None) -> None:
        super().__init__(failure)
        self.again_after_s = again_after_s


class Parts(Protocol):
    """An answer in parts."""

    async def next(self, left_s: float) -> Answer | None:
        """None after the last one. Raises InferenceError."""
        ...

    async def close(self) -> None:
        """Whoever reads leaves; the server stops. After the end it does nothing."""
        ...


class Transport(Protocol):
    """Made and used on one event loop. Every call ends within `left_s`, and raises InferenceError."""

    async def infer(self, ask: Ask, left_s: float) -> Answer: ...

    async def stream(self, ask: Ask, left_s: float) -> Parts: ...

    async def metadata(self, model: str, version: str, left_s: float) -> Metadata: ...

    async def models(self, left_s: float) -> list[ListedModel]: ...

    async def ready(self, model: str, version: str, left_s: float) -> bool:
        """Of the server, if no model is named."""
        ...

    async def close(self) -> None: ...


def of_upstream(error: UpstreamError) -> CallError:
    """No answer, or none that can be used."""
    words = str(error).replace("the upstream", "the server")
    return CallError(Failure(error.failure.kind, words), 0.0 if error.gone else None)


def as_given(dtype: DType, array: NDArray[Any]) -> NDArray[Any]:
    """An output as callers get it: BF16 as float32."""
    return tensors.bf16_to_fp32(array) if dtype is DType.BF16 else array


def checked_tenant(tenant: str) -> str:
    """Raises InferenceError(INVALID_ARGUMENT)."""
    if not _TENANT.fullmatch(tenant):
        raise invalid(f"tenant {tenant!r} has characters that no header can carry")
    return tenant


def checked_cache_control(value: str) -> str:
    """Raises InferenceError(INVALID_ARGUMENT)."""
    if not _CACHE_CONTROL.fullmatch(value):
        raise invalid(f"cache_control is {value!r}; it must be no-cache, no-store or max-age=SECONDS")
    return value


def silent() -> CallError:
    """Nothing came in time."""
    return CallError(Failure(FailureKind.UNAVAILABLE, "no answer from the server in time"))


def unfit(why: str) -> CallError:
    """An answer that is none."""
    return CallError(Failure(FailureKind.UNAVAILABLE, f"the server's answer cannot be used: {why}"))
