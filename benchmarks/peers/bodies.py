"""How one item travels to a system and its answer back: the most efficient form that each system accepts.

Knows nothing of the systems themselves; registry.py says which uses which.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

INPUT, OUTPUT = "input", "output"  # what the models of benchmarks/models.py call theirs
JSON_LENGTH = "Inference-Header-Content-Length"
OCTETS = {"Content-Type": "application/octet-stream"}
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Message:
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Format(Protocol):
    description: str

    def encode(self, item: Array) -> Message:
        """The request for a batch of one."""
        ...

    def decode(self, reply: Message) -> Array:
        """The answer's values, flat."""
        ...


class RawBytes:
    description = "raw bytes"

    def encode(self, item: Array) -> Message:
        return Message(item.tobytes(), OCTETS)

    def decode(self, reply: Message) -> Array:
        return np.frombuffer(reply.body, np.float32)


class OipBinary:
    """The Open Inference Protocol with its binary tensor extension, as dlproxy and Triton speak it."""

    description = "OIP, binary tensors"

    def encode(self, item: Array) -> Message:
        described = {"name": INPUT, "shape": list(item.shape), "datatype": "FP32"}
        header = {
            "inputs": [described | {"parameters": {"binary_data_size": item.nbytes}}],
            "outputs": [{"name": OUTPUT, "parameters": {"binary_data": True}}],
        }
        head = json.dumps(header, separators=(",", ":")).encode()
        return Message(head + item.tobytes(), OCTETS | {JSON_LENGTH: str(len(head))})

    def decode(self, reply: Message) -> Array:
        head_bytes = int({name.lower(): value for name, value in reply.headers.items()}[JSON_LENGTH.lower()])
        (output,) = json.loads(reply.body[:head_bytes])["outputs"]
        data = reply.body[head_bytes:]
        if len(data) != output["parameters"]["binary_data_size"]:
            raise ValueError(f"{len(data)} bytes of data, not {output['parameters']['binary_data_size']}")
        return np.frombuffer(data, np.float32)


class OipBase64:
    """The same protocol where it is JSON only (MLServer): a BYTES tensor with one Base64 string in, numbers out."""

    description = "OIP, JSON with a Base64 string"

    def encode(self, item: Array) -> Message:
        described = {"name": INPUT, "shape": [1, 1], "datatype": "BYTES", "parameters": {"content_type": "base64"}}
        return Message(_json({"inputs": [described | {"data": [_base64(item)]}]}), JSON)

    def decode(self, reply: Message) -> Array:
        (output,) = json.loads(reply.body)["outputs"]
        return np.array(output["data"], np.float32).ravel()


class JsonBase64:
    """A JSON object with a list of Base64 strings, answered with a list of them (BentoML's batched APIs)."""

    description = "JSON with a Base64 string"

    def encode(self, item: Array) -> Message:
        return Message(_json({"items": [_base64(item)]}), JSON)

    def decode(self, reply: Message) -> Array:
        (answer,) = json.loads(reply.body)
        return np.frombuffer(base64.b64decode(answer), np.float32)


def _base64(item: Array) -> str:
    return base64.b64encode(item.tobytes()).decode()


def _json(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
