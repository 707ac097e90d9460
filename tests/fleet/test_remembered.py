"""The second start of a model is right at once: what was found out is kept under a hash of all that it depends on."""

import logging
from math import inf
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import helper

from dlproxy.config import ModelConfig
from dlproxy.fleet import warm_model
from dlproxy.fleet.local import LocalFleet
from dlproxy.fleet.remembered import MOST_FILES, Memory, Remembered, memory_in
from dlproxy.fleet.warm_model import warm_up
from dlproxy.instance.made_up import Known
from dlproxy.instance.runtime.onnx import OnnxRuntime
from dlproxy.instance.trial import Measured, Way
from dlproxy.instance.warmup import Calibration
from dlproxy.message import DType, Signature
from tests import models

FOUND = Remembered(
    Signature((), (), False, "fake"),
    ((1, 0.5),),
    "",
    Way(inline=False, instances=2, threads=1),
    Measured(0.5, 0.5, 0.6, 0.3, inf),
)


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    return ModelConfig(path=str(models.save(models.softmax_over_rows(), tmp_path / "m.onnx")))


def _no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_model, "warmed", lambda *_, **__: pytest.fail("it was warmed up again"))


def test_the_second_start_measures_nothing_and_finds_the_same(
    tmp_path: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(tmp_path / "kept")
    first = warm_up(config, memory=memory)
    _no_warm_up(monkeypatch)
    second = warm_up(config, memory=memory)
    assert second.calibration == first.calibration
    assert second.runtime.signature == first.runtime.signature
    assert not second.runtime.signature.batched
    assert (second.way, second.threads, second.found) == (first.way, first.threads, first.found)


def test_what_others_disturbed_is_tried_again_and_nothing_else(
    tmp_path: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(tmp_path / "kept")
    first = warm_up(config, memory=memory)
    signature = msgspec.structs.replace(first.runtime.signature, platform="as service has it")
    disturbed = Measured(0.5, 0.5, 0.6, 0.3, inf, disturbed=True)
    memory.keep(first.key, msgspec.structs.replace(FOUND, signature=signature, found=disturbed, known=Known(4)))
    _no_warm_up(monkeypatch)
    monkeypatch.setattr(warm_model, "usable_cores", lambda: 2)
    monkeypatch.setattr(warm_model, "measure", lambda *_: msgspec.structs.replace(disturbed, beside_s=0.9, disturbed=False))
    second = warm_up(config, memory=memory)
    assert second.way == Way(inline=False, instances=1, threads=1)
    assert not second.disturbed
    assert second.runtime.signature == signature
    assert second.calibration.points == FOUND.points
    monkeypatch.setattr(warm_model, "measure", lambda *_: pytest.fail("it was tried again"))
    assert warm_up(config, memory=memory).way == second.way


def test_what_was_looked_at_for_warm_up_alone_is_let_go_of(tmp_path: Path) -> None:
    nodes = [helper.make_node("Bernoulli", ["x"], ["y"])]
    ends = [models.value("x", DType.FP32, ("N", 3))], [models.value("y", DType.FP32, ("N", 3))]
    config = ModelConfig(path=str(models.save(models.model(nodes, *ends), tmp_path / "m.onnx")))
    memory = Memory(tmp_path / "kept")
    assert "random" in OnnxRuntime(Path(config.path), threads=1).why_rows_meet()
    for _ in range(2):
        runtime = warm_up(config, memory=memory).runtime
        assert isinstance(runtime, OnnxRuntime)
        assert runtime.why_rows_meet() == "", "the graph is gone"


@pytest.mark.parametrize("change", ["file", "threads", "batching", "samples", "nothing"])
def test_whatever_matters_makes_another_key(
    tmp_path: Path, config: ModelConfig, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = tmp_path / "x.npz"
    np.savez(samples, x=np.zeros((1, 3), np.float32))
    config = msgspec.structs.replace(config, samples=str(samples))
    memory = Memory(tmp_path / "kept")
    before = memory.key(config)
    if change == "file":
        models.save(models.identity(models.DType.FP32), Path(config.path))
    elif change == "threads":
        config = msgspec.structs.replace(config, threads=1)
    elif change == "batching":
        config = msgspec.structs.replace(config, batching="off")
    elif change == "samples":
        np.savez(samples, x=np.ones((1, 3), np.float32))
    assert (memory.key(config) == before) is (change == "nothing")


def test_a_place_of_its_own_is_no_part_of_the_key(tmp_path: Path, config: ModelConfig) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = models.save(models.softmax_over_rows(), elsewhere / "m.onnx")
    memory = Memory(tmp_path / "kept")
    assert memory.key(config) == memory.key(msgspec.structs.replace(config, path=str(moved)))


@pytest.mark.parametrize("damage", ["", "\x80", "neither", "\udcff"])
def test_what_cannot_be_understood_is_found_out_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    memory = Memory(tmp_path)
    memory.keep("k", FOUND)
    assert memory.recall("k") == FOUND
    (tmp_path / "k.msgpack").write_bytes(damage.encode("utf-8", "surrogateescape"))
    assert memory.recall("k") is None
    assert "cannot be used" in caplog.text


def test_a_folder_that_cannot_be_written_costs_no_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    memory = Memory(tmp_path / "file" / "kept")
    with caplog.at_level(logging.WARNING):
        memory.keep("k", FOUND)
        memory.keep("k", FOUND)
    assert len(caplog.records) == 1, "said once"
    assert memory.recall("k") is None


def test_the_oldest_findings_make_room(tmp_path: Path) -> None:
    memory = Memory(tmp_path)
    for number in range(MOST_FILES + 3):
        memory.keep(f"k{number}", FOUND)
    assert len(list(tmp_path.iterdir())) == MOST_FILES
    assert memory.recall(f"k{MOST_FILES + 2}") == FOUND


def test_nothing_is_written_where_no_cache_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    assert memory_in("auto") is None
    assert memory_in("") is None
    (tmp_path / "none").mkdir()
    memory = memory_in("auto")
    assert memory is not None
    memory.keep("k", FOUND)
    assert [path.name for path in (tmp_path / "none" / "dlproxy" / "calibrations").iterdir()] == ["k.msgpack"]


def test_what_service_has_shown_is_known_at_the_next_start(
    tmp_path: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(path=str(models.save(models.identity(models.DType.FP32), tmp_path / "i.onnx")))
    memory = Memory(tmp_path / "kept")
    first = warm_up(config, memory=memory)
    assert first.runtime.signature.batched
    LocalFleet("m", config, [first]).rows_are_not_independent("output 'y' was different")
    _no_warm_up(monkeypatch)
    second = warm_up(config, memory=memory)
    assert not second.runtime.signature.batched
    assert isinstance(second.calibration, Calibration)
    assert second.calibration.warning == "output 'y' was different (seen in service): batching is off"
