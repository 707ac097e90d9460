"""Steps on the boxes that detectors find: the parts of an image that they frame, and the best of those that overlap.

Named in the table of steps. Places are in pixels from the top left corner, x before y. Not aware of: models.
"""

from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.config.traits import knob
from dlproxy.steps.options import checked
from dlproxy.steps.values import Floats, image_of, numbers_of, shape

MOST_PIXELS = 1 << 25  # of all crops of one image: 96 MiB of RGB
_BLOCK = 1 << 16  # pixels that are made at once: some MB of places and weights
Pixels = NDArray[np.uint8]
Doubles = NDArray[np.float64]


def mapped_back(points: Floats, scale: Any, offset: Any) -> Floats:
    """Points [..., 2] of a resized image in the original, as image.resize has its scale and offset."""
    found = points
    if offset is not None:
        found = found - _pair("offset", offset)
    if scale is not None:
        factors = _pair("scale", scale)
        if not (factors > 0).all():
            raise ValueError(f"scale is {factors.tolist()}, and must be above 0")
        with np.errstate(over="ignore"):  # what is not finite then is found by who asks
            found = found / factors
    return found


def _pair(name: str, value: Any) -> Floats:
    numbers = numbers_of(name, value).ravel()
    if numbers.size != 2:
        raise ValueError(f"{name} has {numbers.size} numbers, and the step takes one for x and one for y")
    return numbers


class Crop:
    """The parts of an image that boxes frame, as a list, in the order of the boxes. Those of four corners are made upright.

    What lies outside of the image is left out, or, with corners, shown as the pixels at its edge. No crop is empty.
    """

    class Options(Struct, frozen=True):
        grow: Annotated[float, knob("boxes are made larger by this share of their sides", ge=0, le=10)] = 0.0
        turn: Annotated[
            float,
            knob(
                "crops at least so many times as high as wide are turned to the left, as lines of text need it; 0: none", ge=0
            ),
        ] = 0.0
        max_pixels: Annotated[int, knob("of all crops of one image; more are refused", ge=1)] = MOST_PIXELS

    outputs = {"crops": "UINT8[-1,-1,-1]"}

    def __init__(self, **options: Any) -> None:
        self._options = checked(self.Options, options)

    def __call__(self, image: Any, boxes: Any, scale: Any = None, offset: Any = None) -> dict[str, list[Pixels]]:
        """image: UINT8 [height, width, channels]. boxes: left, top, right, bottom [n, 4]; or corners, clockwise from the top
        left one, [n, 4, 2] or [n, 8]; a first axis of 1 is left out. scale, offset: of image.resize, if boxes are in its image.
        """
        pixels = image_of("image", image)
        if pixels.dtype != np.uint8:
            raise ValueError(f"image is {pixels.dtype}, and is cropped as UINT8")
        corners = mapped_back(_corners("boxes", boxes), scale, offset).astype(np.float64)
        if not np.isfinite(corners).all():
            raise ValueError("boxes holds numbers that are not finite")
        middle = corners.mean(axis=1, keepdims=True)
        corners = middle + (corners - middle) * (1.0 + self._options.grow)
        sizes = _sizes(corners, pixels.shape[1], pixels.shape[0])
        total = int(sizes.prod(axis=1).sum())
        if total > self._options.max_pixels:
            raise ValueError(
                f"the {len(corners)} crops would have {total} pixels, and max_pixels is {self._options.max_pixels}"
            )
        cut = cropped if corners.shape[1:] == (2, 2) else warped
        return {"crops": [self._turned(cut(pixels, *one)) for one in zip(corners, sizes.astype(int).tolist(), strict=True)]}

    def _turned(self, crop: Pixels) -> Pixels:
        if self._options.turn and crop.shape[0] >= self._options.turn * crop.shape[1]:
            return np.ascontiguousarray(np.rot90(crop))
        return crop


def _corners(name: str, value: Any) -> Floats:
    """[n, 2 or 4, 2]."""
    boxes = numbers_of(name, value)
    if not boxes.size:
        return np.zeros((0, 2, 2), np.float32)
    found = boxes[0] if boxes.shape[0] == 1 and (boxes.ndim == 4 or (boxes.ndim == 3 and boxes.shape[2] in (4, 8))) else boxes
    if found.shape[1:] not in ((4,), (8,), (4, 2)):
        raise ValueError(f"{name} is {shape(boxes)}, and boxes are [n, 4], or corners [n, 4, 2] or [n, 8]")
    return found.reshape(len(found), -1, 2)


