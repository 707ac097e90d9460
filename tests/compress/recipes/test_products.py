"""Products of whole numbers: that each row is rounded by itself, and that blocks are packed as the kernel reads them."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from dlproxy.compress.data import Dataset
from dlproxy.compress.recipes import RECIPES, cpu
from dlproxy.compress.recipes.linears import rounded
from dlproxy.compress.recipes.weights import packed
from dlproxy.instance.runtime.onnx import OnnxRuntime
from dlproxy.message import DType
from tests.compress.recipes.graphs import WIDTH, Layers, at, attention, rows_of_floats
from tests.models import constant, save, value
from tests.models import model as model_of


def test_rows_of_a_batch_do_not_meet(tmp_path: Path) -> None:
    """Unlike dynamic-int8's: neither the graph says so nor a neighbour a thousand times as large."""
    data = rows_of_floats(WIDTH)
    loud = data.copy()
    loud[1:] *= 1000
    layers = Layers()
    made = layers.model({"x": (DType.FP32, ("N", WIDTH))}, layers.linear("x", WIDTH, WIDTH), ("N", WIDTH))
    why, changes = {}, {}
    for name in ("rows-int8", "dynamic-int8"):
        (tmp_path / name).mkdir()
        candidate = RECIPES[name].make(*at(made, Dataset({"x": data}), tmp_path / name))
        runtime = OnnxRuntime(candidate.path, threads=1)
        why[name] = runtime.why_rows_meet()
        (alone,), (among,) = runtime.run([data[:1]]), runtime.run([loud])
        changes[name] = float(np.abs(alone[0] - among[0]).max())
    assert why["rows-int8"] == ""
    assert "range of the whole batch" in why["dynamic-int8"]
    assert changes["rows-int8"] < 1e-6
    assert changes["dynamic-int8"] > 0.1


@pytest.mark.parametrize("width", [WIDTH, 71])  # whole vectors of the CPU, and a rest
def test_rows_of_zeros_and_of_extremes_stay_numbers(width: int, tmp_path: Path) -> None:
    layers = Layers()
    made = layers.model({"x": (DType.FP32, ("N", width))}, layers.linear("x", width, WIDTH), ("N", WIDTH))
    candidate = RECIPES["rows-int8"].make(*at(made, Dataset({"x": rows_of_floats(width)}), tmp_path))
    sizes = np.array([0, 1e30, 1e-35, 0, 1], np.float32)[:, None]
    extreme = rows_of_floats(width)[:5] * sizes
    (given,) = OnnxRuntime(candidate.path, threads=1).run([extreme])
    (right,) = OnnxRuntime(tmp_path / "model.onnx", threads=1).run([extreme])
    assert (np.abs(given - right).max(axis=1) <= 0.03 * np.abs(right).max(axis=1)).all()


def test_tables_are_rounded_row_by_row(tmp_path: Path) -> None:
    made, data = attention()
    candidate = RECIPES["rows-int8"].make(*at(made, data, tmp_path))
    assert candidate.steps[-1].settings["tables"] == 1
    assert candidate.path.stat().st_size < 0.4 * (tmp_path / "model.onnx").stat().st_size


@pytest.mark.parametrize("bits", [7, 8])
def test_rounding_keeps_every_column_within_half_a_step(bits: int) -> None:
    weights = np.random.default_rng(0).standard_normal((50, 20)).astype(np.float32) * np.logspace(-6, 6, 20, dtype=np.float32)
    weights[:, 7] = 0
    numbers, scales = rounded(weights, bits)
    assert np.abs(numbers).max() == 2 ** (bits - 1) - 1
    assert (np.abs(numbers * scales - weights) <= scales * 0.501).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inner", [64, 70])  # whole blocks, and a rest
def test_blocks_are_what_the_kernel_reads(bits: int, inner: int, tmp_path: Path) -> None:
    """The product with the identity is the weights themselves."""
    weights = np.random.default_rng(0).standard_normal((inner, 24)).astype(np.float32)
    numbers, scales = packed(weights, bits, 16)
    settings = {"K": inner, "N": 24, "bits": bits, "block_size": 16}
    node = helper.make_node("MatMulNBits", ["x", "numbers", "scales"], ["y"], domain="com.microsoft", **settings)
    constants = [constant("numbers", numbers), constant("scales", scales)]
    made = model_of([node], [value("x", DType.FP32, ("N", inner))], [value("y", DType.FP32, ("N", 24))], constants)
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    (read,) = OnnxRuntime(save(made, tmp_path / "model.onnx"), threads=1).run([np.eye(inner, dtype=np.float32)])
    steps = np.repeat(scales.reshape(24, -1), 16, axis=1)[:, :inner].T
    assert (np.abs(read - weights) <= steps * 0.501).all()


@pytest.mark.parametrize(
    ("machine", "info", "bits"),
    [
        ("x86_64", "flags\t\t: fpu avx avx2\n", 7),
        ("x86_64", "model name : x\nflags : avx2 avx512_vnni\n\nflags : avx2\n", 8),
        ("x86_64", "flags : avx2 avx_vnni", 8),
        ("x86_64", None, 7),
        ("aarch64", "Features : asimd", 8),
    ],
)
def test_seven_bits_where_sums_would_be_cut_off(
    machine: str, info: str | None, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if info is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/cpuinfo").write_text(info)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert cpu.weight_bits(tmp_path) == bits
