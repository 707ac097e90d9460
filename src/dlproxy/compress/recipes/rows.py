"""The recipe rows-int8: products of whole numbers, for which each row (each token) is rounded by a scale of its own.

ONNX's own DynamicQuantizeLinear takes one scale for a whole batch, so that rows change one another's answers and dlproxy runs
them one by one. In the table of recipes. Not aware of: which rows are whose.
"""

import numpy as np

from dlproxy.compress.recipe import Context, Made, RecipeError, Source
from dlproxy.compress.recipes.cpu import weight_bits
from dlproxy.compress.recipes.graphs import CONTRIB, Model, finish, opset, prepared, step, use_contrib
from dlproxy.compress.recipes.linears import Builder, Linear, rewrite, rounded

_MIDDLE = 128  # whole numbers without a sign, around it: the only kind for which every x86 CPU has a quick kernel
_MOST = 127


def make(source: Source, context: Context) -> Made:
    """MatMul and Gemm with constant weights; tables with a scale for each of their rows."""
    model = prepared(source, context, "rows-int8", quantised=False)
    bits = weight_bits()
    products = _Products(model, bits)
    found, tables = rewrite(model, products.builder, products.put)
    if not found:
        raise RecipeError("it has no large MatMul or Gemm with constant weights")
    use_contrib(model)
    steps = [step("rows-int8", "dlproxy", products=found, tables=tables, weight_bits=bits), step("prepare", level="basic")]
    return finish(model, source, context, "rows-int8", steps[::-1], ["each row has a scale of its own: batches are safe"])


class _Products:
    """`quantised`: what was rounded before, as one tensor often goes into several products."""

    def __init__(self, model: Model, bits: int) -> None:
        self.builder = Builder(model, "rows:")
        self._bits = bits
        self._reduce_by_attribute = opset(model) < 18
        self._quantised: dict[str, tuple[str, str]] = {}

    def put(self, add: Builder, linear: Linear) -> None:
        numbers, scales = rounded(linear.weights, self._bits)
        if linear.x not in self._quantised:
            self._quantised[linear.x] = self._round(add, linear.x, len(linear.weights))
        x, scale = self._quantised[linear.x]
        one, middle = add.constant(np.float32(1)), add.constant(np.uint8(_MIDDLE))
        inputs = [x, add.constant(numbers), one, add.constant(scales), middle]
        product = add.add("MatMulIntegerToFloat", inputs, domain=CONTRIB)
        whole = add.add("Mul", [product, scale], output="" if linear.bias else linear.output)
        if linear.bias:
            add.add("Add", [whole, linear.bias], output=linear.output)

    def _round(self, add: Builder, x: str, width: int) -> tuple[str, str]:
        """Whole numbers of the shape of `x`, and scales with 1 for its last axis. A row of zeros has scale 0: whatever it is
        divided to, the product with the scale is 0 again. QuantizeLinear takes a scale for each row of a matrix alone.
        """
        size = add.add("Abs", [x])
        if self._reduce_by_attribute:
            most = add.add("ReduceMax", [size], axes=[-1], keepdims=1)
        else:
            most = add.add("ReduceMax", [size, add.constant(np.array([-1]))], keepdims=1)
        scale = add.add("Mul", [most, add.constant(np.float32(1 / _MOST))])
        per_row = add.add("Reshape", [scale, add.constant(np.array([-1]))])
        middles = add.add("Expand", [add.constant(np.uint8(_MIDDLE)), add.add("Shape", [per_row])])
        flat = add.add("Reshape", [x, add.constant(np.array([-1, width]))])
        numbers = add.add("QuantizeLinear", [flat, per_row, middles], axis=0)
        return add.add("Reshape", [numbers, add.add("Shape", [x])]), scale
