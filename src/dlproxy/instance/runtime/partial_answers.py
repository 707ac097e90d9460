"""What `predict` of a Python class gives: a dict of arrays at once, or in parts that are joined here.

Called by runtime/python.py. Not aware of: classes, generators, event loops.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlproxy.instance.runtime.declared import check_output, described, fits
from dlproxy.message import Signature

Array = NDArray[np.generic]


class AnswerError(ValueError):
    """What `predict` gave is not what it must give; the message says both."""


class Parts:
    """The parts of one answer so far: dicts with some or all of the outputs.

    Pieces of an output are laid end to end along its first open axis after the rows: the steps of a sequence. An output
    that has none cannot grow, and the last piece is its value.
    """

    def __init__(self, signature: Signature) -> None:
        self._specs = {spec.name: spec for spec in signature.outputs}
        self._first_axis = 1 if signature.batched else 0
        self._pieces: dict[str, list[Array]] = {}
        self._count = 0

    def add(self, part: Any) -> None:
        """One more. Its arrays are copied: the model may go on writing to them. Raises AnswerError."""
        self._count += 1
        try:
            for name, array in arrays_of(part).items():
                self._add(name, array)
        except ValueError as error:
            raise AnswerError(f"part {self._count} of the answer: {error}") from None

    def joined(self) -> dict[str, Array]:
        """The whole answer. Raises AnswerError if an output never came."""
        missing = [name for name in self._specs if name not in self._pieces]
        if missing:
            raise AnswerError(f"predict ended without yielding {', '.join(missing)}")
        return {
            name: pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=self._axis(name))
            for name, pieces in self._pieces.items()
        }

    def _add(self, name: str, array: Array) -> None:
        if name not in self._specs:
            raise AnswerError(f"there is no output '{name}'; the model declares {', '.join(self._specs)}")
        piece = check_output(self._specs[name], array).copy()
        axis = self._axis(name)
        if axis is None:
            self._pieces[name] = [piece]
            return
        pieces = self._pieces.setdefault(name, [])
        if pieces and not fits(piece.shape, [-1 if each == axis else size for each, size in enumerate(pieces[0].shape)]):
            raise AnswerError(
                f"output '{name}' is {described(piece)} after {described(pieces[0])} in an earlier part; "
                f"parts are joined along axis {axis}, and only there may they differ"
            )
        pieces.append(piece)

    def _axis(self, name: str) -> int | None:
        """Where the pieces of an output are joined."""
        sizes = self._specs[name].shape
        return next((axis for axis, size in enumerate(sizes) if axis >= self._first_axis and size == -1), None)


def arrays_of(outputs: Any) -> dict[str, Array]:
    """The same, if it is a dict of arrays. Raises AnswerError."""
    if not isinstance(outputs, dict):
        raise AnswerError(f"predict gave a {type(outputs).__name__}; it must give a dict of output names to numpy arrays")
    arrays: dict[str, Array] = outputs
    for name, array in outputs.items():
        if isinstance(array, np.generic):  # what numpy makes of arithmetic with arrays without dimensions
            arrays = {**arrays, name: np.asarray(array)}
        elif not isinstance(array, np.ndarray):
            kind = f"{type(array).__module__}.{type(array).__name__}".removeprefix("builtins.")
            raise AnswerError(f"output '{name}' is a {kind}; predict must give numpy arrays")
    return arrays
