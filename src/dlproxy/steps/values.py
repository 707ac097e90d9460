"""What steps are given, checked: one element of BYTES, texts, numbers of a rank, images.

Called by the steps. What does not fit is a ValueError that names the input. Not aware of: any one step.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def array_of(name: str, value: Any) -> NDArray[Any]:
    """The one array that it is, and no list."""
    if isinstance(value, list):
        raise ValueError(f"{name} is a list of {len(value)} arrays, and the step takes one at a time: say each = true")
    return np.asarray(value, object if isinstance(value, bytes | str) else None)  # numpy's own strings lose zeros


def element_of(name: str, value: Any) -> bytes:
    """The one element of a BYTES array, or the bytes that UINT8 numbers are."""
    array = array_of(name, value)
    if array.dtype == np.uint8:
        return array.tobytes()
    if array.size != 1:
        raise ValueError(f"{name} has {array.size} elements, and the step takes one at a time: say each = true")
    return _bytes(name, array.item())


def texts_of(name: str, value: Any, *, most: int, most_bytes: int) -> list[str]:
    """Every element of a BYTES array: not more, each UTF-8 and not longer."""
    array = array_of(name, value)
    if array.size > most:
        raise ValueError(f"{name} has {array.size} texts, and max_texts is {most}")
    texts = []
    for number, element in enumerate(array.ravel().tolist()):
        encoded = _bytes(name, element)
        if len(encoded) > most_bytes:
            raise ValueError(f"text {number} of {name} has {len(encoded)} bytes, and max_bytes is {most_bytes}")
        try:
            texts.append(str(encoded, "utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"text {number} of {name} is not UTF-8: {error}") from None
    return texts


def _bytes(name: str, element: object) -> bytes:
    if isinstance(element, str):
        return element.encode()
    if not isinstance(element, bytes):
        raise ValueError(f"{name} holds {type(element).__name__}, and the step takes BYTES")
    return element


def numbers_of(name: str, value: Any, *, rank: int | None = None) -> Floats:
    """As FP32. `rank`: how many dimensions it must have; None for any but 0."""
    array = array_of(name, value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds {array.dtype}, and the step takes numbers")
    if array.ndim != rank if rank is not None else not array.ndim:
        raise ValueError(f"{name} is {shape(array)}, and the step takes {rank or 'at least 1'} dimensions")
    return array.astype(np.float32, copy=False)


def scores_of(name: str, value: Any) -> Floats:
    """[..., classes], of at least one class."""
    scores = numbers_of(name, value)
    if not scores.shape[-1]:
        raise ValueError(f"{name} is {shape(scores)}: there are no classes")
    return scores


def image_of(name: str, value: Any) -> NDArray[Any]:
    """[height, width, channels], of some pixels."""
    image = array_of(name, value)
    if image.ndim != 3 or not image.size or image.dtype.kind not in "biuf":
        raise ValueError(f"{name} is {image.dtype}{shape(image)}, and an image is [height, width, channels]")
    return image


def shape(array: NDArray[Any]) -> str:
    return f"[{', '.join(map(str, array.shape))}]"
