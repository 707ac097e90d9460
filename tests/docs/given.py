"""What the pages take for granted: the files and names that a reader has, and a server with the models that are spoken of.

Called by the tests beside it. Not aware of: what a page does with it.
"""

import asyncio
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import helper

from dlproxy.message import DType
from tests import models
from tests.certificates import Authority
from tests.compress import graphs
from tests.docs.pages import ROOT, blocks
from tests.lab.simulate.test_recording import recorded

NUMBERS = np.random.default_rng(1).standard_normal((400, 16)).astype(np.float32)
LABELS = NUMBERS[:, :4].argmax(axis=1)
SHARES = (np.exp(NUMBERS[:, :4]) / np.exp(NUMBERS[:, :4]).sum(axis=1, keepdims=True)).astype(np.float32)


def double() -> models.Model:
    """As docs/start.md makes it."""
    x, y = (models.value(name, DType.FP32, ("N", 3)) for name in "xy")
    return models.model([helper.make_node("Add", ["x", "x"], ["y"])], [x], [y])


def half_plus_two() -> models.Model:
    """TensorFlow Serving's own example."""
    nodes = [helper.make_node("Mul", ["x", "half"], ["halved"]), helper.make_node("Add", ["halved", "two"], ["y"])]
    x, y = (models.value(name, DType.FP32, ("N",)) for name in "xy")
    numbers = [models.constant("half", np.float32(0.5)), models.constant("two", np.float32(2))]
    return models.model(nodes, [x], [y], numbers)


def voice() -> models.Model:
    """With the inputs and outputs of Silero's detector: the mean of a chunk."""
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["output"], axes=[1], keepdims=1),
        helper.make_node("Identity", ["state"], ["stateN"]),
    ]
    state = (2, "N", 128)
    inputs = [
        models.value("input", DType.FP32, ("N", "samples")),
        models.value("state", DType.FP32, state),
        models.value("sr", DType.INT64, ()),
    ]
    outputs = [models.value("output", DType.FP32, ("N", 1)), models.value("stateN", DType.FP32, state)]
    return models.model(nodes, inputs, outputs)


def files(folder: Path, page: str) -> None:
    """All that a page's commands and programs may name; `src` and `examples` are those of the repository."""
    if "events/" in (ROOT / page).read_text("utf-8"):
        (folder / "events").mkdir()
        log, _ = asyncio.run(recorded(folder / "events", most_rows=3, slo="p99=50ms"))
        for name in ("digits", "resnet"):
            shutil.copy(log, log.with_name(f"{name}-1.dlog"))
    for name in ("src", "examples"):
        (folder / name).symlink_to(ROOT / name)
    for name in (
        "digits",
        "digits-2",
        "digits-3",
        "model",
        "new",
        "ranker",
        "resnet",
        "models/digits/1/model",
        "models/digits/3/model",
    ):
        path = folder / f"{name}.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(models.DIGITS, path)
    for name in ("small", "tickets", "large"):
        graphs.saved(graphs.classifier(detours=40 * (name != "small")), folder, name)
    models.save(double(), folder / "double.onnx")
    models.save(models.two_in_two_out(), folder / "simple.onnx")
    models.save(voice(), folder / "silero_vad.onnx")
    (folder / "writer.py").write_text(blocks("docs/guides/streaming.md", "python")[0].code, "utf-8")
    np.save(folder / "images.npy", np.zeros((2, 1, 8, 8), np.float32))
    np.savez(folder / "held-out.npz", x=graphs.dataset(2000).inputs["x"], label=graphs.dataset(2000).labels)
    np.savez(folder / "training.npz", x=NUMBERS, label=LABELS)
    np.savez(folder / "validation.npz", x=NUMBERS, small=SHARES, large=SHARES, labels=LABELS)
    (folder / "half_plus_two" / "1").mkdir(parents=True)
    models.save(half_plus_two(), folder / "half_plus_two" / "1" / "model.onnx")
    served = f'name: "half_plus_two" base_path: "{folder / "half_plus_two"}" model_platform: "tensorflow"'
    (folder / "models.config").write_text(f"model_config_list {{ config {{ {served} }} }}", "utf-8")
    models.save(models.slow(layers=12), folder / "resnet50.onnx")
    authority = Authority(folder, "ca")
    authority.own()
    shutil.copy(authority.issue("shop"), folder / "shop.key")
    (folder / "given.toml").write_text(SERVED, "utf-8")
    (folder / "dlproxy.toml").write_text(
        '[models.digits]\npath = "digits.onnx"\n[models.resnet]\npath = "resnet.onnx"\nslo = "p99=50ms"\n', "utf-8"
    )
    (folder / "b.json").write_text("[[1, 2, 3, 4]]", "utf-8")
    (folder / "arrivals.csv").write_text("at\n" + "\n".join(f"{number / 50:.3f}" for number in range(250)), "utf-8")


SERVED = """
[server]
shared_memory = true
[models.digits]
path = "digits.onnx"
threads = 1
cache = "on"
[models.double]
path = "double.onnx"
[models.simple]
path = "simple.onnx"
[models.writer]
path = "writer.py:Writer"
[models.bigrams]
path = "examples/bigrams/bigrams.py:Bigrams"
[models.vad]
path = "silero_vad.onnx"
sequences = "oldest"
state = { state = "stateN" }
"""
"""The server of pages that start none: every model that clients ask for."""


def names(page: str, folder: Path) -> dict[str, Any]:
    """What a page's programs have from their reader."""
    own: dict[str, dict[str, Any]] = {
        "docs/guides/client.md": {"key": "dlp_key"},
        "docs/guides/ensembles.md": {"small_probabilities": SHARES, "large_probabilities": SHARES, "labels": LABELS},
        "docs/guides/sequences.md": {"chunks": [np.zeros((1, 512), np.float32)] * 3},
    }
    if page == "docs/guides/models.md":
        import torch

        class Net(torch.nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x)

        own[page] = {"net": Net(784, 10)}
    return {"__name__": "__main__", "__file__": str(folder / "program.py"), **own.get(page, {})}


ELSEWHERE = {
    "docs/guides/tensorflow-serving.md": "tensorflow-serving-api holds protobuf and TensorFlow at versions of its own; "
    "tests/wire/grpc asks in the same messages",
    "docs/guides/from-bentoml.md": "BentoML is not installed here; tests/cli/test_migrate.py reads the same service",
    "docs/guides/from-torchserve.md": "torch.jit.script warns that it is deprecated; it is what TorchServe takes",
}
"""Pages whose programs are only compiled here, and why."""
PATIENT = {"p99=20ms": "p99=20s", "timeout_s=0.1": "timeout_s=60", "client_timeout=0.5": "client_timeout=60"}
"""A busy machine may take longer than a page promises."""


def replaced(code: str, addresses: Mapping[str, str] = MappingProxyType({})) -> str:
    """A program with patience, and other addresses of the server."""
    texts = PATIENT | dict(addresses)
    return re.sub("|".join(map(re.escape, texts)), lambda found: texts[found[0]], code)
