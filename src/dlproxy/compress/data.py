"""Examples that a model is calibrated, trained and judged by: arrays by the names of its inputs, and what is right of each.

Read from .npz files. Not aware of: models, metrics.
"""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Array = NDArray[np.generic]


class Dataset(Struct, frozen=True, eq=False):
    """`inputs`: by name, all with as many rows on their first axis. `labels`: as many, or None where there are none."""

    inputs: dict[str, Array]
    labels: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def rows(self, chosen: Sequence[int] | NDArray[np.integer] | slice) -> "Dataset":
        """Some of the examples, in this order."""
        labels = None if self.labels is None else self.labels[chosen]
        return Dataset({name: array[chosen] for name, array in self.inputs.items()}, labels)
