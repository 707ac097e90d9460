"""Triton's classification extension: an output as its highest values, each "value:index" or "value:index:name".

Called by the codecs, for outputs whose `classification` parameter asks for it. Not aware of: protocols.
"""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from dlproxy.message import DType, Tensor, TensorSpec, element_count, invalid
from dlproxy.tensors import join_elements, to_array

WITHOUT = (DType.BOOL, DType.FP16, DType.BF16, DType.BYTES)  # as in Triton


class Classes(Struct, frozen=True):
    """The `count` highest of each row, or of all elements if the output has no rows. Of equal values, the first comes first."""

    count: int
    by_row: bool
    names: Sequence[str] = ()

    def of(self, tensor: Tensor) -> Tensor:
        """The tensor of strings that takes the output's place."""
        values = to_array(tensor.dtype, tensor.shape, tensor.data)
        by_row = self.by_row and bool(tensor.shape)
        rows = tensor.shape[0] if by_row else 1
        width = element_count(tensor.shape[1:] if by_row else tensor.shape)
        table = values.reshape(rows, width)
        order = np.argsort(_descending(table), axis=1, kind="stable")[:, : self.count]
        decimals = 6 if table.dtype.kind == "f" else 0
        strings = [
            self._string(f"{value:.{decimals}f}" if decimals else str(value), index)
            for row, indices in zip(table, order.tolist(), strict=True)
            for index, value in zip(indices, row[indices].tolist(), strict=True)
        ]
        shape = (min(self.count, width),)
        return Tensor(tensor.name, DType.BYTES, (rows, *shape) if by_row else shape, join_elements(strings))

    def _string(self, value: str, index: int) -> str:
        name = self.names[index] if index < len(self.names) else ""
        return f"{value}:{index}:{name}" if name else f"{value}:{index}"


def classes_of(spec: TensorSpec, count: int, *, batched: bool, names: Sequence[str] = ()) -> Classes | None:
    """For an output of this kind; None if the parameter asks for nothing. Raises InferenceError."""
    if not count:
        return None
    if count < 0:
        raise invalid(f"output '{spec.name}': parameter 'classification' is {count}; it must be a number of classes")
    if spec.dtype in WITHOUT:
        raise invalid(f"class result not available for output due to unsupported type '{spec.dtype.value}'")
    if batched and spec.rows:
        raise invalid(f"class result not available for output '{spec.name}', whose rows stand on axis {spec.rows}")
    return Classes(count, batched and spec.rows == 0, names)


def _descending(values: np.ndarray) -> np.ndarray:
    """What sorts in their place, ascending: NaN at the end; for unsigned and the lowest of signed integers, too."""
    return -values if values.dtype.kind == "f" else ~values
