"""The recipe dynamic-int8: ONNX Runtime's own, with ranges of activations found while the model runs, one for a whole batch.

In the table of recipes. Not aware of: calibration data.
"""

from typing import Any

import onnx

from dlproxy.compress.recipe import Context, Made, RecipeError, Source
from dlproxy.compress.recipes.cpu import weight_bits
from dlproxy.compress.recipes.graphs import count, finish, library, prepared, step, write

OPERATORS = ["MatMul", "Attention", "LSTM", "Gather", "EmbedLayerNormalization"]  # Gemm becomes MatMul; Conv would be slower
QUANTISED = ("MatMulInteger", "DynamicQuantizeLSTM", "QAttention")


def make(source: Source, context: Context) -> Made:
    """MatMul, Gemm, LSTM and Attention with constant weights, by channel; tables that rows are taken from as a whole."""
    model = prepared(source, context, "dynamic-int8", quantised=False)
    before, after = (context.folder / f"dynamic-int8.{name}.onnx" for name in ("before", "after"))
    write(model, before)
    settings: dict[str, Any] = {"per_channel": True, "reduce_range": weight_bits() < 8}
    with library("onnxruntime.quantization cannot do it"):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        types = {"weight_type": QuantType.QInt8, "extra_options": {"DefaultTensorType": onnx.TensorProto.FLOAT}}
        quantize_dynamic(before, after, op_types_to_quantize=OPERATORS, **settings, **types)
        made = onnx.load(after)
    before.unlink()
    after.unlink()
    if not count(made, QUANTISED):
        raise RecipeError("it has no MatMul, Gemm, LSTM or Attention with constant weights")
    steps = [step("prepare", level="basic"), step("dynamic-int8", operators=OPERATORS, **settings)]
    note = "the rows of a batch share a scale and so change one another's answers: dlproxy runs them one by one"
    return finish(made, source, context, "dynamic-int8", steps, [note])
