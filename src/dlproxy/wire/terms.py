"""What a request asks for besides an answer: by when, how urgently, for whom. Read from headers, parameters and arguments.

Called by every protocol and serve/proxy.py; what comes of it is settled in endpoint.py. Not aware of: bodies, lanes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf, isnan
from reprlib import repr as brief  # bounds the length: the value is the client's
from typing import Any

import msgspec
from msgspec import Struct

from dlproxy.message import (
    ANONYMOUS,
    NO_HEADERS,
    NO_TRACE,
    Failure,
    FailureKind,
    InferenceError,
    InSequence,
    Principal,
    Signature,
    Trace,
    invalid,
)
from dlproxy.policy.hops import RETRIES, VIA, why_refused
from dlproxy.policy.queueing import DEFAULT_LEVEL, LOWEST_LEVEL
from dlproxy.wire.trace import REQUEST_ID, TRACE_PARENT, trace_of

DEADLINE = b"x-request-deadline-ms"
GRPC_TIMEOUT = b"grpc-timeout"
PRIORITY = b"x-request-priority"
CACHE_CONTROL = b"cache-control"
_VIA, _RETRIES = VIA.encode(), RETRIES.encode()
NOT_KEPT = -1.0  # of max_age_s
MOST_TENANT = 128  # characters of a tenant's name or of a sticky header that count
MOST_DEADLINE_MS = 1e12  # 31 years
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}  # of gRPC's time-outs
SEQUENCE_PARAMETERS = ("sequence_id", "sequence_start", "sequence_end")
SEQUENCE = frozenset(SEQUENCE_PARAMETERS)
MOST_SEQUENCE_ID = 128  # characters, as in Triton


class Peer(Struct, frozen=True):
    """The other end of a connection: its address, empty on a Unix socket, and what it has shown when it connected.

    `name`: "cert:" and the common name of its certificate, or "unix:" and the user id; empty for neither.
    """

    address: str = ""
    name: str = ""


Identify = Callable[[Peer, bytes, bytes, Mapping[bytes, bytes]], Principal]
"""Who asks, from the connection, a request's method, path and headers alone: a protocol calls it before it reads the body.

