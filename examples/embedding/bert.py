"""A BERT as ONNX, written node by node from its safetensors file: an export would need PyTorch.

Signature as sentence-transformers exports it: three int64 inputs [batch, sequence]. The network is that of Devlin et al. 2018.
Called by run.py and by benchmarks/real. Not aware of: dlproxy.
"""

import json
import struct
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT, OUTPUT_OF_TOKENS = "sentence_embedding", "last_hidden_state"
OPSET = 17
IR_VERSION = 8
MASKED = -1e4  # added to the score of a token that is padding

Array = NDArray[np.generic]


def bert(folder: Path, *, pooled: bool) -> bytes:
    """Of a folder with config.json and model.safetensors.

    It gives an embedding of each token, or, pooled, one of each row: the mean over the tokens that the mask names, scaled to
    length 1.
    """
    return _Bert(json.loads((folder / "config.json").read_text()), _tensors(folder / "model.safetensors")).model(pooled=pooled)


def _tensors(path: Path) -> dict[str, Array]:
    """The format: eight bytes of length, that much JSON, then the data."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    described = json.loads(content[8 : 8 + length])
    data = memoryview(content)[8 + length :]
    return {
        name: np.frombuffer(data[slice(*one["data_offsets"])], np.float32).reshape(one["shape"])
        for name, one in described.items()
        if name != "__metadata__" and one["dtype"] == "F32"
    }


class _Bert:
    def __init__(self, config: dict[str, int], weights: dict[str, Array]) -> None:
        self.config, self.weights = config, weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def model(self, *, pooled: bool) -> bytes:
        tokens = self._embed()
        cast = self._add("Cast", [INPUTS[1]], to=TensorProto.FLOAT)
        mask = self._add("Unsqueeze", [cast, self._constant(np.array([1, 2]))])
        bias = self._add("Mul", [self._add("Sub", [self._number(1.0), mask]), self._number(MASKED)])
        for layer in range(self.config["num_hidden_layers"]):
            tokens = self._layer(tokens, bias, f"encoder.layer.{layer}")
        if not pooled:
            self.nodes.append(helper.make_node("Identity", [tokens], [OUTPUT_OF_TOKENS]))
            return self._save(OUTPUT_OF_TOKENS, ["batch", "sequence", self.config["hidden_size"]])
        weights = self._add("Unsqueeze", [cast, self._constant(np.array([2]))])
        axis = self._constant(np.array([1]))
        total = self._add("ReduceSum", [self._add("Mul", [tokens, weights]), axis], keepdims=0)
        count = self._add("ReduceSum", [weights, axis], keepdims=0)
        mean = self._add("Div", [total, self._add("Max", [count, self._number(1e-9)])])
        self.nodes.append(helper.make_node("LpNormalization", [mean], [OUTPUT], axis=1, p=2))
        return self._save(OUTPUT, ["batch", self.config["hidden_size"]])

    def _save(self, name: str, sizes: list[str | int]) -> bytes:
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in INPUTS]
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)
        graph = helper.make_graph(self.nodes, "minilm", inputs, [output], list(self.initializers.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())

    def _embed(self) -> str:
        words = self._add("Gather", [self._weight("embeddings.word_embeddings.weight"), INPUTS[0]])
        types = self._add("Gather", [self._weight("embeddings.token_type_embeddings.weight"), INPUTS[2]])
        length = self._add("Slice", [self._add("Shape", [INPUTS[0]]), *map(self._constant, map(np.array, ([1], [2])))])
        places = [self._constant(np.array([0])), length, self._constant(np.array([0]))]
        positions = self._add("Slice", [self._weight("embeddings.position_embeddings.weight"), *places])
        return self._norm(self._add("Add", [self._add("Add", [words, types]), positions]), "embeddings.LayerNorm")

    def _layer(self, tokens: str, bias: str, name: str) -> str:
        query, key, value = (self._heads(tokens, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        scores = self._add("MatMul", [query, self._add("Transpose", [key], perm=[0, 1, 3, 2])])
        size = self.config["hidden_size"] // self.config["num_attention_heads"]
        scaled = self._add("Add", [self._add("Mul", [scores, self._number(size**-0.5)]), bias])
        mixed = self._add("MatMul", [self._add("Softmax", [scaled], axis=-1), value])
        joined = self._add("Transpose", [mixed], perm=[0, 2, 1, 3])
        flat = self._add("Reshape", [joined, self._constant(np.array([0, 0, self.config["hidden_size"]]))])
        attended = self._add("Add", [self._dense(flat, f"{name}.attention.output.dense"), tokens])
        attended = self._norm(attended, f"{name}.attention.output.LayerNorm")
        inner = self._gelu(self._dense(attended, f"{name}.intermediate.dense"))
        return self._norm(self._add("Add", [self._dense(inner, f"{name}.output.dense"), attended]), f"{name}.output.LayerNorm")

    def _heads(self, tokens: str, name: str) -> str:
        heads = self.config["num_attention_heads"]
        shape = self._constant(np.array([0, 0, heads, self.config["hidden_size"] // heads]))
        return self._add("Transpose", [self._add("Reshape", [self._dense(tokens, name), shape])], perm=[0, 2, 1, 3])

    def _dense(self, tokens: str, name: str) -> str:
        matrix = self._weight(f"{name}.weight", np.ascontiguousarray(self.weights[f"{name}.weight"].T))
        return self._add("Add", [self._add("MatMul", [tokens, matrix]), self._weight(f"{name}.bias")])

    def _gelu(self, tokens: str) -> str:
        error = self._add("Erf", [self._add("Div", [tokens, self._number(2**0.5)])])
        doubled = self._add("Mul", [tokens, self._add("Add", [error, self._number(1.0)])])
        return self._add("Mul", [doubled, self._number(0.5)])

    def _norm(self, tokens: str, name: str) -> str:
        scale, offset = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return self._add("LayerNormalization", [tokens, scale, offset], axis=-1, epsilon=self.config["layer_norm_eps"])

    def _add(self, kind: str, inputs: list[str], **attributes: object) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def _weight(self, name: str, array: Array | None = None) -> str:
        self.initializers[name] = numpy_helper.from_array(self.weights[name] if array is None else array, name)
        return name

    def _constant(self, array: Array) -> str:
        name = f"constant_{array.dtype}_{'_'.join(map(str, array.ravel()))}_{array.ndim}"
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def _number(self, value: float) -> str:
        return self._constant(np.array(value, np.float32))
