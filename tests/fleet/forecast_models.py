"""ONNX forecasts without a framework: they expect the window's mean, `times` as much."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dlproxy.fleet.forecasts import FORM
from dlproxy.policy.forecast import Form

SHORT = Form(step_s=5.0, length=4, horizons_s=(2.0, 10.0), quantiles=(0.5, 0.9))


def forecast(path: Path, *, times: float = 1.0, form: Form = SHORT, said: str | None = None, output: str = "rate") -> str:
    """`said`: in place of the form."""
    horizons, levels = len(form.horizons_s), len(form.quantiles)
    weights = np.zeros((2, horizons * levels), np.float32)
    weights[0] = times
    constants = {"axis": np.array([1]), "weights": weights, "shape": np.array([-1, horizons, levels])}
    nodes = [
        helper.make_node("ReduceMean", ["window", "axis"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], [output]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (
            ("window", ["N", form.length, 2]),
            ("season", ["N", 1 + horizons]),
            (output, ["N", horizons, levels]),
        )
    ]
    initial = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "forecast", values[:2], values[2:], initial)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(made, {FORM: msgspec.json.encode(form).decode() if said is None else said})
    onnx.save(made, path)
    return str(path)
