"""API keys for other servers, where they lie: in a file or a variable of the environment, never in a configuration itself.

Called by cli/, client/awaited.py, fleet/upstreams.py and instance/process/child.py. Not aware of: what they open.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from dlproxy.config.values import ConfigError

KEY_VARIABLE = "DLPROXY_API_KEY"  # which commands and clients send to a server
ENV = "env:"  # stands before the name of a variable, where a file could stand, too
HEADERS = ("authorization", "x-api-key")  # in which a key travels; whoever sets one of them sends what it says

_held: set[str] = {KEY_VARIABLE}  # variables that were read as secrets
_SHAPES = (  # what stands in every such text, which is quickly looked for; how it looks; what is shown instead
    ("dlp_", re.compile(r"(dlp_[a-z2-7]{8}_)[A-Za-z0-9_-]{16,}"), r"\1***"),  # API keys of ours, whose ids may be known
    ("eyJ", re.compile(r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), "***"),  # tokens
    ("earer ", re.compile(r"(?i)\b(bearer) +[^\s\"',;]{8,}"), r"\1 ***"),
    ("asic ", re.compile(r"(?i)(authorization\W+(?:b')?basic) +[^\s\"',;]+"), r"\1 ***"),
    ("://", re.compile(r"(\w://)[^/\s@]+@"), r"\1***@"),  # user and password of an address
    ("PRIVATE", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL), "***"),
)


def hidden(text: str) -> str:
    """The text without what looks like a secret: for logs, in which errors of others end up, too."""
    for sign, shape, instead in _SHAPES:
        if sign in text:
            text = shape.sub(instead, text)
    return text


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """For a process that runs what others have written: less the variables that held keys."""
    return {name: value for name, value in environment.items() if name not in _held}


def hold(place: str) -> None:
    """If it is a variable, it is kept from such processes from now on."""
    if place.startswith(ENV):
        _held.add(place.removeprefix(ENV))


def read_key(place: str, what: str) -> str:
    """The key in the variable that env:NAME names, or in a file. Raises ConfigError, which does not repeat the key."""
    hold(place)
    if place.startswith(ENV):
        name = place.removeprefix(ENV)
        if name not in os.environ:
            raise ConfigError(f"{what}: there is no variable {name!r} in the environment")
        return checked_key(os.environ[name], what)
    try:
        return checked_key(Path(place).read_text("utf-8"), what)
    except OSError as error:
        raise ConfigError(f"{what}: {place} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{what}: {place} is no text") from None


def checked_key(key: str, what: str) -> str:
    """Without what surrounds it. Raises ConfigError for what no header can carry."""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{what}: an API key is one word of ASCII")
    return key


def with_key(headers: Mapping[str, str], key: str) -> dict[str, str]:
    """The headers with the key among them, unless they say already who asks."""
    if not key or any(name.lower() in HEADERS for name in headers):
        return dict(headers)
    return {**headers, "authorization": f"Bearer {key}"}
