"""The recipes weights-int8 and weights-int4: large matrices in blocks of few bits, each with a scale; activations stay floats.

Less memory and a smaller file, quicker where reading weights is what takes the time. In the table of
recipes. Not aware of: data.
"""

import numpy as np
from numpy.typing import NDArray

from dlproxy.compress.recipe import Context, Made, RecipeError, Source
from dlproxy.compress.recipes.graphs import CONTRIB, finish, prepared, step, use_contrib
from dlproxy.compress.recipes.linears import Builder, Linear, Weights, rewrite

BLOCKS = {8: 128, 4: 32}  # weights that share a scale: at 4 bits, larger blocks lose twice the accuracy (MiniLM)
ACCURACY = 4  # of MatMulNBits: rows may be rounded to int8, each by scales of its own


def int8(source: Source, context: Context) -> Made:
    return _make(source, context, 8)


def int4(source: Source, context: Context) -> Made:
    return _make(source, context, 4)


def _make(source: Source, context: Context, bits: int) -> Made:
    name = f"weights-int{bits}"
    model = prepared(source, context, name, quantised=False)
    block = context.options.get("block", BLOCKS[bits])
    if not isinstance(block, int) or block < 16 or block & (block - 1):
        raise RecipeError(f"block = {block!r}: it has to be a power of two, at least 16")

    def put(add: Builder, linear: Linear) -> None:
        numbers, scales = packed(linear.weights, bits, block)
        sizes = {"K": linear.weights.shape[0], "N": linear.weights.shape[1]}
        settings = {"bits": bits, "block_size": block, "accuracy_level": ACCURACY}
        inputs = [linear.x, add.constant(numbers), add.constant(scales)]
        output = "" if linear.bias else linear.output
        product = add.add("MatMulNBits", inputs, domain=CONTRIB, output=output, **sizes, **settings)
        if linear.bias:
            add.add("Add", [product, linear.bias], output=linear.output)

    found, tables = rewrite(model, Builder(model, "weights:"), put)
    if not found:
        raise RecipeError("it has no large MatMul or Gemm with constant weights")
    use_contrib(model)
    steps = [step("prepare", level="basic"), step(name, "dlproxy", products=found, tables=tables, block=block)]
    return finish(model, source, context, name, steps)


def packed(weights: Weights, bits: int, block: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """As MatMulNBits of ONNX Runtime wants them: of each column blocks, numbers [N, blocks, bytes] around the middle of their
    range, the lower half of a byte first; scales [N * blocks].
    """
    inner, outer = weights.shape
    blocks = -(-inner // block)
    padded = np.zeros((outer, blocks * block), np.float32)
    padded[:, :inner] = weights.T
    columns = padded.reshape(outer, blocks, block)
    middle = 2 ** (bits - 1)
    scales = np.maximum(np.abs(columns).max(axis=2), np.finfo(np.float32).tiny * middle) / np.float32(middle - 1)
    numbers = np.clip(np.rint(columns / scales[:, :, None]) + middle, 0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        numbers = numbers[:, :, 0::2] | (numbers[:, :, 1::2] << 4)
    return numbers, scales.astype(np.float32).reshape(-1)
