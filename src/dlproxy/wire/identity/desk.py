"""Who asks, from a request's headers: the same for every protocol. An Identify (wire/terms.py), made by serve/server.py.

Not aware of: what is asked for, sockets.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from dlproxy.config.security import AuthConfig
from dlproxy.message import Failure, FailureKind, Grant, InferenceError, Principal, Scope
from dlproxy.wire.identity.keys import Keys

AUTHORIZATION, API_KEY = b"authorization", b"x-api-key"
BEARER = b"bearer "
ANONYMOUS_SCOPES: dict[str, tuple[Scope, ...]] = {"none": (), "metrics": ("metrics",), "infer": ("infer", "read", "metrics")}

NOBODY = Failure(FailureKind.UNAUTHENTICATED, "this server asks for an API key: send it as 'Authorization: Bearer KEY'")


class IdentityDesk:
    """`principal_of` raises InferenceError: UNAUTHENTICATED for what proves nothing."""

    def __init__(self, config: AuthConfig, clock: Callable[[], float]) -> None:
        """Raises ConfigError for a file that cannot be used."""
        self._keys = Keys(Path(config.keys), clock)
        scopes = ANONYMOUS_SCOPES[config.anonymous]
        self._anonymous = Principal(grant=Grant(frozenset(scopes))) if scopes else None

    def __call__(self, method: bytes, target: bytes, headers: Mapping[bytes, bytes]) -> Principal:
        return self.principal_of(headers)

    def principal_of(self, headers: Mapping[bytes, bytes]) -> Principal:
        key = headers.get(API_KEY)
        if key is None:
            authorization = headers.get(AUTHORIZATION)
            if authorization is None:
                if self._anonymous is None:
                    raise InferenceError(NOBODY)
                return self._anonymous
            if authorization[: len(BEARER)].lower() != BEARER:
                raise InferenceError(NOBODY)
            key = authorization[len(BEARER) :].strip()
        return self._keys.principal(key.decode("latin-1"))
