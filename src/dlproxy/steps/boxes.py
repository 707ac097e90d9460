"""The step that takes the best of the boxes that a detector finds, and their places in the original image.

Named in the table of steps; image.py asks for places. They are in pixels from the top left corner, x before y. Not aware of:
models.
"""

from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.config.traits import knob
from dlproxy.steps.options import checked
from dlproxy.steps.values import Floats, numbers_of, shape


def mapped_back(points: Floats, scale: Any, offset: Any) -> Floats:
    """Points [..., 2] of a resized image in the original, as image.resize has its scale and offset."""
    found = points
    if offset is not None:
        found = found - _pair("offset", offset)
    if scale is not None:
        factors = _pair("scale", scale)
        if not (factors > 0).all():
            raise ValueError(f"scale is {factors.tolist()}, and must be above 0")
        found = found / factors
    return found


def _pair(name: str, value: Any) -> Floats:
    numbers = numbers_of(name, value).ravel()
    if numbers.size != 2:
        raise ValueError(f"{name} has {numbers.size} numbers, and the step takes one for x and one for y")
    return numbers


class Nms:
    """The best of the boxes that frame the same thing (greedy non-maximum suppression), highest score first."""

    class Options(Struct, frozen=True):
        score: Annotated[float, knob("boxes with a lower score are left out")] = 0.25
        iou: Annotated[
            float,
            knob("of two boxes, the lower one is left out if their intersection is a larger share of their union", ge=0, le=1),
        ] = 0.5
        most: Annotated[int, knob("so many boxes are given at most", ge=1, le=65536)] = 300
        candidates: Annotated[int, knob("only so many with the highest scores are looked at", ge=1, le=1 << 20)] = 4096
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
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is left out
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
        low, high = np.hsplit(places.astype(np.float64), 2)
        areas = np.clip(high - low, 0, None).prod(axis=1)
        alive = np.ones(len(places), np.bool_)
        kept: list[int] = []
        for best in range(len(places)):
            if not alive[best]:
                continue
            kept.append(best)
            if len(kept) == self._options.most:
                break
            rivals = alive[best + 1 :] & (kinds[best + 1 :] == kinds[best]) if self._options.by_class else alive[best + 1 :]
            others = best + 1 + np.flatnonzero(rivals)
            sides = np.minimum(high[best], high[others]) - np.maximum(low[best], low[others])
            shared = np.clip(sides, 0, None).prod(axis=1)
            alive[others[shared > self._options.iou * (areas[best] + areas[others] - shared)]] = False
        return kept


def _xyxy(boxes: Floats, form: str) -> Floats:
    if form == "xyxy":
        return boxes
    low = boxes[:, :2] if form == "xywh" else boxes[:, :2] - boxes[:, 2:] / 2
    return np.concatenate([low, low + boxes[:, 2:]], axis=1)
