"""Who asks, from a request's headers and its connection: the same for every protocol. An Identify, made by serve/server.py.

Not aware of: what is asked for, sockets.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

from dlproxy.config.security import AuthConfig, GrantConfig
from dlproxy.message import Failure, FailureKind, Grant, InferenceError, Principal, Scope
from dlproxy.wire.identity.attempts import Attempts
from dlproxy.wire.identity.keys import Keys
from dlproxy.wire.identity.rules import Rules
from dlproxy.wire.rights import HEALTH
from dlproxy.wire.terms import Peer

if TYPE_CHECKING:
    from dlproxy.wire.identity.tokens import Tokens

AUTHORIZATION, API_KEY = b"authorization", b"x-api-key"
BEARER = b"bearer "
AGAIN_S = 0.2  # for which what was found of a header's value holds, before the key is looked up again
MOST_RECENT, MOST_RECENT_BYTES = 1024, 4096  # values of each header of which that is remembered, and the longest of them
ANONYMOUS_SCOPES: dict[str, tuple[Scope, ...]] = {"none": (), "metrics": ("metrics",), "infer": ("infer", "read", "metrics")}

STRANGER = Principal(grant=Grant(frozenset()))
NOBODY = Failure(FailureKind.UNAUTHENTICATED, "this server asks who you are: send 'Authorization: Bearer KEY'")


class IdentityDesk:
    """Knows keys, tokens, certificates and Unix accounts. What a request sends counts before what its connection has shown."""

    def __init__(self, auth: AuthConfig, grants: Mapping[str, GrantConfig], clock: Callable[[], float]) -> None:
        """Raises ConfigError for what cannot be used."""
        self._keys = Keys(Path(auth.keys), clock) if auth.keys else None
        self._tokens = None
        if auth.jwks:
            from dlproxy.wire.identity.tokens import Tokens  # of the extra `auth`

            self._tokens = Tokens(auth, clock, time)
        self._rules = Rules(grants)
        self._attempts = Attempts(clock)
        scopes = ANONYMOUS_SCOPES[auth.anonymous]
        self._anonymous = Principal(grant=Grant(frozenset(scopes))) if scopes else None
        self._of_peers: dict[str, Principal] = {}
        self._clock = clock
        self._recent: dict[bytes, dict[bytes, tuple[Principal, float]]] = {API_KEY: {}, AUTHORIZATION: {}}

    def __call__(self, peer: Peer, method: bytes, target: bytes, headers: Mapping[bytes, bytes]) -> Principal:
        """Raises InferenceError: UNAUTHENTICATED for what proves nothing, QUOTA for too many tries, FORBIDDEN."""
        header, shown = API_KEY, headers.get(API_KEY)
        if shown is None:
            header, shown = AUTHORIZATION, headers.get(AUTHORIZATION)
            if shown is None:
                return self._of_connection(peer, target)
        recent = self._recent[header]
        found = recent.get(shown)  # Python's hashes are keyed, too: how long this takes says nothing of what is in there
        if found is not None and self._clock() < found[1]:
            return found[0]
        who = self._of_credential(peer, shown if header is API_KEY else _bearer(shown))
        if len(shown) <= MOST_RECENT_BYTES:
            if len(recent) >= MOST_RECENT:
                recent.clear()
            recent[shown] = who, self._clock() + AGAIN_S
        return who

    def _of_credential(self, peer: Peer, shown: bytes) -> Principal:
        text = shown.decode("latin-1")
        store = self._tokens if self._tokens is not None and text.count(".") == 2 else self._keys
        if store is None:
            raise InferenceError(NOBODY)
        if store.knows(text):  # behind one address there are many clients: who has a key does not wait for who guesses
            return self._of_text(store, text)
        self._attempts.check(peer.address)
        try:
            return self._of_text(store, text)
        except InferenceError as error:
            if error.failure.kind is FailureKind.UNAUTHENTICATED:
                self._attempts.failed(peer.address)
            raise

    def _of_text(self, store: "Keys | Tokens", text: str) -> Principal:
        if isinstance(store, Keys):
            return store.principal(text)
        said = store.said(text)
        return self._rules.principal("token", said.subject, said.scopes)

    def _of_connection(self, peer: Peer, target: bytes) -> Principal:
        if peer.name:
            known = self._of_peers.get(peer.name)
            if known is None:
                known = self._of_peers[peer.name] = self._of_peer(peer.name)
            return known
        if self._anonymous is not None:
            return self._anonymous
        if target in HEALTH:
            return STRANGER
        raise InferenceError(NOBODY)

    def _of_peer(self, shown: str) -> Principal:
        kind, _, name = shown.partition(":")
        return self._rules.principal(kind, name)


def _bearer(authorization: bytes) -> bytes:
    """The credential in it. Raises InferenceError UNAUTHENTICATED."""
    if authorization[: len(BEARER)].lower() != BEARER:
        raise InferenceError(NOBODY)
    return authorization[len(BEARER) :].strip()
