"""JSON Web Tokens (RFC 7519): their signatures are checked once, what they say is remembered until they expire.

Called by desk.py. Not aware of: headers, what anybody may do.
"""

import hashlib
import logging
import secrets
import threading
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from http.client import HTTPException
from math import inf
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
from msgspec import Struct

from dlproxy.config import ConfigError
from dlproxy.config.security import AuthConfig
from dlproxy.message import Failure, FailureKind, InferenceError

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")  # with public keys
USUAL = ("RS256", "ES256")
NEARBY = ("localhost", "127.0.0.1", "::1")
MOST_VERDICTS = 10_000
MOST_BYTES = 8192  # of a token
MOST_REASON = 200  # characters
LOOK_S = 1.0  # how often a file of keys is looked at
REFRESH_S, AGAIN_S = 300.0, 10.0  # how often a URL is asked for its keys, and how soon again for one that is not known
FETCH_S, MOST_FETCHED = 10.0, 1 << 20
LEEWAY_S = 10.0  # clocks differ

log = logging.getLogger(__name__)


class Said(Struct, frozen=True):
    """By a valid token. `scopes`: None if it says nothing of them."""

    subject: str
    scopes: frozenset[str] | None
    expires_at: float


class _Straight(urllib.request.HTTPRedirectHandler):
    """Follows nobody elsewhere, so that keys come from where the configuration says, and by https if it says so."""

    def redirect_request(self, *_: object) -> None:
        return None


class Tokens:
    """Checks tokens of one issuer for one audience."""

    def __init__(self, config: AuthConfig, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        """Raises ConfigError."""
        self._algorithms = config.jwt_algorithms or list(USUAL)
        if wrong := [name for name in self._algorithms if name not in ALGORITHMS]:
            raise ConfigError(f"jwt_algorithms: '{wrong[0]}' is none of {', '.join(ALGORITHMS)}", "jwt_algorithms")
        for knob in ("jwt_issuer", "jwt_audience"):
            if not getattr(config, knob):
                raise ConfigError(f"{knob} is missing: a token for others would be taken for one for this server", knob)
        url = urlsplit(config.jwks)
        if url.scheme == "http" and url.hostname not in NEARBY:
            raise ConfigError("jwks: keys that come by http:// can be exchanged on their way; use https:// or a file", "jwks")
        self._config = config
        self._clock, self._wall_clock = clock, wall_clock
        self._digest_key = secrets.token_bytes(32)
        self._verdicts: OrderedDict[bytes, Said | str] = OrderedDict()  # or why it is refused
        self._fetching = threading.Lock()
        self._state: object = None
        self._keys: dict[str, jwt.PyJWK] = {}
        self._looked_at = -inf
        self._take(self._read())
        self._looked_at = clock()

    def knows(self, text: str) -> bool:
        """Whether it was found valid before."""
        self._follow()
        return isinstance(self._verdicts.get(self._digest(text)), Said)

    def said(self, text: str) -> Said:
        """Raises InferenceError UNAUTHENTICATED."""
        self._follow()
        digest = self._digest(text)
        verdict = self._verdicts.get(digest)
        if verdict is None:
            verdict = self._verdict(text)
            self._verdicts[digest] = verdict
            if len(self._verdicts) > MOST_VERDICTS:
                self._verdicts.popitem(last=False)
        if isinstance(verdict, str):
            raise _refused(verdict)
        if verdict.expires_at + LEEWAY_S <= self._wall_clock():
            raise _refused("the token has expired")
        return verdict

    def _digest(self, text: str) -> bytes:
        return hashlib.blake2b(text.encode(), key=self._digest_key, digest_size=32).digest()

    def _verdict(self, text: str) -> Said | str:
        """Raises InferenceError for what may hold later."""
        if len(text) > MOST_BYTES:
            return f"the token is longer than {MOST_BYTES} bytes"
        try:
            kid = jwt.get_unverified_header(text).get("kid", "")
            key = self._keys.get(kid) or (next(iter(self._keys.values())) if len(self._keys) == 1 and not kid else None)
            if key is None:
                self._ask_soon()
                raise _refused("the token is signed with a key that is not known")
            claims = jwt.decode(
                text,
                key,
                algorithms=self._algorithms,
                audience=self._config.jwt_audience,
                issuer=self._config.jwt_issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "sub"]},
            )
            said = claims.get("scope", claims.get("scp"))
            scopes = said.split() if isinstance(said, str) else said if isinstance(said, list) else None
            return Said(str(claims["sub"]), None if scopes is None else frozenset(map(str, scopes)), float(claims["exp"]))
        except jwt.ImmatureSignatureError:
            raise _refused("the token is not valid yet") from None
        except (jwt.PyJWTError, TypeError, ValueError, OverflowError, RecursionError) as error:
            return f"the token is not valid: {error}"[:MOST_REASON]  # it may quote the token, and is remembered

    # Keys

    @property
    def _is_url(self) -> bool:
        return self._config.jwks.startswith(("https://", "http://"))

    def _follow(self) -> None:
        now = self._clock()
        if now - self._looked_at < (REFRESH_S if self._is_url else LOOK_S):
            return
        self._looked_at = now
        if self._is_url:
            self._ask_soon(at_once=True)
        elif (state := self._stat()) != self._state:
            self._try()
            self._state = state

    def _ask_soon(self, *, at_once: bool = False) -> None:
        """On a thread, for keys that have come since: their server may be slow."""
        if self._is_url and (at_once or self._clock() - self._looked_at >= AGAIN_S) and self._fetching.acquire(blocking=False):
            self._looked_at = self._clock()
            threading.Thread(target=self._fetch, name="dlproxy-jwks", daemon=True).start()

    def _fetch(self) -> None:
        try:
            self._try()
        finally:
            self._fetching.release()

    def _try(self) -> None:
        try:
            self._take(self._read())
        except ConfigError as error:
            log.error("the tokens' keys stay as they were: %s", error)

    def _read(self) -> bytes:
        source = self._config.jwks
        try:
            if not self._is_url:
                self._state = self._stat()
                return Path(source).read_bytes()
            with urllib.request.build_opener(_Straight).open(source, timeout=FETCH_S) as reply:
                found: bytes = reply.read(MOST_FETCHED + 1)
        except (OSError, ValueError, HTTPException) as error:
            raise ConfigError(f"jwks {source} cannot be read: {error}", "jwks") from None
        if len(found) > MOST_FETCHED:
            raise ConfigError(f"jwks {source} is larger than {MOST_FETCHED} bytes", "jwks")
        return found

    def _take(self, data: bytes) -> None:
        try:
            found: Any = jwt.PyJWKSet.from_json(data.decode())
        except (jwt.PyJWTError, ValueError, AttributeError, TypeError, RecursionError) as error:
            raise ConfigError(f"jwks {self._config.jwks} is no JSON Web Key Set: {error}", "jwks") from None
        keys = {key.key_id or "": key for key in found.keys if key.key_type != "oct"}  # a shared secret would be public here
        if not keys:
            raise ConfigError(f"jwks {self._config.jwks} has no public key", "jwks")
        self._keys = keys
        self._verdicts.clear()

    def _stat(self) -> object:
        try:
            state = Path(self._config.jwks).stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_ino, state.st_size


def _refused(why: str) -> InferenceError:
    return InferenceError(Failure(FailureKind.UNAUTHENTICATED, why))
