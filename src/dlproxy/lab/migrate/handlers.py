"""What of dlproxy.toml does the work of a TorchServe archive: its model, and what its handler does before and after.

Called by torchserve.py. Not aware of: other settings.
"""

import shlex
from pathlib import Path

from dlproxy.lab.migrate.archive import Archive
from dlproxy.lab.migrate.draft import Draft, Table

_TORCHSCRIPT = (".pt", ".pth", ".ts")
_KNOWN = {
    "object_detector": "write the steps of a pipeline: image.decode, image.resize, the model, boxes.nms (docs/guides/steps.md)",
    "image_segmenter": "write the steps of a pipeline: image.decode, image.resize, image.normalise, the model "
    "(docs/guides/steps.md)",
    "text_classifier": "write the steps of a pipeline: text.tokenize, the model, softmax, top_k (docs/guides/steps.md)",
}
_CLASSIFIER = "image_classifier"
_STEPS = (  # what it does: the shorter side to 256, 224 x 224 of the middle, ImageNet's mean and deviation; the best five
    ("decode", {"call": "image.decode", "inputs": {"image": "image"}}),
    (
        "resize",
        {
            "call": "image.resize",
            "inputs": {"image": "decode.image"},
            "options": {"size": 224, "fit": "crop", "crop_share": 0.875},
        },
    ),
    (
        "pixels",
        {
            "call": "image.normalise",
            "inputs": {"image": "resize.image"},
            "options": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        },
    ),
    ("net", {"inputs": {"INPUT__0": "pixels.image"}}),
    ("shares", {"call": "softmax", "inputs": {"scores": "net.OUTPUT__0"}}),
    ("best", {"call": "top_k", "inputs": {"scores": "shares.probabilities"}, "options": {"k": 5}}),
)


def add_handler(draft: Draft, table: Table, archive: Archive, name: str) -> Table:
    """Fills `table`, or, where a pipeline has the model's name, one of a model that it asks; that of the model."""
    model = archive.model
    suffix = Path(model.serialized_file).suffix
    if not model.serialized_file or model.model_file or suffix not in (*_TORCHSCRIPT, ".onnx"):
        table.left_out = True
        table.set("path", f"{name}/{Path(model.model_file or 'model.py').stem}.pt2", "")
        table.hand(*_unserved(archive))
    else:
        if model.handler == _CLASSIFIER and suffix in _TORCHSCRIPT:
            table = _add_classifier(draft, table, name)
        _add_path(draft, table, archive, name)
        if suffix in _TORCHSCRIPT and model.handler != _CLASSIFIER:
            todo = "TorchScript does not say them; write, say, inputs = { INPUT__0 = 'FP32[batch,3,224,224]' }, and outputs"
            table.hand("inputs and outputs", todo)
    _add_rest(table, archive)
    return table


def _unserved(archive: Archive) -> tuple[str, str]:
    model = archive.model
    if model.model_file:
        return (
            f"modelFile {model.model_file}",
            "the archive holds a module's code and its weights: export them with torch.export.save, or write a Python class "
            "(docs/guides/models.md)",
        )
    if not model.serialized_file:
        return f"handler {model.handler}", "it loads the model itself: write a Python class (docs/guides/models.md)"
    return f"serializedFile {model.serialized_file}", "it is of no kind that is served: export ONNX (docs/guides/models.md)"


def _add_classifier(draft: Draft, table: Table, name: str) -> Table:
    """A pipeline that takes an image's bytes, as the handler does."""
    draft.tables.remove(table)
    inner = draft.table("models", f"{name}_net")
    pipeline = draft.table("pipelines", name)
    pipeline.set("inputs", {"image": "BYTES[1]"}, f"handler {_CLASSIFIER}: the bytes of a JPEG or PNG")
    pipeline.set("outputs", {"classes": "best.indices", "scores": "best.scores"}, "the best five")
    for step, knobs in _STEPS:
        place = draft.table("pipelines", name, "steps", step)
        for knob, value in knobs.items():
            place.set(knob, value, "")
        if step == "net":
            place.set("model", inner.keys[1], "")
    inner.set("inputs", {"INPUT__0": "FP32[batch,3,224,224]"}, "what the handler makes of an image")
    inner.set("outputs", {"OUTPUT__0": "FP32[batch,-1]"}, "a score for each class")
    return inner


def _add_path(draft: Draft, table: Table, archive: Archive, name: str) -> None:
    file, target = archive.model.serialized_file, Path(name)
    inside = archive.place if archive.place.is_dir() else draft.base / target
    table.set("path", draft.path(inside / file), "serializedFile")
    if not (inside / file).is_file():
        words = ["unzip", str(archive.place), file, "-d", draft.path(inside)]
        table.hand(f"serializedFile {file}", f"take it out of the archive: {shlex.join(words)}")


def _add_rest(table: Table, archive: Archive) -> None:
    model = archive.model
    if model.handler in _KNOWN:
        table.hand(f"handler {model.handler}", _KNOWN[model.handler])
    elif model.handler == "base_handler":
        table.unneeded("handler base_handler", "clients send tensors")
    elif model.handler != _CLASSIFIER and model.serialized_file and not model.model_file:
        todo = "what it does before and after the model is a step of a pipeline (docs/guides/steps.md), or a Python class"
        table.hand(f"handler {model.handler}", todo)
    if model.model_version:
        number = model.model_version.partition(".")[0]
        if number.isascii() and number.isdecimal() and len(number) < 10:
            table.set("version", number, f"modelVersion {model.model_version}: versions are whole numbers here")
        else:
            table.hand(f"modelVersion {model.model_version}", "versions are whole numbers here; it is 1")
    if model.requirements_file:
        table.hand(f"requirementsFile {model.requirements_file}", "install what it lists into dlproxy's environment")
    if "index_to_name.json" in archive.files:
        todo = "write the classes' names to a text file, one in a line, and name it: class_names, or labels_file of top_k"
        table.hand("index_to_name.json", todo)
