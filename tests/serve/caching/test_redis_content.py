"""What nodes take for the same model."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from dlproxy.config import ModelConfig
from dlproxy.serve.caching.nodes import Content, content_of
from tests import models


def _content(path: Path | str, **knobs: Any) -> Content | None:
    return content_of(ModelConfig(path=str(path), **knobs))


def test_the_same_files_are_the_same_model_wherever_they_are(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    one = _content(models.save(models.slow(), tmp_path / "a.onnx"))
    two = _content(models.save(models.slow(), tmp_path / "elsewhere" / "b.onnx"))
    other = _content(models.save(models.lookup(), tmp_path / "c.onnx"))
    assert one is not None
    assert two is not None
    assert other is not None
    assert one.digest == two.digest != other.digest


def _onnx(folder: Path, weights: bytes) -> Path:
    path = folder / f"{folder.name}.onnx"
    onnx.save(models.slow(), str(path), save_as_external_data=True, location="w", size_threshold=0)
    with (folder / "w").open("ab") as file:
        file.write(weights)
    return path


def _saved_model(folder: Path, weights: bytes) -> Path:
    (folder / "variables").mkdir()
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "variables.data").write_bytes(weights)
    return folder


@pytest.mark.parametrize("make", [_onnx, _saved_model])
def test_weights_beside_a_model_and_all_that_is_in_its_folder_count(
    make: Callable[[Path, bytes], Path], tmp_path: Path
) -> None:
    found = []
    for name, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        found.append(_content(make(tmp_path / name, weights)))
    digests = [one.digest for one in found if one is not None]
    assert len(digests) == 3
    assert digests[0] == digests[1] != digests[2]


def test_what_changes_answers_counts_and_what_does_not_does_not(tmp_path: Path) -> None:
    path = models.save(models.slow(), tmp_path / "a.onnx")
    plain, cuda, again = _content(path), _content(path, device="cuda:1"), _content(path, threads=3, device="auto")
    assert plain is not None
    assert cuda is not None
    assert plain == again
    assert plain.digest != cuda.digest


@pytest.mark.parametrize("path", ["model.py:Model", "package.module:Model", "http://host:8000", "missing.onnx"])
def test_what_cannot_be_told_is_not_shared_unless_somebody_says_what_it_is(path: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("class Model: pass")
    path = str(tmp_path / path) if path.endswith(("py:Model", ".onnx")) else path
    assert _content(path) is None
    said = _content(path, cache_content="2026-11")
    assert said is not None
    assert said == _content("another.py:Model", cache_content="2026-11")
    assert said != _content(path, cache_content="2026-12")


def test_more_files_than_are_looked_at_are_not_told(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"graph")
    for number in range(600):
        (tmp_path / f"{number}").touch()
    assert _content(tmp_path) is None


def test_files_that_changed_since_are_noticed(tmp_path: Path) -> None:
    path = Path(models.save(models.slow(), tmp_path / "a.onnx"))
    content = _content(path)
    assert content is not None
    assert content.holds()
    os.replace(models.save(models.lookup(), tmp_path / "b.onnx"), path)
    assert not content.holds()
    path.unlink()
    assert not content.holds()
