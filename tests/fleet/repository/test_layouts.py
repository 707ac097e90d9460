"""What is taken for a model, in each layout, and whose fault it is if something is wrong."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from dlproxy.config import ConfigError
from dlproxy.fleet.repository.scan import listed, scan, versions_of
from dlproxy.fleet.repository.tree import MOST_FILES, LocalTree, content_of
from dlproxy.instance.integrity.encryption import MAGIC
from tests.fleet.repository.fixtures import CLASS, found_in, paths, problems, put

GOOD = (
    ("file", ["m.onnx"], {"1": "m.onnx"}),
    ("triton without config", ["m/1/model.onnx"], {"1": "m/1/model.onnx"}),
    ("the latest version alone", ["m/9/model.onnx", "m/10/model.onnx"], {"10": "m/10/model.onnx"}),
    ("another file name", ["m/1/net.pt", "m/1/labels.txt"], {"1": "m/1/net.pt"}),
    ("model first", ["m/1/model.onnx", "m/1/other.onnx", "m/1/model_util.py"], {"1": "m/1/model.onnx"}),
    ("python helps", ["m/1/net.onnx", "m/1/util.py"], {"1": "m/1/net.onnx"}),
    ("saved model of triton", ["m/1/model.savedmodel/saved_model.pb"], {"1": "m/1/model.savedmodel"}),
    ("saved model of TF Serving", ["m/00000123/saved_model.pb", "m/00000123/variables/variables.index"], {"123": "m/00000123"}),
    ("saved model without versions", ["m/saved_model.pb", "m/assets/words.txt"], {"1": "m"}),
    ("ONNX folder", ["m/1/model.onnx/model.onnx", "m/1/model.onnx/weights.bin"], {"1": "m/1/model.onnx/model.onnx"}),
    ("folder of one", ["m/net.onnx"], {"1": "m/net.onnx"}),
    ("files as versions", ["m/1.onnx", "m/2.onnx"], {"2": "m/2.onnx"}),
    ("version 0", ["m/0/model.onnx"], {"0": "m/0/model.onnx"}),
    (
        "hidden files",
        ["m/1/model.onnx", "m/.3/model.onnx", "m/1/.old.onnx", ".x.onnx", "lost+found/y"],
        {"1": "m/1/model.onnx"},
    ),
)


@pytest.mark.parametrize(("files", "versions"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD])
def test_layouts(files: list[str], versions: dict[str, str], tmp_path: Path) -> None:
    put(tmp_path, *files)
    found = found_in(tmp_path)
    assert list(found) == ["m"]
    assert problems(found["m"]) == {}
    assert paths(tmp_path, found["m"]) == versions
    assert [version.config.version for version in found["m"].wanted.versions.values()] == list(versions)


def test_python_classes(tmp_path: Path) -> None:
    put(tmp_path, "m.py", "n/1/model.py", content=CLASS)
    found = found_in(tmp_path)
    assert paths(tmp_path, found["m"]) == {"1": "m.py:Net"}
    assert paths(tmp_path, found["n"]) == {"1": "n/1/model.py:Net"}


BAD = (
    ("no model", ["m/1/labels.txt"], "1 holds no model: nothing but labels.txt"),
    ("empty version", ["m/1/.keep"], "1 holds no model: nothing"),
    (
        "neither version nor model",
        ["m/v1/model.onnx"],
        "m holds no model, nor a folder with a version's number: nothing but v1",
    ),
    (
        "several models",
        ["m/1/a.onnx", "m/1/b.onnx"],
        '1 holds several models: a.onnx, b.onnx; say which in dlproxy.toml: path = "a.onnx"',
    ),
    ("two of a name", ["m.onnx", "m/1/model.onnx"], "are both named 'm': leave one"),
    ("two files of a name", ["m.onnx", "m.pt"], "m.onnx and m.pt in"),
    ("another server's", ["m/1/model.plan"], "model.plan is for TensorRT, which dlproxy does not run"),
    ("unknown ending", ["m/1/model.xyz"], "dlproxy knows no models with the ending '.xyz'"),
    ("empty ONNX folder", ["m/1/model.onnx/weights.bin"], "model.onnx is a folder with no ONNX models"),
)


@pytest.mark.parametrize(("files", "problem"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_is_wrong_with_one_model_is_said_and_harms_no_other(files: list[str], problem: str, tmp_path: Path) -> None:
    put(tmp_path, *files, "good.onnx")
    found = found_in(tmp_path)
    assert paths(tmp_path, found["good"]) == {"1": "good.onnx"}
    assert paths(tmp_path, found["m"]) == {}
    assert problem in problems(found["m"])["1"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "m.onnx is empty"),
        (b"x = (", "m.py is not Python: '(' was never closed"),
        (b"class A: pass", "m.py has no class with predict(self, batch)"),
        (MAGIC, "m.py is encrypted: say in dlproxy.toml which class it holds"),
        (b"class TritonPythonModel:\n    def execute(self, requests): pass", "TritonPythonModel has another interface"),
        (CLASS + CLASS.replace(b"Net", b"Other"), "several classes with predict: Net, Other; say which in dlproxy.toml"),
    ],
)
def test_files_that_hold_no_model(content: bytes, problem: str, tmp_path: Path) -> None:
    put(tmp_path, "m.py" if content else "m.onnx", content=content)
    assert problem in problems(found_in(tmp_path)["m"])["1"]


def test_a_broken_version_is_no_harm_to_the_others(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx", "m/2/nothing.txt", "m/3/model.onnx")
    put(tmp_path, "m/dlproxy.toml", content=b'serve_versions = "all"')
    found = found_in(tmp_path)["m"]
    assert list(paths(tmp_path, found)) == ["1", "3"]
    assert list(problems(found)) == ["2"]
    assert not found.problem


def test_folders_that_are_no_versions_are_left_out_with_a_warning(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx", "m/old/model.onnx", "m/01/model.onnx", "m/9999999999999999999/model.onnx")
    found = found_in(tmp_path)["m"]
    assert len(found.wanted.versions) == 1
    assert set(found.warnings) == {
        "the folder old is left out: it is no version, which is a whole number",
        "the folder 9999999999999999999 is left out: it is no version, which is a whole number",
        "1 is left out: 01 is version 1, too",
    }


def test_names_that_are_none(tmp_path: Path) -> None:
    put(tmp_path, "good.onnx", " m/1/model.onnx", "new\nline.onnx")
    with open(os.fsencode(tmp_path) + b"/\xff.onnx", "wb") as file:
        file.write(b"x")
    found = found_in(tmp_path)
    assert {name for name in found if problems(found[name])} == {" m", "new\nline", r"\xff"}
    assert problems(found[" m"])["1"] == "' m' cannot be a model's name: use printable text"
    assert r"\xff.onnx is a name in another encoding than UTF-8" in problems(found[r"\xff"])["1"]
    msgspec.json.encode(found)


def test_links(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/net.onnx")
    root = tmp_path / "root"
    put(root, "loop/1/model.onnx", "dangling/1/labels.txt")
    (root / "m.onnx").symlink_to(tmp_path / "elsewhere" / "net.onnx")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "loop" / "1" / "again").symlink_to(root / "loop")
    (root / "self.onnx").symlink_to("self.onnx")
    (root / "dangling" / "1" / "model.onnx").symlink_to("nowhere.onnx")
    found = found_in(root)
    assert paths(root, found["m"]) == {"1": "m.onnx"}
    assert paths(root, found["linked"]) == {"1": "linked/net.onnx"}
    assert "1 is a link to a folder that it lies in itself" in problems(found["loop"])["1"]
    assert "Too many levels of symbolic links" in problems(found["self"])["1"]
    assert "model.onnx is a link to what is not there" in problems(found["dangling"])["1"]


@pytest.fixture
def nobody() -> Iterator[None]:
    """Tests may run as root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_what_may_not_be_read(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    put(tmp_path, "file.onnx", "folder/1/model.onnx", "part/1/model.savedmodel/saved_model.pb", "good.onnx")
    for folder in [tmp_path, *tmp_path.parents]:
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    (tmp_path / "file.onnx").chmod(0)
    (tmp_path / "folder").chmod(0)
    (tmp_path / "part" / "1" / "model.savedmodel" / "saved_model.pb").chmod(0)
    request.getfixturevalue("nobody")
    found = found_in(tmp_path)
    assert "file.onnx: Permission denied" in problems(found["file"])["1"]
    assert "saved_model.pb: may not be read" in problems(found["part"])["1"]
    assert "folder: Permission denied" in problems(found["folder"])["1"]
    assert problems(found["good"]) == {}


def test_a_repository_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the model repository .*/none cannot be read: .*/none is not there"):
        listed(LocalTree(tmp_path / "none"))


def test_a_folder_that_goes_while_it_is_scanned(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx", "good.onnx")
    listing = listed(LocalTree(tmp_path))
    (tmp_path / "m" / "1" / "model.onnx").unlink()
    (tmp_path / "m" / "1").rmdir()
    (tmp_path / "m").rmdir()
    found = scan(listing)
    assert "m is not there" in found["m"].problem
    assert problems(found["good"]) == {}


def test_every_other_content_has_another_stamp(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx", "m/1/more/weights.bin")
    os.utime(tmp_path / "m" / "1" / "model.onnx", ns=(10**18, 10**18))
    stamps = [found_in(tmp_path)["m"].wanted.versions["1"].stamp]

    def look() -> bool:
        """Whether the stamp is a new one."""
        stamps.append(found_in(tmp_path)["m"].wanted.versions["1"].stamp)
        return stamps[-1] not in stamps[:-1]

    assert not look()
    put(tmp_path, "m/1/__pycache__/model.pyc", "m/1/.lock", "m/dlproxy.toml", "m/2x/a", content=b"")
    assert not look()
    os.utime(tmp_path / "m" / "1" / "model.onnx", ns=(10**18, 10**18 + 1))
    assert look()
    put(tmp_path, "m/1/more/weights.bin", content=b"longer than it was")
    assert look()
    (tmp_path / "m" / "1" / "more" / "weights.bin").rename(tmp_path / "m" / "1" / "more" / "weight.bin")
    assert look()


def test_what_is_too_much_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlproxy.fleet.repository.tree.MOST_FILES", 3)
    assert MOST_FILES > 3
    put(tmp_path, *map(str, range(4)))
    with pytest.raises(ConfigError, match="holds more than 3 files"):
        content_of(tmp_path)


def test_all_versions_that_are_there(tmp_path: Path) -> None:
    put(tmp_path, "m/10/model.onnx", "m/9/model.onnx", "file.onnx", "flat/net.onnx")
    listing = listed(LocalTree(tmp_path))
    assert {name: versions_of(one) for name, one in listing.items()} == {"m": ["9", "10"], "file": ["1"], "flat": ["1"]}
