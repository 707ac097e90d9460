"""Pages to read: the Python library's own words, drawn in many faces and sizes, a little askew, every fourth upside down.

Called by run.py and by benchmarks/pipelines. Not aware of: how they are read.
"""

import importlib
import importlib.util
import inspect
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FACES = Path(importlib.util.find_spec("matplotlib").origin).parent / "mpl-data" / "fonts" / "ttf"
NAMES = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "DejaVuSans-Bold", "STIXGeneral", "cmr10", "DejaVuSans-Oblique")
MODULES = (
    "argparse",
    "cmd",
    "configparser",
    "copy",
    "csv",
    "fileinput",
    "heapq",
    "json",
    "re",
    "sched",
    "shelve",
    "statistics",
    "struct",
    "timeit",
    "uuid",
)
SIZE = (384, 256)
MARGIN = 24


def draw(number):
    """A page and the lines that it says: (RGB image, list of str). The same number gives the same page."""
    random = np.random.default_rng(number)
    face = ImageFont.truetype(str(FACES / f"{NAMES[number % len(NAMES)]}.ttf"), int(random.integers(20, 36)))
    paper, ink = (int(random.integers(*limits)) for limits in ((205, 256), (0, 80)))
    image = Image.new("RGB", SIZE, (paper, paper, int(paper * 0.95)))
    pen = ImageDraw.Draw(image)
    said, top = [], MARGIN
    for line in _words(face, MODULES[number % len(MODULES)]):
        if top + 2 * face.size > SIZE[1]:
            break
        pen.text((MARGIN, top), line, fill=(ink, ink, ink), font=face)
        said.append(line)
        top += int(face.size * random.uniform(1.5, 1.8))
    angle = float(random.uniform(-2, 2)) + (180 if number % 4 == 3 else 0)
    image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=image.getpixel((0, 0)))
    noise = random.normal(0, random.uniform(0, 6), (*SIZE[::-1], 1))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)), said


def _words(face, module):
    """What the module says of itself, in lines that fit the page."""
    line = ""
    for word in inspect.getdoc(importlib.import_module(module)).split():
        longer = f"{line} {word}".strip()
        if face.getlength(longer) > SIZE[0] - 2 * MARGIN:
            yield line
            longer = word
        line = longer
    yield line