Raises InferenceError(UNAUTHENTICATED or FORBIDDEN) to refuse the request.
"""


class Terms(Struct, frozen=True):
    """`timeout_s`: how long after its arrival an answer is worth something. `priority`: as a Ticket has it, None if not given.

    `affinity`: what the request sticks to where the model's knob is sticky = "header:NAME". `max_age_s`, `headers`, `sequence`:
    as a Request has them. `once`: as a Ticket has it. `of_node`: another dlproxy sent it, and is told how busy this one is.
    """

    timeout_s: float = inf
    priority: int | None = None
    tenant: str = ""
    affinity: str = ""
    principal: Principal = ANONYMOUS
    trace: Trace = NO_TRACE
    max_age_s: float = inf
    headers: Mapping[str, str] = NO_HEADERS
    sequence: InSequence | None = None
    once: bool = False
    of_node: bool = False

    def over(self, others: "Terms") -> "Terms":
        """Both: the shorter timeout holds; what only `others` say counts too."""
        priority = others.priority if self.priority is None else self.priority
        timeout_s = min(self.timeout_s, others.timeout_s)
        sequence = self.sequence or others.sequence
        return msgspec.structs.replace(self, timeout_s=timeout_s, priority=priority, sequence=sequence)


NO_TERMS = Terms()  # the one that is compared by identity: most requests ask for nothing


class HeaderTerms:
    """Reads the headers, or gRPC's metadata, of one model's requests. `sticky`: as the knob has it. `wanted`: names of those
    that the requests carry on. `hop`: the id by which nodes that come after this one would know it, were this one among them.

    Headers that repeat are one object (http/connection.py), so what the last ones said is known by identity.
    """

    def __init__(self, *, tenant_header: str, sticky: str, wanted: Collection[str] = (), hop: str = "") -> None:
        self._hop = hop
        self._wanted = {name.encode("latin-1"): name for name in map(str.lower, wanted)}
        self._tenant_header = tenant_header.lower().encode("latin-1")
        self._sticky_header = sticky.removeprefix("header:").lower().encode("latin-1") if ":" in sticky else b""
        self._last: Mapping[bytes, bytes] | None = None
        self._last_terms = NO_TERMS

    def read(self, headers: Mapping[bytes, bytes], principal: Principal = ANONYMOUS) -> Terms:
        """Raises InferenceError: INVALID_ARGUMENT for a value that is none, LOOP for a request that has come back.

        The principal's tenant, if it has one, holds.
        """
        if headers is self._last and principal is self._last_terms.principal:
            return self._last_terms
        self._last_terms = self._read(headers, principal)
        self._last = headers
        return self._last_terms

    def _read(self, headers: Mapping[bytes, bytes], principal: Principal) -> Terms:
        timeout_s = deadline_of(headers)
        priority, tenant = headers.get(PRIORITY), headers.get(self._tenant_header)
        affinity = headers.get(self._sticky_header) if self._sticky_header else None
        trace = trace_of(headers) if REQUEST_ID in headers or TRACE_PARENT in headers else NO_TRACE
        max_age_s = max_age_of(headers[CACHE_CONTROL]) if CACHE_CONTROL in headers else inf
        carried = self._carried(headers) if self._wanted else NO_HEADERS
        once, of_node = headers.get(_RETRIES) == b"0", _VIA in headers
        if of_node and (why := why_refused(self._hop, _text_in(headers[_VIA]))):
            raise InferenceError(Failure(FailureKind.LOOP, why))
        silent = timeout_s == inf and priority is None and tenant is None and affinity is None and max_age_s == inf
        if silent and principal is ANONYMOUS and trace is NO_TRACE and not (carried or once or of_node):
            return NO_TERMS
        return Terms(
            timeout_s,
            None if priority is None else _level(priority),
            principal.tenant or _name(tenant),
            _name(affinity),
            principal,
            trace,
            max_age_s,
            carried,
            once=once,
            of_node=of_node,
        )

    def _carried(self, headers: Mapping[bytes, bytes]) -> Mapping[str, str]:
        return {name: _text_in(headers[key]) for key, name in self._wanted.items() if key in headers}


def deadline_of(headers: Mapping[bytes, bytes]) -> float:
    """The timeout alone, in seconds: the shorter of ours and gRPC's. Raises InferenceError(INVALID_ARGUMENT)."""
    deadline, timeout = headers.get(DEADLINE), headers.get(GRPC_TIMEOUT)
    timeout_s = inf if timeout is None else grpc_timeout(timeout)
    return timeout_s if deadline is None else min(timeout_s, _milliseconds(deadline) * 1e-3)


def grpc_timeout(value: bytes) -> float:
    """Seconds. Raises InferenceError(INVALID_ARGUMENT)."""
    digits, unit = value[:-1], _UNITS.get(value[-1:])
    if unit is None or not digits.isdigit() or len(digits) > 8:
        shown = brief(value.decode("latin-1"))
        raise invalid(f"{GRPC_TIMEOUT.decode()} is {shown}; it must be up to 8 digits and one of H, M, S, m, u, n")
    timeout_s = int(digits) * unit
    return timeout_s if timeout_s <= MOST_DEADLINE_MS * 1e-3 else inf


def max_age_of(value: bytes) -> float:
    """What Cache-Control (RFC 9111) says of remembered answers, as Request.max_age_s; what is not understood says nothing."""
    found = inf
    for directive in value.lower().split(b","):
        name, _, number = directive.strip().partition(b"=")
        if name == b"no-store":
            return NOT_KEPT
        if name == b"no-cache":
            found = 0.0
        elif name == b"max-age":
            number = number.strip(b'"')
            if number.isdigit():
                found = min(found, float(number[:12]))
    return found


def in_milliseconds(left_s: float) -> bytes:
    """A timeout as the DEADLINE header has it."""
    return b"%.6f" % max(left_s * 1e3, 1e-6)


def of_parameters(params: Mapping[str, Any]) -> Terms:
    """What the parameters of an Open Inference Protocol request say. Raises InferenceError."""
    sequence = None if SEQUENCE.isdisjoint(params) else sequence_of(*map(params.get, SEQUENCE_PARAMETERS))
    timeout_us, priority = params.get("timeout"), params.get("priority")
    if timeout_us is None and priority is None and sequence is None:
        return NO_TERMS
    if timeout_us is not None and not (_is_integer(timeout_us) and 0 <= timeout_us < 2**63):
        raise invalid(f"parameter 'timeout' is {brief(timeout_us)}; it must be a non-negative integer of microseconds")
    timeout_s = timeout_us * 1e-6 if timeout_us else inf  # 0: no timeout of its own, as in Triton
    return Terms(timeout_s, None if priority is None else checked_priority(priority), sequence=sequence)


