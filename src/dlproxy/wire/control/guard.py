"""Who may do what on the control port: asks for keys where there are some, and else lets only this machine change things.

Stands before the routes of control/http.py. Not aware of: what they do.
"""

import ipaddress
import re
from collections.abc import Mapping
from contextlib import suppress

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from dlproxy.message import ANONYMOUS, Failure, FailureKind, Grant, InferenceError, Principal
from dlproxy.message import Scope as Right
from dlproxy.wire.audit import Audit
from dlproxy.wire.http.exchange import STATUS, what_of
from dlproxy.wire.http.target import name_in
from dlproxy.wire.rights import demand
from dlproxy.wire.terms import Identify, Peer

WHO, KEYED, PEER = "dlproxy.who", "dlproxy.keyed", "peer"  # in the scope of a request the first two, and in its state

HEALTH = "/healthz"  # orchestrators ask without a key; which models there are is told to those who may see them
OPEN = ("/docs", "/")  # pages that hold nothing but themselves, as do the files of one
FILES = "/dashboard/static/"
PASSED_ON = "/docs/try"  # to the inference port, which asks for itself
HARMLESS = ("GET", "HEAD", "OPTIONS")
SWITCHES = (
    "/autopilot/pause",
    "/autopilot/resume",
    "/autopilot/challenge",
    "/cache/clear",
)  # whose model is in the body: they look who may
_OF_ONE = re.compile(r"/(?:models|autopilot|cache)/(?P<name>[^/]+)(?:/[^/]+)?")

STRANGER = Principal(grant=Grant(frozenset()))


TOLD = "x-dlproxy-who"  # from the keeper of several gateways to one of them, on a socket that nobody else can reach


def telling(who: Principal) -> tuple[str, str]:
    """The header in which who asks is passed on."""
    return TOLD, msgspec.msgpack.encode(who).hex()


def as_told(peer: Peer, method: bytes, target: bytes, headers: Mapping[bytes, bytes]) -> Principal:
    """An Identify: whom such a header names. Raises InferenceError."""
    try:
        return msgspec.msgpack.decode(bytes.fromhex(headers[TOLD.encode()].decode("ascii")), type=Principal)
    except (KeyError, ValueError, msgspec.DecodeError):
        raise InferenceError(Failure(FailureKind.UNAUTHENTICATED, "this port is for the keeper of gateways alone")) from None


class ControlGuard:
    """ASGI middleware. `identify`: None where no keys are asked for. What changes something is written to the audit log."""

    def __init__(self, app: ASGIApp, identify: Identify | None, audit: Audit | None = None) -> None:
        self._app = app
        self._audit = audit or Audit()
        self._identify = identify

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        headers, harmless, who = Headers(scope=scope), scope["method"] in HARMLESS, ANONYMOUS
        try:
            who = self._allowed(scope, headers, harmless=harmless)
            scope = {**scope, WHO: who, KEYED: self._identify is not None}
        except InferenceError as error:
            self._audit.refusal(error.failure, _address(scope), _what(scope), who)
            challenge = {"www-authenticate": "Bearer"} if error.failure.kind is FailureKind.UNAUTHENTICATED else None
            status = STATUS[error.failure.kind]
            await JSONResponse({"error": error.failure.message}, status_code=status, headers=challenge)(scope, receive, send)
            return
        if harmless or self._identify is as_told:  # whoever told it has it in its own audit log
            await self._app(scope, receive, send)
            return

        async def sent(message: Mapping[str, object]) -> None:
            if message["type"] == "http.response.start":
                self._audit.deed(who, _address(scope), _what(scope), f"answered {message['status']}")
            await send(dict(message))

        await self._app(scope, receive, sent)

    def _allowed(self, scope: Scope, headers: Headers, *, harmless: bool) -> Principal:
        """Raises InferenceError."""
        if not harmless:
            _refuse_other_sites(headers)
        if scope["path"] == PASSED_ON or scope["path"].startswith(f"{PASSED_ON}/"):
            return ANONYMOUS
        if self._identify is None:
            if not harmless and not _is_here(scope):
                raise _forbidden("changes are taken from this machine only, as no API keys are asked for ([auth] keys)")
            return ANONYMOUS
        asked = (peer_in(scope), scope["method"].encode(), scope["raw_path"], dict(headers.raw))
        if scope["path"] == HEALTH:
            with suppress(InferenceError):
                return self._identify(*asked)
            return STRANGER
        who = self._identify(*asked)
        right: Right = "metrics" if scope["path"] == "/metrics" else "read" if harmless else "admin"
        named = _OF_ONE.fullmatch(scope["path"])
        switches = right == "admin" and scope["path"] in SWITCHES
        demand(who, right, None if switches else name_in(named["name"]) if named else "")
        return who


def who_asks(request: Request) -> Principal:
    """As the guard has found."""
    found: Principal = request.scope[WHO]
    return found


def may_change(request: Request) -> bool:
    """Whether a change, of what it may see of, would be taken from who asks."""
    grant, scope = who_asks(request).grant, request.scope
    return grant.allows("admin") if grant is not None else scope[KEYED] or _is_here(scope)


def peer_in(scope: Scope) -> Peer:
    """The other end of the connection, as server.py has found it there."""
    found: Peer | None = scope.get("state", {}).get(PEER)
    return found or Peer(_address(scope))


def _refuse_other_sites(headers: Headers) -> None:
    """A page that a browser on this machine shows may not change anything here, whatever name it gives this address."""
    origin, host = headers.get("origin"), headers.get("host", "")
    if origin is not None and origin.partition("://")[2] != host:
        raise _forbidden(f"pages of {origin[:100]} may not change anything here")
    if origin is not None and not _is_local_name(host):
        raise _forbidden(f"{host[:100]} is no name under which pages may change anything here")


def _is_open(scope: Scope) -> bool:
    path, harmless = scope["path"], scope["method"] in HARMLESS
    return path in OPEN or (harmless and path.startswith(FILES))


def _is_here(scope: Scope) -> bool:
    client = scope.get("client")
    if not client:  # a Unix socket
        return True
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False


def _is_local_name(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _forbidden(message: str) -> InferenceError:
    return InferenceError(Failure(FailureKind.FORBIDDEN, message))


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def _what(scope: Scope) -> str:
    return what_of(scope["method"].encode(), scope["raw_path"])
