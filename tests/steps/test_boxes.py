"""Boxes: crops beside slices and a direct formula, suppression beside brute force, places mapped back."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.steps.running import made, run, texts

IMAGE = np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)
SIDE = st.integers(0, 40)


def _crops(boxes: Any, image: Any = IMAGE, **more: Any) -> list[Any]:
    options = {name: more.pop(name) for name in ("grow", "turn", "max_pixels") if name in more}
    found: list[Any] = run(made("image.crop", **options), image=image, boxes=np.asarray(boxes, np.float32), **more)["crops"]
    return found


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30), st.integers(1, 10), st.integers(1, 10)), max_size=3))
def test_whole_pixels_are_slices_in_every_form(boxes: list[tuple[int, int, int, int]]) -> None:
    slices = [IMAGE[y : y + height, x : x + width] for x, y, width, height in boxes]
    two = [[x, y, x + width, y + height] for x, y, width, height in boxes]
    four = [[[left, top], [right, top], [right, bottom], [left, bottom]] for left, top, right, bottom in two]
    for form in (two, four, np.reshape(four, (len(boxes), 8)), [two], [four]):
        crops = _crops(form)
        assert len(crops) == len(slices)
        assert all((crop == part).all() for crop, part in zip(crops, slices, strict=True))


def _seen_through(corners: Any, height: int, width: int) -> Any:
    """Each pixel by the projection that eight equations give, and the four pixels around where it comes from."""
    square = [(0, 0), (1, 0), (1, 1), (0, 1)]
    equations = []
    for (u, v), (x, y) in zip(square, corners, strict=True):
        equations += [[u, v, 1, 0, 0, 0, -u * x, -v * x], [0, 0, 0, u, v, 1, -u * y, -v * y]]
    projection = np.append(np.linalg.solve(np.array(equations, float), np.ravel(corners)), 1).reshape(3, 3)
    crop = np.zeros((height, width, 3))
    for row in range(height):
        for column in range(width):
            x, y, depth = projection @ [(column + 0.5) / width, (row + 0.5) / height, 1]
            x, y = np.clip(x / depth - 0.5, 0, IMAGE.shape[1] - 1), np.clip(y / depth - 0.5, 0, IMAGE.shape[0] - 1)
            for near_x in {int(x), min(int(x) + 1, IMAGE.shape[1] - 1)}:
                for near_y in {int(y), min(int(y) + 1, IMAGE.shape[0] - 1)}:
                    crop[row, column] += (1 - abs(x - near_x)) * (1 - abs(y - near_y)) * IMAGE[near_y, near_x]
    return crop


@given(st.tuples(*[st.integers(-3, 3)] * 8), st.sampled_from([0, 1, 2, 3]))
@settings(max_examples=15, deadline=None)
def test_corners_by_the_direct_formula(moves: tuple[int, ...], turned: int) -> None:
    corners = np.roll(np.array([[10, 10], [30, 12], [28, 24], [8, 20]]) + np.reshape(moves, (4, 2)), turned, axis=0)
    (crop,) = _crops([corners])
    sides = [float(np.hypot(*(corners[number] - corners[(number + 1) % 4]))) for number in range(4)]
    height, width = round(max(sides[1], sides[3])), round(max(sides[0], sides[2]))
    assert crop.shape == (height, width, 3)
    more = _seen_through(corners, height, width) - crop
    assert more.min() > -0.01
    assert more.max() < 1.01  # Pillow cuts off what is behind the point


def test_corners_outside_of_the_image_see_its_edge() -> None:
    (crop,) = _crops([[[-5, -5], [65, -5], [65, 45], [-5, 45]]])
    assert (crop == np.pad(IMAGE, ((5, 5), (5, 5), (0, 0)), mode="edge")).all()
    (gray,) = _crops([[[0, 0], [60, 0], [60, 40], [0, 40]]], IMAGE[..., :1])
    assert (gray == IMAGE[..., :1]).all()


def test_grown_turned_and_mapped_back() -> None:
    tall = _crops([[20, 10, 24, 20]], turn=1.5)[0]
    assert (tall == np.rot90(IMAGE[10:20, 20:24])).all()
    assert (_crops([[20, 10, 30, 20]], grow=0.2)[0] == IMAGE[9:21, 19:31]).all()
    scale, offset = np.array([0.5, 2], np.float32), np.array([4, -6], np.float32)
    assert (_crops([[14, 14, 19, 34]], scale=scale, offset=offset)[0] == IMAGE[10:20, 20:30]).all()


@pytest.mark.parametrize(
    "box",
    [[-50, -50, -10, -10], [100, 100, 200, 200], [20, 20, 20, 20], [30, 30, 10, 10], [1e30, 0, 3e38, 3], [-9, -9, 70, 50]],
)
def test_no_crop_is_empty(box: list[float]) -> None:
    (crop,) = _crops([box])
    assert crop.size
    assert crop.shape[0] <= 40


@given(st.lists(st.floats(-100, 100, width=32), min_size=8, max_size=8))
@settings(max_examples=50)
def test_any_corners(corners: list[float]) -> None:
    (crop,) = _crops([corners])
    assert crop.size


def test_corners_in_a_line_or_crossing() -> None:
    for corners in (
        [[5, 5], [5, 5], [5, 5], [5, 5]],
        [[0, 0], [10, 10], [20, 20], [30, 30]],
        [[0, 0], [20, 20], [20, 0], [0, 20]],
    ):
        assert _crops([corners])[0].size


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"boxes": np.zeros((2, 5))}, r"boxes is \[2, 5\], and boxes are \[n, 4\], or corners"),
        ({"boxes": np.zeros((2, 3, 4))}, r"boxes is \[2, 3, 4\]"),
        ({"boxes": np.full((1, 4), np.nan)}, "not finite"),
        ({"boxes": np.full((1, 4, 2), [[0, 0], [3e38, 0], [3e38, 3e38], [0, 3e38]])}, "the 1 crops would have"),
        ({"boxes": np.tile([0, 0, 60, 40], (20_000, 1))}, "the 20000 crops would have 48000000 pixels, and max_pixels is"),
        ({"boxes": np.zeros((1, 4)), "scale": np.zeros(2)}, "scale is .* and must be above 0"),
        ({"boxes": np.zeros((1, 4)), "offset": np.zeros(3)}, "offset has 3 numbers"),
        ({"boxes": texts("a")}, "boxes holds object"),
    ],
)
def test_crops_that_cannot_be(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made("image.crop")(image=IMAGE, **inputs)


def _share(one: Any, other: Any) -> float:
    """The intersection's of the union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - shared
    return shared / union if union else 0.0