def _sizes(corners: Doubles, width: int, height: int) -> Doubles:
    """Of the crops, (height, width): at least 1."""
    if corners.shape[1] == 2:
        edges = np.array([width, height])
        found = np.diff(np.clip(np.rint(corners), 0, edges), axis=1)[:, 0]
    else:
        sides = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2)  # top, right, bottom, left
        found = np.rint(np.stack([np.maximum(sides[:, 0], sides[:, 2]), np.maximum(sides[:, 1], sides[:, 3])], axis=1))
    return np.maximum(found, 1)[:, ::-1]


def cropped(image: Pixels, corners: Doubles, size: tuple[int, int]) -> Pixels:
    """The part between two corners; `size`: (height, width), as it is inside the image."""
    left = int(np.clip(np.rint(corners[0, 0]), 0, image.shape[1] - size[1]))
    top = int(np.clip(np.rint(corners[0, 1]), 0, image.shape[0] - size[0]))
    return image[top : top + size[0], left : left + size[1]].copy()


def warped(image: Pixels, corners: Doubles, size: tuple[int, int]) -> Pixels:
    """What four corners frame, as an upright image of this size (height, width), by bilinear interpolation between the middles
    of pixels. The projection of the unit square on a quadrilateral: Heckbert, Fundamentals of Texture Mapping, 1989, 2.2.3.
    """
    first, second, third, fourth = corners
    one, other, bend = second - third, fourth - third, first - second + third - fourth
    area = one[0] * other[1] - other[0] * one[1]
    g = (bend[0] * other[1] - other[0] * bend[1]) / area if area else 0.0
    h = (one[0] * bend[1] - bend[0] * one[1]) / area if area else 0.0
    across, down = second - first + g * second, fourth - first + h * fourth
    height, width = size
    crop = np.empty((height, width, image.shape[2]), np.uint8)
    u = (np.arange(width) + 0.5) / width
    step = max(_BLOCK // width, 1)
    for top in range(0, height, step):
        v = ((np.arange(top, min(top + step, height)) + 0.5) / height)[:, None]
        depth = g * u + h * v + 1.0
        depth = np.where(np.abs(depth) < 1e-9, 1e-9, depth)  # corners that cross
        x = (across[0] * u + down[0] * v + first[0]) / depth
        y = (across[1] * u + down[1] * v + first[1]) / depth
        crop[top : top + step] = _between(image, x - 0.5, y - 0.5)
    return crop


def _between(image: Pixels, x: Doubles, y: Doubles) -> Pixels:
    """The image at these places, where 0, 0 is the middle of the first pixel."""
    height, width, channels = image.shape
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    left, top = x.astype(np.intp), y.astype(np.intp)
    right, below = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    to_right, to_below = (x - left).astype(np.float32)[..., None], (y - top).astype(np.float32)[..., None]
    flat = image.reshape(-1, channels)
    upper = flat[top * width + left] * (1 - to_right) + flat[top * width + right] * to_right
    lower = flat[below * width + left] * (1 - to_right) + flat[below * width + right] * to_right
    between: Pixels = (upper * (1 - to_below) + lower * to_below + np.float32(0.5)).astype(np.uint8)
    return between


class Nms:
    """The best of the boxes that frame the same thing (greedy non-maximum suppression), highest score first."""

    class Options(Struct, frozen=True):
        score: Annotated[float, knob("boxes with a lower score are left out")] = 0.25
        iou: Annotated[
            float,
            knob("of two boxes, the lower one is left out if their intersection is a larger share of their union", ge=0, le=1),
        ] = 0.5
        most: Annotated[int, knob("so many boxes are given at most", ge=1, le=65536)] = 300
        candidates: Annotated[int, knob("only so many with the highest scores are looked at", ge=1, le=1 << 20)] = 8192
        by_class: Annotated[bool, knob("boxes of different classes do not displace each other")] = True
        form: Annotated[
            Literal["xyxy", "xywh", "cxcywh"],
            knob("what boxes are given as: left, top, right, bottom; left, top, width, height; or middle, width, height"),
        ] = "xyxy"
        rows_last: Annotated[bool, knob("boxes, and scores of classes, stand in columns, as most YOLO models give them")] = (
            False
        )

    outputs = {"boxes": "FP32[-1,4]", "scores": "FP32[-1]", "classes": "INT64[-1]", "indices": "INT64[-1]"}

    def __init__(self, **options: Any) -> None:
        self._options = checked(self.Options, options)

    def __call__(
        self, boxes: Any, scores: Any = None, classes: Any = None, scale: Any = None, offset: Any = None
    ) -> dict[str, NDArray[Any]]:
        """boxes: [n, 4], a first axis of 1 is left out. scores: [n], or of classes [n, classes], of which the highest counts;
        without it, they stand behind each box's four numbers. classes: of the boxes, [n]. scale, offset: of image.resize.
        boxes are given back as left, top, right, bottom.
        """
        places, best, kinds = self._given(boxes, scores, classes)
        places = mapped_back(_xyxy(places, self._options.form).reshape(-1, 2, 2), scale, offset).reshape(-1, 4)
        good = np.flatnonzero((best >= self._options.score) & np.isfinite(places).all(axis=1))
        order = good[np.argsort(-best[good], kind="stable")][: self._options.candidates]
        kept = order[self._kept(places[order], kinds[order])]
        return {
            "boxes": places[kept],
            "scores": best[kept],
            "classes": kinds[kept],
            "indices": kept.astype(np.int64, copy=False),
        }

    def _given(self, boxes: Any, scores: Any, classes: Any) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """[n, 4] places, [n] scores, [n] classes."""
        places = numbers_of("boxes", boxes)
        in_row = places.ndim == 3
        places = self._rows("boxes", places, in_row)
        values = places[:, 4:] if scores is None and places.ndim == 2 else self._rows("scores", scores, in_row)
        places = places[:, :4] if scores is None and places.ndim == 2 else places
        if places.shape != (len(values), 4) or values.ndim not in (1, 2) or 0 in values.shape[1:]:
            raise ValueError(
                f"boxes is {shape(places)}, and scores is {shape(values)}; they are [n, 4], and [n] or [n, classes]"
            )
        if classes is not None:
            kinds = self._rows("classes", classes, in_row).astype(np.int64)
            if kinds.shape != values.shape:
                raise ValueError(f"classes is {shape(kinds)}, and scores is {shape(values)}; both are [n]")
            return places, values, kinds
        if values.ndim == 1:
            return places, values, np.zeros(len(places), np.int64)
        return places, values.max(axis=1), values.argmax(axis=1).astype(np.int64, copy=False)

    def _rows(self, name: str, value: Any, in_row: bool) -> Floats:
        """Without the axis of the requests' rows, if boxes has one."""
        found = numbers_of(name, value)
        if in_row:
            if found.shape[0] != 1:
                raise ValueError(f"{name} is {shape(found)}, and the step takes one image at a time: say each = true")
            found = found[0]
        return found.T if self._options.rows_last else found

    def _kept(self, places: Floats, kinds: NDArray[np.int64]) -> list[int]:
        """Of boxes in the order of their scores."""
        low, high = places[:, :2], places[:, 2:]
        areas = np.clip(high - low, 0, None).prod(axis=1)
        left = np.arange(len(places))
        kept: list[int] = []
        while len(left) and len(kept) < self._options.most:
            best, left = left[0], left[1:]
            kept.append(int(best))
            sides = np.minimum(high[best], high[left]) - np.maximum(low[best], low[left])
            shared = np.clip(sides, 0, None).prod(axis=1)
            too_much = shared > self._options.iou * (areas[best] + areas[left] - shared)
            if self._options.by_class:
                too_much &= kinds[left] == kinds[best]
            left = left[~too_much]
        return kept


def _xyxy(boxes: Floats, form: str) -> Floats:
    if form == "xyxy":
        return boxes
    low = boxes[:, :2] if form == "xywh" else boxes[:, :2] - boxes[:, 2:] / 2
    return np.concatenate([low, low + boxes[:, 2:]], axis=1)
