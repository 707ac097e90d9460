"""API keys at rest: a TOML file with what each may do and a slow hash of it. The keys themselves are nowhere.

Written by `dlproxy keys`, read by keys.py. Not aware of: requests.
"""

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from dlproxy.config import ConfigError
from dlproxy.message import Grant, Quota, Scope
from dlproxy.policy.quota import quota_of

PREFIX = "dlp"  # a key is PREFIX_ID_SECRET: what leaks is recognised, and found by its id
ID_BYTES, SECRET_BYTES, SALT_BYTES, HASH_BYTES = 5, 32, 16, 32
MOST_COST = 16  # that is believed of a file: more would stop the server
COST, BLOCK = 12, 8  # of scrypt: 2**12 rounds over 4 MiB, some 10 ms. A secret of 256 random bits needs no more

_KEY = re.compile(rf"{PREFIX}_([a-z2-7]{{8}})_([A-Za-z0-9_-]{{43}})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")
_HEAD = "# Written by dlproxy keys. The keys themselves are not in it.\n"


Instant = Annotated[datetime, Meta(tz=True)]  # without a zone it could not be compared with now


class Key(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key as the file has it. `hash`: of its secret; times are UTC. Its quota reads as that of [tenants]."""

    id: str
    hash: str
    scopes: list[Scope]
    models: list[str]
    tenant: str = ""
    requests_per_s: float = 0.0
    rows_per_s: float = 0.0
    burst_s: float = 1.0
    concurrent: int = 0
    created: Instant
    not_before: Instant | None = None
    expires: Instant | None = None
    revoked: Instant | None = None

    @property
    def grant(self) -> Grant:
        return Grant(frozenset(self.scopes), tuple(self.models))

    @property
    def quota(self) -> Quota | None:
        """Raises ValueError for one that never admits anything; `read` has looked."""
        return quota_of(self.requests_per_s, self.rows_per_s, self.burst_s, self.concurrent)

    def refusal(self, now: datetime) -> str:
        """Why it does not hold now; empty if it does."""
        if self.revoked is not None:
            return "the API key is revoked"
        if self.expires is not None and now >= self.expires:
            return "the API key has expired"
        return "the API key is not valid yet" if self.not_before is not None and now < self.not_before else ""


class _File(Struct, forbid_unknown_fields=True):
    keys: dict[str, Key] = {}


def parts_of(text: str) -> tuple[str, str] | None:
    """Id and secret of a key; None for what is none."""
    match = _KEY.fullmatch(text)
    return (match[1], match[2]) if match else None


def matches(key: Key, secret: str) -> bool:
    """Slow, and as slow for wrong secrets."""
    try:
        kind, cost, block, salt, wanted = key.hash.split(":")
        if kind != "scrypt" or not (0 < int(cost) <= MOST_COST and 0 < int(block) <= BLOCK):
            return False
        found = _scrypt(secret, base64.b64decode(salt), int(cost), int(block))
        return hmac.compare_digest(found, base64.b64decode(wanted))
    except ValueError:  # somebody has edited it
        return False


def read(path: Path) -> dict[str, Key]:
    """By name. Raises ConfigError."""
    try:
        found = msgspec.convert(tomllib.loads(path.read_text("utf-8")), _File).keys
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError, msgspec.ValidationError) as error:  # a TOMLDecodeError is a ValueError
        raise ConfigError(f"{path} is no file of API keys: {error}") from None
    ids = [key.id for key in found.values()]
    if len(ids) != len(set(ids)):
        raise ConfigError(f"{path}: two keys have one id")
    for name, key in found.items():
        _check_quota(key, f"{path}: the key '{name}'")
    return found


def create(
    path: Path,
    name: str,
    *,
    scopes: list[Scope],
    models: list[str],
    tenant: str = "",
    expires: datetime | None = None,
    not_before: datetime | None = None,
    requests_per_s: float = 0.0,
    rows_per_s: float = 0.0,
    burst_s: float = 1.0,
    concurrent: int = 0,
) -> str:
    """Add a key to the file, which is made if there is none. Returns the key, which nobody can read again.

    Raises ConfigError.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be a key's name: up to 64 letters, digits and any of _.@-")
    keys = read(path) if path.exists() else {}
    if name in keys:
        raise ConfigError(f"{path} has a key '{name}' already; revoke it, or choose another name")
    number = base64.b32encode(secrets.token_bytes(ID_BYTES)).decode().lower()
    secret, salt = secrets.token_urlsafe(SECRET_BYTES), secrets.token_bytes(SALT_BYTES)
    digest = _scrypt(secret, salt, COST, BLOCK)
    shown = [base64.b64encode(part).decode() for part in (salt, digest)]
    keys[name] = Key(
        id=number,
        hash=f"scrypt:{COST}:{BLOCK}:{shown[0]}:{shown[1]}",
        scopes=scopes,
        models=models,
        tenant=tenant,
        created=datetime.now(UTC).replace(microsecond=0),
        not_before=not_before,
        expires=expires,
        requests_per_s=requests_per_s,
        rows_per_s=rows_per_s,
        burst_s=burst_s,
        concurrent=concurrent,
    )
    _check_quota(keys[name], f"the key '{name}'")
    _write(path, keys)
    return f"{PREFIX}_{number}_{secret}"


def revoke(path: Path, name: str) -> None:
    """It stays in the file, as revoked. Raises ConfigError."""
    keys = read(path)
    if name not in keys:
        raise ConfigError(f"{path} has no key '{name}'; it has {', '.join(keys) or 'none'}")
    if keys[name].revoked is None:
        keys[name] = msgspec.structs.replace(keys[name], revoked=datetime.now(UTC).replace(microsecond=0))
        _write(path, keys)


def _scrypt(secret: str, salt: bytes, cost: int, block: int) -> bytes:
    most = (1 << (cost + 10)) + (1 << 20)
    return hashlib.scrypt(secret.encode(), salt=salt, n=1 << cost, r=block, p=1, maxmem=most, dklen=HASH_BYTES)


def _write(path: Path, keys: dict[str, Key]) -> None:
    """All at once, and readable for its owner alone."""
    tables = [
        "\n".join([f"[keys.{json.dumps(name)}]", *(f"{knob} = {_value(value)}" for knob, value in _fields(key)), ""])
        for name, key in keys.items()
    ]
    try:
        data = "\n".join([_HEAD, *tables]).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{path} cannot be written: a tenant or a model has characters that are none") from None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from None


def _check_quota(key: Key, whose: str) -> None:
    try:
        _ = key.quota
    except ValueError as error:
        raise ConfigError(f"{whose}: {error}, or 0 for no limit") from None


def _fields(key: Key) -> list[tuple[str, object]]:
    fields = msgspec.structs.fields(key)
    return [(field.name, value) for field in fields if (value := getattr(key, field.name)) != field.default]


def _value(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON has it as it is, TOML must not
