"""The three networks out of the package rapidocr-onnxruntime, and the characters that the reader knows.

Called by run.py and by benchmarks/pipelines. Not aware of: dlproxy.
"""

import importlib.util
import shutil
from pathlib import Path

import onnxruntime

FILES = {
    "detect": "ch_PP-OCRv4_det_infer.onnx",
    "classify": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "read": "ch_PP-OCRv4_rec_infer.onnx",
}


def take_models(into):
    """Into this folder; the characters stand in the reader's own file."""
    folder = Path(importlib.util.find_spec("rapidocr_onnxruntime").origin).with_name("models")
    into.mkdir(exist_ok=True)
    for name, file in FILES.items():
        shutil.copyfile(folder / file, into / f"{name}.onnx")
    known = onnxruntime.InferenceSession(into / "read.onnx").get_modelmeta().custom_metadata_map["character"]
    (into / "characters.txt").write_text(known, "utf-8")
