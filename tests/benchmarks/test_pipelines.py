"""The benchmark of pipelines without packages, servers or load; and of the examples what needs none of them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks.harness.processes import Children
from benchmarks.pipelines import __main__ as program
from benchmarks.pipelines import embedding, ocr, overhead
from benchmarks.pipelines.packages import EXAMPLES, copy_example
from benchmarks.pipelines.sides import Stage, sides_of, spent
from dlproxy.config import load


def _steps(example: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"steps_of_{example}", EXAMPLES / example / "steps.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("example", ["ocr", "embedding", "speech", "promotion"])
def test_an_examples_configuration_is_valid(example: str) -> None:
    assert load(EXAMPLES / example / "dlproxy.toml").models


@pytest.mark.parametrize(("part", "example", "name"), [(ocr, "ocr", "Ocr"), (embedding, "embedding", "Embed")])
def test_sides_serve_the_pipeline_and_the_class_in_each_way(part: ModuleType, example: str, name: str, tmp_path: Path) -> None:
    pipeline = copy_example(example, part.CLASS, tmp_path / "place")
    ways = {}
    for side in sides_of(pipeline, "x", part.CLASS, name):
        (tmp_path / "place" / "dlproxy.toml").write_text(side.toml)
        served = load(tmp_path / "place" / "dlproxy.toml").models
        classes = {name: one for name, (one,) in served.items() if part.CLASS.name in one.path}
        ways |= {name: (one.run, one.instances) for name, one in classes.items()}
        assert all(Path(one.path.rpartition(":")[0]).exists() for one in classes.values())
    cores = os.cpu_count() or 1
    assert ways == {"class": ("thread", 0), "default": ("auto", 0), "pool": ("process", cores)}


def test_answers_that_are_not_alike_are_told() -> None:
    read = {"text": np.array([b"a"], object), "sure": np.ones(1, np.float32), "corners": np.zeros((1, 4, 2), np.float32)}
    assert ocr.differs(read, read | {"sure": read["sure"] - np.float32(0.001)}) == ""
    assert "b'b'" in ocr.differs(read, read | {"text": np.array([b"b"], object)})
    assert ocr.differs(read, read | {"corners": read["corners"] + 2}) == "corners"
    assert ocr.differs(read, read | {"sure": read["sure"] / 2}) == "sure"
    one = {"embedding": np.eye(1, 384, dtype=np.float32)}
    assert embedding.differs(one, one) == ""
    assert embedding.differs(one, {"embedding": one["embedding"] * np.float32(0.99)}) == "1.0e-02"


def test_what_grandchildren_in_sessions_of_their_own_spend_counts_too() -> None:
    work = "sum(range(20_000_000)); print(flush=True); input()"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}], start_new_session=True)"
    with subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = spent(child.pid)
        assert found.cpu_s > 0.03
        assert found.resident_bytes > 10e6
        child.communicate(b"\n")


def test_a_chain_gives_what_its_models_give_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "ROUND", 2)
    monkeypatch.setattr(overhead, "ROUNDS", 2)
    with Children(tmp_path) as children:
        found = overhead.measure(Stage(children, tmp_path, 1, 1))
    assert len(found.checks) == 2
    page = program.page([found], "a machine", "a command")
    assert "| us a stage beside sessions, p50 |" in page
    assert "- as a pipeline: " in page


def test_frames_of_speech_overlap_and_cover_the_recording() -> None:
    speech = _steps("speech")
    samples = np.arange(1, speech.FRAME * 2 + 101, dtype=np.float32)
    parts = speech.frames(samples[np.newaxis])["input"]
    assert parts.shape == (3, speech.BEFORE + speech.FRAME)
    assert not parts[0, : speech.BEFORE].any()
    np.testing.assert_array_equal(parts[1], samples[speech.FRAME - speech.BEFORE : 2 * speech.FRAME])
    np.testing.assert_array_equal(parts[2, speech.BEFORE :][:101], [*samples[2 * speech.FRAME :], 0])


@pytest.mark.parametrize(
    ("odds", "expected"),
    [
        ([0.1] * 20, []),
        ([0.9] * 20, [(0.0, 0.67)]),
        ([0.1] * 5 + [0.9] * 4 + [0.1] * 20, []),  # too short
        ([0.1] * 5 + [0.9] * 10 + [0.4] * 3 + [0.2] * 2 + [0.9] * 5 + [0.1] * 9, [(0.13, 0.83)]),  # a short pause is none
        ([0.9] * 10 + [0.1] * 10 + [0.9] * 10, [(0.0, 0.35), (0.61, 0.99)]),
    ],
)
def test_segments_of_speech(odds: list[float], expected: list[tuple[float, float]]) -> None:
    np.testing.assert_allclose(_steps("speech").segments(np.array(odds)), np.reshape(expected, (-1, 2)), atol=0.006)
