"""How long a request is where shorter ones are padded, and which ones must not be: what no row of its own length can tell.

Called by checks.py. Not aware of: batches.
"""

from collections.abc import Sequence

import numpy as np

from dlproxy.message import Tensor, TensorSpec
from dlproxy.tensors import NUMPY


class PaddedShape:
    """What a check needs of the inputs that have a padded axis."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        padded = [(index, spec.padded) for index, spec in enumerate(specs) if spec.padded is not None]
        self._axes = padded
        self._masks = [(index, specs[index]) for index, _ in padded if specs[index].is_mask]
        self._lengths = [(index, spec) for index, spec in enumerate(specs) if spec.is_length]
        self.looks_inside = bool(self._masks or self._lengths)

    def length(self, inputs: Sequence[Tensor]) -> tuple[int, bool]:
        """Along the padded axis, and whether the request must run alone.

        It must if its inputs disagree, which a model may broadcast; if a row is masked from end to end, so that softmax
        and means are over whatever is there; if it says to be longer than it is, or of no length.
        """
        length, alone = 0, False
        for index, axis in self._axes:
            size = inputs[index].shape[axis]
            alone = alone or not size or (length > 0 and size != length)
            length = max(length, size)
        return max(length, 1), alone or (self.looks_inside and self._misleads(inputs, length))

    def _misleads(self, inputs: Sequence[Tensor], length: int) -> bool:
        for index, spec in self._masks:
            mask = np.frombuffer(inputs[index].data, NUMPY[spec.dtype]).reshape(inputs[index].shape)
            if not np.moveaxis(mask, spec.padded or 0, -1).any(axis=-1).all():
                return True
        for index, spec in self._lengths:
            lengths = np.frombuffer(inputs[index].data, NUMPY[spec.dtype])
            if lengths.size and not 1 <= int(lengths.min()) <= int(lengths.max()) <= length:
                return True
        return False
