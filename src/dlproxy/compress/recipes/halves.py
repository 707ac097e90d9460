"""The recipes fp16 and bf16: floats of half the size inside; inputs and outputs keep their types.

In the table of recipes. Not aware of: whether this machine's kernels compute with them, which the gate finds out.
"""

import numpy as np
from onnx import TensorProto, helper

from dlproxy.compress.recipe import Context, Made, RecipeError, Source
from dlproxy.compress.recipes.graphs import Model, array_of, constants, finish, library, read, replace, step

LEAST_ELEMENTS = 256  # smaller constants are often sizes that an operator has to know before it runs
MOST_FP16 = 65504.0


def fp16(source: Source, context: Context) -> Made:
    """Weights and activations. What has no kernel for them computes in float32 between conversions."""
    model = read(source)
    floats = _floats(model)
    cut = sum(bool((np.abs(array_of(tensor)) > MOST_FP16).any()) for tensor in floats.values())
    with library("it cannot be converted to float16"):
        from onnxruntime.transformers.float16 import convert_float_to_float16

        half: Model = convert_float_to_float16(model, keep_io_types=True)
    notes = [f"{cut} constants had values beyond {MOST_FP16:.0f}, which were cut off"] if cut else []
    return finish(half, source, context, "fp16", [step("fp16", constants=len(floats))], notes)


def bf16(source: Source, context: Context) -> Made:
    """Weights alone, which are float32 again when the model is loaded: ONNX Runtime's CPU kernels know no bfloat16."""
    model = read(source, upgrade=True)
    floats = _floats(model)
    nodes = []
    for name, tensor in floats.items():
        stored = TensorProto(name=f"{name}:bf16", data_type=TensorProto.BFLOAT16, dims=tensor.dims)
        bits = np.ascontiguousarray(array_of(tensor), np.float32).view(np.uint32)
        to_even = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        stored.raw_data = to_even.astype("<u2").tobytes()
        model.graph.initializer.append(stored)
        nodes.append(helper.make_node("Cast", [stored.name], [name], name=stored.name, to=TensorProto.FLOAT))
    kept = [one for one in model.graph.initializer if one.name not in floats]
    others = [node for node in model.graph.node if node.op_type != "Constant" or node.output[0] not in floats]
    replace(model.graph.initializer, kept)
    replace(model.graph.node, [*nodes, *others])
    note = "weights are stored in half the size; the computation is in float32 as before"
    return finish(model, source, context, "bf16", [step("bf16", "dlproxy", constants=len(floats))], [note])


def _floats(model: Model) -> dict[str, TensorProto]:
    found = {
        name: tensor
        for name, tensor in constants(model).items()
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims, dtype=np.int64) >= LEAST_ELEMENTS
    }
    if not found:
        raise RecipeError("it has no float32 weights worth halving")
    return found