def sequence_of(sequence_id: Any, start: Any, end: Any) -> InSequence | None:
    """Unchecked, as only a model that has sequences says more than that it has none; None for 0, "", false and null, which
    stand for no sequence, as in Triton.
    """
    return InSequence(sequence_id or 0, start or False, end or False) if sequence_id or start or end else None


def checked_sequence(said: InSequence, signature: Signature) -> InSequence:
    """Raises InferenceError, UNSUPPORTED where the model has no sequences."""
    parameters = {"sequence_end": said.end, "sequence_id": said.id, "sequence_start": said.start}
    if not signature.sequences:
        name, value = next((name, value) for name, value in parameters.items() if value)
        message = f"parameter '{name}' is {brief(value)}, but sequences are not supported"
        how = 'set sequences = "oldest" or "direct"' if signature.told_sequences else "omit it in stateless requests"
        raise InferenceError(Failure(FailureKind.UNSUPPORTED, f"{message}; {how}"))
    if isinstance(said.id, str):
        if len(said.id) > MOST_SEQUENCE_ID:
            raise invalid(f"parameter 'sequence_id' has {len(said.id)} characters; it may have {MOST_SEQUENCE_ID}")
    elif not (_is_integer(said.id) and 0 <= said.id < 2**64):
        raise invalid(f"parameter 'sequence_id' is {brief(said.id)}; it must be an integer from 0 to 2**64 - 1, or a text")
    for name in ("sequence_start", "sequence_end"):
        if not isinstance(parameters[name], bool):
            raise invalid(f"parameter '{name}' is {brief(parameters[name])}; it must be true or false")
    return said


def of_arguments(
    *,
    timeout_s: float | None,
    priority: int,
    tenant: str,
    affinity: str,
    cache_control: str = "",
    sequence_id: int | str = 0,
    sequence_start: bool = False,
    sequence_end: bool = False,
) -> Terms:
    """What a Python caller asks for. Raises InferenceError(INVALID_ARGUMENT)."""
    if timeout_s is not None and isnan(timeout_s):
        raise invalid("timeout_s is nan; it must be seconds from now, or None")
    timeout_s = inf if timeout_s is None else timeout_s
    max_age_s = max_age_of(cache_control.encode()) if cache_control else inf
    if cache_control and max_age_s == inf:  # a header would say nothing then, but here it is a slip
        raise invalid(f"cache_control is {brief(cache_control)}; it must be no-cache, no-store or max-age=SECONDS")
    sequence = sequence_of(sequence_id, sequence_start, sequence_end)
    return Terms(timeout_s, checked_priority(priority), tenant, affinity, max_age_s=max_age_s, sequence=sequence)


def by_level(slo_s: float | None, own: Mapping[int, float]) -> Sequence[float | None] | None:
    """The objective of each priority, that of 0 for requests which name none; None if no priority has one of its own."""
    if not own:
        return None
    levels = [own.get(priority, slo_s) for priority in range(LOWEST_LEVEL + 1)]
    return [levels[DEFAULT_LEVEL], *levels[1:]]


def checked_priority(value: Any) -> int:
    """Raises InferenceError(INVALID_ARGUMENT)."""
    if not (_is_integer(value) and 0 <= value < 2**32):
        raise invalid(f"parameter 'priority' is {brief(value)}; it must be a non-negative integer, 0 for the default")
    number: int = value
    return number


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _name(value: bytes | None) -> str:
    """[tenants.zürich] means the same one in either encoding."""
    return _text_in(value)[:MOST_TENANT] if value else ""


def _text_in(value: bytes) -> str:
    """Clients send what is beyond ASCII in either encoding."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _milliseconds(value: bytes) -> float:
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = 0.0
    if not 0.0 < milliseconds <= MOST_DEADLINE_MS or b"_" in value:
        shown = brief(value.decode("latin-1"))
        raise invalid(f"header {DEADLINE.decode()} is {shown}; it must be milliseconds from now, greater than 0")
    return milliseconds


def _level(value: bytes) -> int:
    if not value.isdigit() or len(value) > 9:
        shown = brief(value.decode("latin-1"))
        raise invalid(f"header {PRIORITY.decode()} is {shown}; it must be 1 (most urgent), 2, …, or 0 for the default")
    return int(value)
