"""Bytes of a call to the message that its method takes. Called by services. Not aware of: which messages there are."""

from typing import Any

from google.protobuf.message import DecodeError

from dlproxy.message import invalid


def parsed(kind: Any, message: bytes) -> Any:
    """Raises InferenceError for bytes that are no such message."""
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise invalid(f"the message cannot be read as {kind.DESCRIPTOR.full_name}: {error}") from None
