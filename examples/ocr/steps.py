"""What the OCR pipeline computes around its three models: pictures in front of them, boxes and texts behind them.

Functions of arrays, named in dlproxy.toml; a list is one array for each line of text. The networks are PP-OCR's (Du et al.
2020), which want BGR pixels from -1 to 1. Not aware of: dlproxy.
"""

from pathlib import Path

import cv2
import numpy as np

LONGEST = 960  # pixels of the longer side that the detector sees, at most
INK, CERTAIN = 0.3, 0.5  # a pixel is text from here on; a box is kept if its pixels are, on average
GROW = 1.6  # the network marks the core of a line: its box grows by area * GROW / circumference (Liao et al. 2020)
HEIGHT = 48  # pixels of a line for the other two networks
GLANCE = 192  # pixels of its width that the classifier looks at
WIDTH_STEP = 64  # the reader gets widths that are multiples of it: lines of one width share a batch
TURNED = 0.9


def page(image):
    """For the detector, uint8 [height, width, 3] -> float32 [1, 3, height, width]: at most LONGEST, multiples of 32."""
    height, width = image.shape[:2]
    scale = min(1.0, LONGEST / max(height, width))
    size = [max(32, round(side * scale / 32) * 32) for side in (width, height)]
    return _normalised(cv2.resize(image, size))[np.newaxis]


def boxes(heat, image):
    """Corners of the lines in pixels of the image, clockwise from the top left, float32 [lines, 4, 2], in the order of reading.

    `heat`: how surely each pixel of the page is text, [1, 1, height, width].
    """
    heat = heat[0, 0]
    text = cv2.dilate((heat > INK).astype(np.uint8), np.ones((2, 2), np.uint8))
    scale = np.array(image.shape[1::-1], np.float32) / heat.shape[::-1]
    contours, _ = cv2.findContours(text, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    found = []
    for contour in contours:
        centre, (width, height), angle = cv2.minAreaRect(contour)
        if min(width, height) < 3 or _mean_inside(heat, cv2.boxPoints((centre, (width, height), angle))) < CERTAIN:
            continue
        margin = width * height * GROW / (width + height)  # on both sides together
        found.append(_clockwise(cv2.boxPoints((centre, (width + margin, height + margin), angle))) * scale)
    limits = np.array(image.shape[1::-1], np.float32) - 1
    return np.array(_as_read(found), np.float32).reshape(-1, 4, 2).clip(0, limits)


boxes.outputs = {"corners": "FP32[-1,4,2]"}


def lines(image, corners):
    """Each line cut out and laid straight, uint8 [HEIGHT, its width, 3], and a glance of it for the classifier."""
    cut = [_cut(image, box) for box in corners]
    return {"line": cut, "glance": [_padded(_narrow(line), GLANCE) for line in cut]}


def upright(line, directions):
    """For the reader, float32 [3, HEIGHT, width]: lines that stand on their heads are turned.

    `directions`: how surely each line is upright, and is not.
    """
    turned = [found.ravel()[1] > TURNED for found in directions]
    right_way = [one[::-1, ::-1] if over else one for one, over in zip(line, turned, strict=True)]
    return [_padded(one, -(-one.shape[1] // WIDTH_STEP) * WIDTH_STEP) for one in right_way]


class Spell:
    """What the reader saw, as text: the likeliest character of each step, without repetitions and blanks (CTC, Graves 2006)."""

    outputs = {"text": "BYTES[-1]", "sure": "FP32[-1]"}

    def __init__(self, characters_file):
        self.characters = ["", *Path(characters_file).read_text("utf-8").split("\n"), " "]

    def __call__(self, steps):
        """`steps`: of each line, how likely each character is at each step, [..., steps, characters]."""
        texts, sure = [], []
        for line in steps:
            line = line.reshape(-1, line.shape[-1])
            best = line.argmax(axis=1)
            kept = (best != 0) & (best != np.concatenate([[0], best[:-1]]))
            texts.append("".join(self.characters[number] for number in best[kept]).encode())
            sure.append(line[kept, best[kept]].mean() if kept.any() else 0.0)
        return {"text": np.array(texts, object), "sure": np.array(sure, np.float32)}


def _normalised(pixels):
    """RGB bytes, height first -> BGR from -1 to 1, colours first."""
    return np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1), np.float32) / 127.5 - 1.0


def _padded(line, width):
    """As a network takes it; what is right of the line is 0."""
    whole = np.zeros((3, HEIGHT, width), np.float32)
    whole[:, :, : line.shape[1]] = _normalised(line)
    return whole


def _narrow(line):
    return line if line.shape[1] <= GLANCE else cv2.resize(line, (GLANCE, HEIGHT))


def _mean_inside(heat, box):
    left, top = np.floor(box.min(axis=0)).astype(int).clip(0)
    right, bottom = np.ceil(box.max(axis=0)).astype(int) + 1
    part = heat[top:bottom, left:right]
    inside = np.zeros(part.shape, np.uint8)
    cv2.fillPoly(inside, [np.round(box - (left, top)).astype(np.int32)], 1)
    return cv2.mean(part, inside)[0]


def _clockwise(box):
    """From the top left, which is the upper one of the two leftmost corners."""
    left, right = np.split(box[np.argsort(box[:, 0])], 2)
    (top_left, bottom_left), (top_right, bottom_right) = (side[np.argsort(side[:, 1])] for side in (left, right))
    return np.array([top_left, top_right, bottom_right, bottom_left])


def _as_read(found):
    """From top to bottom; what begins within half a line's height of another, from left to right."""
    rows = []
    for box in sorted(found, key=lambda box: box[0, 1]):
        if not rows or box[0, 1] - rows[-1][0][0, 1] > np.linalg.norm(box[3] - box[0]) / 2:
            rows.append([])
        rows[-1].append(box)
    return [box for row in rows for box in sorted(row, key=lambda box: box[0, 0])]


def _cut(image, box):
    """A line that is taller than wide is written upwards or downwards: it is laid flat."""
    width, height = (max(1.0, np.linalg.norm(box[0] - box[corner])) for corner in (1, 3))
    if height > 1.5 * width:
        box, width, height = np.roll(box, -1, axis=0), height, width
    size = max(8, round(HEIGHT * width / height)), HEIGHT
    target = np.array([(0, 0), (size[0], 0), size, (0, HEIGHT)], np.float32)
    warp = cv2.getPerspectiveTransform(box.astype(np.float32), target)
    return cv2.warpPerspective(image, warp, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
