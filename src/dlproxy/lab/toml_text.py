"""Values as TOML writes them. Called by whatever in lab/ writes a dlproxy.toml. Not aware of: knobs."""

from collections.abc import Mapping
from typing import Any

import msgspec


def key_text(name: str) -> str:
    """A key, in quotes where it needs them."""
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else value_text(name)


def value_text(value: Any) -> str:
    """Tables stand in braces."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key_text(key)} = {value_text(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_text, value))}]"
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
