"""Quantisation-aware training: the int8 graph that ONNX Runtime will run is trained as it is, roundings included.

Named in the table of recipes. Not aware of: how candidates are judged.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from dlproxy.compress.recipe import Context, Made, RecipeError, Source, Step
from dlproxy.compress.recipes.torch.export import ORT, answers, simplified
from dlproxy.compress.recipes.torch.graph import Read
from dlproxy.compress.recipes.torch.modules import Trainable, learnable, trainable, write_back
from dlproxy.compress.recipes.torch.training import fit, labels_of, planned, reproducible
from dlproxy.instance.runtime.declared import one_line

NAME = "qat"
_CALIBRATED_ON = 256  # examples: ranges settle early, and it keeps every tensor of a batch
_BATCH = 32
_IN_INT8 = (  # what ONNX Runtime has int8 kernels for, and what passes whole numbers on
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "LeakyRelu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Concat", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze"),
)
_APART = 0.02  # of the largest answer, on average: more says that products overflow, less that sums round elsewhere


def qat(source: Source, context: Context) -> Made:
    """Ranges of activations are calibrated once (min and max); weights learn to be right when they are rounded to steps of
    their channel, by straight-through gradients (Jacob et al. 2018). Then they are written into the same graph. RecipeError.
    """
    labels = labels_of(context)
    plan = planned(context, epochs=6, lr=1e-4)
    of = trainable(source, context.training)
    path = context.folder / f"{NAME}.onnx"
    model, found, reduced = _quantised(source.onnx, path, of)
    with reproducible(seed=context.seed, threads=context.threads):
        fit(found.module, of, labels, plan, context)
    write_back(found, model)
    onnx.save(model, path)
    apart = _apart(found, path, of)
    if apart > _APART:
        path.unlink()
        raise RecipeError(
            f"ONNX Runtime's int8 kernels answer otherwise than was trained, by {apart:.0%} of the largest answer"
        )
    by = f"{ORT}, torch {torch.__version__}"
    weights = f"int8 per channel, symmetric{', 7 bits used' if reduced else ''}"
    settings = {"weights": weights, "activations": "int8, by min and max", "seed": context.seed}
    notes = [f"ONNX Runtime's answers differ from those that were trained by {apart:.2%} of the largest, on average"]
    if reduced:
        notes.append("weights use 7 bits: this machine's int8 instructions overflow with 8")
    return Made(path, [Step(NAME, by, settings | plan.settings())], notes)


def _quantised(original: Path, path: Path, of: Trainable) -> tuple[onnx.ModelProto, Read, bool]:
    """The graph, the module of it, and whether weights must use 7 bits for the kernels of this machine to be right: on x86-64
    without VNNI, sums of two products of 8 bits overflow (ONNX Runtime's documentation of reduce_range).
    """
    for reduced in (False, True):
        _quantise(original, path, of, reduced=reduced)
        model = onnx.load(path)
        if not any(node.op_type == "DequantizeLinear" for node in model.graph.node):
            raise RecipeError("it has no layers that ONNX Runtime computes in int8")
        found = learnable(model)
        if _apart(found, path, of) <= _APART / 4:
            break
    return model, found, reduced


class _Calibration(CalibrationDataReader):  # type: ignore[misc] # the library has no types
    def __init__(self, of: Trainable) -> None:
        count = min(_CALIBRATED_ON, len(of.tensors[0]))
        self._batches = (
            {name: tensor[start : start + _BATCH].numpy() for name, tensor in zip(of.inputs, of.tensors, strict=True)}
            for start in range(0, count, _BATCH)
        )

    def get_next(self) -> Any:
        """The next batch, None at the end."""
        return next(self._batches, None)


def _quantise(original: Path, path: Path, of: Trainable, *, reduced: bool) -> None:
    model = simplified(original)
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")  # else it asks to be given what it has
    try:
        quantize_static(
            model,
            str(path),
            _Calibration(of),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduced,
            op_types_to_quantize=list(_IN_INT8),
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
    except Exception as error:  # the library raises whatever its parts do
        raise RecipeError(f"{ORT} cannot quantise it: {one_line(error)}") from error


def _apart(found: Read, path: Path, of: Trainable) -> float:
    """The mean difference between the file's answers and the module's, as a share of the largest answer."""
    some = [tensor[:_CALIBRATED_ON] for tensor in of.tensors]
    with torch.no_grad():
        expected = found.module(*some)
    expected = (expected[0] if isinstance(expected, tuple) else expected).numpy()
    got = answers(path, dict(zip(of.inputs, some, strict=True)))[0]
    return float(np.mean(np.abs(got - expected)) / max(np.max(np.abs(expected)), 1e-6))
