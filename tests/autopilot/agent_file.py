"""An agent's file made by hand: a linear network whose scores are what a test says, whatever it sees, plus what it sees."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dlproxy.policy.tuning.features import NAMES
from dlproxy.policy.tuning.moves import MOVES, Move

OURS = {"dlproxy.features": ",".join(NAMES), "dlproxy.moves": ",".join([move.name for move in MOVES])}


def write_agent(
    path: Path,
    scores: Mapping[Move, float],
    metadata: Mapping[str, str] = OURS,
    *,
    weights: Mapping[tuple[str, Move], float] | None = None,
    outputs: str = "scores",
    hidden: int = 0,
) -> Path:
    """`weights`: of a feature in a move's score. `hidden`: neurons of two layers that compute nothing, but take their time."""
    matrix = np.zeros((len(NAMES), len(MOVES)), np.float32)
    for (name, move), weight in (weights or {}).items():
        matrix[NAMES.index(name), MOVES.index(move)] = weight
    bias = np.array([scores.get(move, 0.0) for move in MOVES], np.float32)
    nodes, constants, last = [], {"w": matrix, "b": bias}, "state"
    if hidden:
        constants |= {"w1": np.zeros((len(NAMES), hidden), np.float32), "w2": np.zeros((hidden, hidden), np.float32)}
        constants |= {"w3": np.zeros((hidden, len(NAMES)), np.float32)}
        nodes = [helper.make_node("MatMul", ["state", "w1"], ["h1"]), helper.make_node("Relu", ["h1"], ["h2"])]
        nodes += [helper.make_node("MatMul", ["h2", "w2"], ["h3"]), helper.make_node("MatMul", ["h3", "w3"], ["h4"])]
        nodes.append(helper.make_node("Add", ["state", "h4"], ["seen"]))
        last = "seen"
    nodes.append(helper.make_node("Gemm", [last, "w", "b"], [outputs]))
    graph = helper.make_graph(
        nodes,
        "agent",
        [helper.make_tensor_value_info("state", TensorProto.FLOAT, ["n", len(NAMES)])],
        [helper.make_tensor_value_info(outputs, TensorProto.FLOAT, ["n", len(MOVES)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)
    return path
