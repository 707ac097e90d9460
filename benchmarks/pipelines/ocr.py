"""The OCR example's pipeline beside one class: pages of text in several faces and sizes.

Called by __main__.py. Not aware of: how sides are measured.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.checks import Findings
from benchmarks.pipelines.packages import copy_example
from benchmarks.pipelines.sides import Answer, Stage, compare, sides_of

CLASS = Path(__file__).with_name("ocr_class.py")
PAGES = 16
TITLE = "OCR"
ABOUT = f"""PP-OCR's detector, classifier and reader, `examples/ocr`: {PAGES} pages of 384 x 256 pixels as PNG, some five
lines each, in seven faces and sizes from 20 to 35, every fourth upside down."""
PIXELS, SURENESS = 1.0, 0.02  # by which answers may lie apart: batches of other sizes sum in other orders


def measure(stage: Stage) -> Findings:
    from examples.ocr.pages import draw
    from examples.ocr.weights import take_models

    folder = stage.folder / "ocr"
    pipeline = copy_example("ocr", CLASS, folder)
    take_models(folder / "models")
    findings = Findings(TITLE)
    pictures = [_png(draw(number)[0]) for number in range(PAGES)]
    compare(stage, findings, folder, sides_of(pipeline, "ocr", CLASS, "Ocr"), {"picture": pictures}, differs)
    return findings


def differs(mine: Answer, its: Answer) -> str:
    if mine["text"].tolist() != its["text"].tolist():
        return f"{mine['text'].tolist()} is not {its['text'].tolist()}"
    if np.abs(mine["corners"] - its["corners"]).max(initial=0) > PIXELS:
        return "corners"
    return "sure" if np.abs(mine["sure"] - its["sure"]).max(initial=0) > SURENESS else ""


def _png(image: Any) -> NDArray[Any]:
    file = io.BytesIO()
    image.save(file, "PNG")
    return np.array([file.getvalue()], object)
