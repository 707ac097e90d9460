"""Models of every kind as ONNX: the small network's answers for any batch, names that stay, and what is refused in words."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlproxy.compress import CompressError
from dlproxy.compress.data import Dataset
from dlproxy.compress.recipe import Source
from dlproxy.compress.sources import to_onnx
from dlproxy.instance.runtime.formats import open_runtime
from tests.instance import small_network
from tests.instance.small_network import WIDTH, assert_right, keras_model, rows, save_onnx, save_saved_model

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

EXAMPLES = Dataset({"x": rows(9).astype(np.float64)})
MAKE = '''
import torch
from tests.instance.small_network import torch_module


def make():
    return torch_module()


def with_examples():
    module = torch_module()
    module.example_inputs = torch.zeros(3, 8)
    return module


class Named(torch.nn.Module):
    def forward(self, first, second, scale=None):
        return {"sum": first + second, "product": first * second}


class Sorting(torch.nn.Module):
    """Python computes on its values, which a trace does not see."""

    def forward(self, x):
        return x * sorted(x.flatten().tolist())[-1]


def named():
    return Named()


def sorting():
    return Sorting()


def broken():
    raise ValueError("no weights here")


def number():
    return 3
'''


def made(folder: Path, name: str) -> str:
    (folder / "network.py").write_text(MAKE, "utf-8")
    return f"{folder / 'network.py'}:{name}"


def program(folder: Path, *, open_axis: bool = True) -> str:
    import torch

    batch = {"x": {0: torch.export.Dim("batch")}} if open_axis else None
    path = small_network.save_torch_export(small_network.torch_module(), folder / "n.pt2", (torch.zeros(3, WIDTH),), batch)
    return str(path)


def script(folder: Path) -> str:
    return str(small_network.save_torchscript(small_network.torch_module(), folder / "n.pt"))


def keras(folder: Path) -> str:
    small_network.import_tensorflow()
    keras_model().save(folder / "n.keras")
    return str(folder / "n.keras")


def saved_model(folder: Path) -> str:
    small_network.import_tensorflow()
    return str(save_saved_model(folder))


def refusal(model: str, folder: Path, examples: Dataset | None = EXAMPLES) -> str:
    with pytest.raises(CompressError) as caught:
        to_onnx(model, folder, examples)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("of", [program, script, keras, saved_model])
def test_files_of_every_kind(of: Callable[[Path], str], tmp_path: Path) -> None:
    model = of(tmp_path)
    (tmp_path / "made").mkdir()
    source = to_onnx(model, tmp_path / "made", EXAMPLES)
    assert source == Source(tmp_path / "made" / "original.onnx", model if model.endswith(".pt2") else "")
    assert_right(open_runtime(str(source.onnx)))
    if of is not script:
        names = [[spec.name for spec in open_runtime(path).signature.outputs] for path in (model, str(source.onnx))]
        assert names[0] == names[1]


@pytest.mark.parametrize(("name", "examples"), [("make", EXAMPLES), ("with_examples", None)])
def test_a_function_that_makes_a_module(name: str, examples: Dataset | None, tmp_path: Path) -> None:
    model = made(tmp_path, name)
    source = to_onnx(model, tmp_path, examples)
    assert source == Source(tmp_path / "original.onnx", model)
    assert_right(open_runtime(str(source.onnx)))


def test_onnx_stays_where_it_is(tmp_path: Path) -> None:
    path = save_onnx(tmp_path)
    before = path.read_bytes()
    assert to_onnx(str(path), tmp_path / "nowhere") == Source(path)
    assert path.read_bytes() == before


def test_inputs_and_outputs_by_name(tmp_path: Path) -> None:
    examples = Dataset({"second": rows(4), "first": rows(4) + 1})
    signature = open_runtime(str(to_onnx(made(tmp_path, "named"), tmp_path, examples).onnx)).signature
    assert [spec.name for spec in signature.inputs] == ["first", "second"]
    assert [spec.name for spec in signature.outputs] == ["sum", "product"]


@pytest.mark.parametrize(
    ("name", "examples", "words"),
    [
        ("make", None, "is traced with examples: give data, or let the module have example_inputs"),
        (
            "named",
            Dataset({"second": rows(3)}),
            "forward also takes first|the examples are second; forward takes first, second",
        ),
        ("named", Dataset({"first": rows(3)}), "forward also takes second, of which there are no examples"),
        (
            "make",
            Dataset({"x": np.zeros((3, 5), np.float32)}),
            r"cannot take the examples \(x \(3, 5\)\): .*shapes cannot be mult",
        ),
        ("sorting", EXAMPLES, "cannot write this module as ONNX .*answers a batch of 1 otherwise than the module"),
        ("broken", EXAMPLES, r"raised ValueError: no weights here \(network.py, line \d+\)"),
        ("number", EXAMPLES, "gave a int; it must return a torch.nn.Module"),
        ("nobody", EXAMPLES, "has no function nobody"),
    ],
)
def test_functions_that_make_no_model(name: str, examples: Dataset | None, words: str, tmp_path: Path) -> None:
    assert re.search(words, refusal(made(tmp_path, name), tmp_path, examples))


def test_files_that_are_no_model(tmp_path: Path) -> None:
    import torch

    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pth")
    assert "weights alone, write a function that makes the module" in refusal(str(tmp_path / "weights.pth"), tmp_path)
    (tmp_path / "network.py").write_text(MAKE, "utf-8")
    assert "name the function that makes it, like" in refusal(str(tmp_path / "network.py"), tmp_path)
    assert "does not exist; a model is an .onnx" in refusal(str(tmp_path / "gone.pt2"), tmp_path)
    (tmp_path / "broken.pt2").write_bytes(b"no archive")
    assert "not a program that torch" in refusal(str(tmp_path / "broken.pt2"), tmp_path)
    assert "was exported for one batch size" in refusal(program(tmp_path, open_axis=False), tmp_path)


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "dlproxy.compress.recipes.torch.export", raising=False)
    assert "is converted with torch; pip install 'dlproxy[compress,train]'" in refusal(made(tmp_path, "make"), tmp_path)
