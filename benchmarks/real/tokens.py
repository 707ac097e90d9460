"""How the token ids of a text travel to a system, and its embedding back. The systems' own forms are in peers/bodies.py."""

import json
from collections.abc import Mapping

import numpy as np

from benchmarks.harness.sample import sample_of
from benchmarks.peers.bodies import JSON, Array, Message, OipBinary

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "sentence_embedding"


class OipTokens(OipBinary):
    """The three inputs of a BERT."""

    description = "OIP, binary tensors: ids, mask and types"

    def encode(self, item: Array) -> Message:
        tensors = dict(zip(INPUTS, (item, np.ones_like(item), np.zeros_like(item)), strict=True))
        sample = sample_of("model", tensors, {OUTPUT: np.empty(0)})
        return Message(sample.body, sample.headers)


class OpenAiText:
    """OpenAI's embeddings API, which takes the text itself; the server cuts it into tokens."""

    description = "JSON with the text"

    def __init__(self, texts: Mapping[bytes, str]) -> None:
        self._texts = texts  # by their token ids

    def encode(self, item: Array) -> Message:
        return Message(json.dumps({"model": "minilm", "input": [self._texts[item.tobytes()]]}).encode(), JSON)

    def decode(self, reply: Message) -> Array:
        (found,) = json.loads(reply.body)["data"]
        return np.array(found["embedding"], np.float32)
