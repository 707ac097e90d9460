"""What HTTP headers say of how a request is to be served: its deadline, priority, tenant, and what it sticks to.

Called by wire/oip_http.py once per request. Not aware of: bodies, lanes.
"""

from collections.abc import Mapping
from hashlib import blake2b
from reprlib import repr as brief  # bounds the length: the value is the client's

from dlproxy.message import Request, invalid

DEADLINE = b"x-request-deadline-ms"
PRIORITY = b"x-request-priority"
MOST_TENANT = 128  # characters of a tenant's name or of a sticky header that count
MOST_DEADLINE_MS = 1e12  # 31 years


class Terms:
    """Reads the headers of one model's requests. `sticky`: "", "tenant", "input" or "header:NAME", as the knob has it."""

    def __init__(self, *, tenant_header: str, sticky: str) -> None:
        self._tenant_header = tenant_header.lower().encode("latin-1")
        self._sticky = sticky
        self._sticky_header = sticky.removeprefix("header:").lower().encode("latin-1") if ":" in sticky else b""

    def apply(self, headers: Mapping[bytes, bytes], request: Request, now: float) -> None:
        """Write them on the request's ticket. Raises InferenceError(INVALID_ARGUMENT) for a value that is none."""
        deadline = headers.get(DEADLINE)
        if deadline is not None:
            ticket = request.ticket
            ticket.deadline_at = min(ticket.deadline_at, now + _milliseconds(deadline) * 1e-3)
        priority = headers.get(PRIORITY)
        if priority is not None:
            request.ticket.priority = _priority(priority)
        tenant = headers.get(self._tenant_header)
        if tenant is not None:
            request.ticket.tenant = _name(tenant)
        if self._sticky:
            request.ticket.affinity = self._affinity(headers, request)

    def _affinity(self, headers: Mapping[bytes, bytes], request: Request) -> str:
        if self._sticky == "tenant":
            return request.ticket.tenant
        if self._sticky_header:
            return _name(headers.get(self._sticky_header, b""))
        digest = blake2b(digest_size=8)
        for tensor in request.inputs:
            digest.update(tensor.data)
        return digest.hexdigest()


def _name(value: bytes) -> str:
    """Clients send names beyond ASCII in either encoding; [tenants.zürich] means the same one."""
    try:
        return value.decode()[:MOST_TENANT]
    except UnicodeDecodeError:
        return value.decode("latin-1")[:MOST_TENANT]


def _milliseconds(value: bytes) -> float:
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = 0.0
    if not 0.0 < milliseconds <= MOST_DEADLINE_MS or b"_" in value:
        raise invalid(
            f"header {DEADLINE.decode()} is {brief(value.decode('latin-1'))}; it takes milliseconds from now, above 0"
        )
    return milliseconds


def _priority(value: bytes) -> int:
    if not value.isdigit() or len(value) > 9:
        raise invalid(f"header {PRIORITY.decode()} is {brief(value.decode('latin-1'))}; it takes 1 (most urgent), 2, … or 0")
    return int(value)
