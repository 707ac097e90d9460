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
        self._axes = [(index, spec.padded) for index, spec in enumerate(specs) if spec.padded is not None]
        self._masks = [(index, specs[index]) for index, _ in self._axes if specs[index].is_mask]
        self._lengths = [(index, spec) for index, spec in enumerate(specs) if spec.is_length]
        self.looks_inside = bool(self._masks or self._lengths)
        self._places: list[int] = []  # of the padded sizes in a shape_key, as RequestChecker makes it
        at = 0
        for spec in specs:
            at += 1
            axes = [axis for axis in range(len(spec.shape)) if axis != spec.rows]
            if spec.padded is not None:
                self._places.append(at + axes.index(spec.padded))
            at += len(axes) + (spec.rows is None)

    def length_and_family(self, inputs: Sequence[Tensor], shape_key: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """The size of the padded axis, and what all requests have in common that may share a batch with this one, if padded.

        Nothing, if the inputs disagree in length, which a model may broadcast; if a row is masked from end to end, so that
        softmax and means are over whatever is there; if it says to be longer than it is, or has no length.
        """
        sizes = {inputs[index].shape[axis] for index, axis in self._axes}
        length = max(sizes)
        if len(sizes) > 1 or not length or (self.looks_inside and self._misleads(inputs, length)):
            return max(length, 1), ()
        return length, self._family(shape_key)

    def _family(self, shape_key: tuple[int, ...]) -> tuple[int, ...]:
        key = list(shape_key)
        for place in self._places:
            key[place] = 0
        return tuple(key)

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