BOXES = st.lists(st.tuples(SIDE, SIDE, SIDE, SIDE, st.integers(0, 10), st.integers(0, 2)), max_size=25)


@settings(max_examples=50)
@given(BOXES, st.booleans(), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_suppressed_as_by_brute_force(found: list[tuple[int, ...]], by_class: bool, iou: float) -> None:
    boxes = [(x, y, x + width, y + height) for x, y, width, height, _, _ in found]
    kept: list[int] = []
    for number in sorted(range(len(found)), key=lambda number: -found[number][4]):
        rivals = [other for other in kept if not by_class or found[other][5] == found[number][5]]
        if found[number][4] >= 3 and all(_share(boxes[number], boxes[other]) <= iou for other in rivals):
            kept.append(number)
    table = np.array([(*box, score, kind) for box, (*_, score, kind) in zip(boxes, found, strict=True)], np.float32).reshape(
        -1, 6
    )
    step = made("boxes.nms", by_class=by_class, iou=iou, score=3)
    best = run(step, boxes=table[:, :4], scores=table[:, 4], classes=table[:, 5])
    assert best["indices"].tolist() == kept
    np.testing.assert_array_equal(best["boxes"], table[kept, :4])
    np.testing.assert_array_equal(best["scores"], table[kept, 4])
    np.testing.assert_array_equal(best["classes"], table[kept, 5])


def test_the_forms_that_models_give() -> None:
    boxes = np.array([[10, 10, 20, 30], [11, 11, 21, 31], [50, 50, 60, 60], [0, 0, 1, 1]], np.float32)
    scores = np.array([[0.1, 0.8], [0.2, 0.9], [0.7, 0.1], [0.1, 0.1]], np.float32)
    expected = {"boxes": boxes[[1, 2]].tolist(), "classes": [1, 0], "indices": [1, 2]}

    def same(form: dict[str, Any], **inputs: Any) -> bool:
        best = run(made("boxes.nms", **form), **inputs)
        return {name: best[name].tolist() for name in expected} == expected

    middles = np.hstack([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]])
    assert same({}, boxes=boxes, scores=scores)
    assert same({}, boxes=boxes[None], scores=scores[None])
    assert same({"form": "xywh"}, boxes=np.hstack([boxes[:, :2], middles[:, 2:]]), scores=scores)
    assert same({"form": "cxcywh", "rows_last": True}, boxes=np.hstack([middles, scores]).T[None])
    moved = boxes * np.tile([2.0, 0.5], 2) + np.tile([3.0, 7.0], 2)
    assert same({}, boxes=moved, scores=scores, scale=np.array([2.0, 0.5]), offset=np.array([3.0, 7.0]))


def test_bounds_and_what_is_no_number() -> None:
    boxes = np.array([[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5], [6, 6, np.inf, 7], [8, 8, 9, 9]], np.float32)
    scores = np.array([0.5, np.nan, 0.7, 0.9, 0.6])
    assert run(made("boxes.nms", most=2), boxes=boxes, scores=scores)["indices"].tolist() == [2, 4]
    assert run(made("boxes.nms", candidates=1), boxes=boxes, scores=scores)["indices"].tolist() == [2]
    assert run(made("boxes.nms"), boxes=boxes[:0], scores=np.zeros((0, 3)))["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"boxes": np.zeros((2, 4)), "scores": np.zeros(3)}, r"boxes is \[2, 4\], and scores is \[3\]"),
        ({"boxes": np.zeros((2, 4))}, r"boxes is \[2, 4\], and scores is \[2, 0\]"),
        ({"boxes": np.zeros(4), "scores": np.zeros(1)}, r"boxes is \[4\]"),
        ({"boxes": np.zeros((2, 3, 4)), "scores": np.zeros((2, 3))}, "one image at a time: say each = true"),
        ({"boxes": np.zeros((2, 4)), "scores": np.zeros(2), "classes": np.zeros(3)}, r"classes is \[3\], and scores is \[2\]"),
    ],
)
def test_boxes_that_do_not_fit(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made("boxes.nms")(**inputs)
