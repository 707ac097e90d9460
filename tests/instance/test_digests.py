"""A file is read again only if it may have changed, and in another life of the machine."""

from pathlib import Path

import pytest

from dlproxy.instance.runtime import digests
from dlproxy.instance.runtime.content import digest_of
from dlproxy.instance.runtime.digests import TABLE, Digests


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    files: list[str] = []
    monkeypatch.setattr(digests, "digest_of", lambda file: files.append(file) or digest_of(file))
    monkeypatch.setattr(digests, "WORTH_BYTES", 1)
    monkeypatch.setattr(digests, "boot", lambda: "a life")
    return files


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "FRESH_NS", -(10**12))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "f").write_bytes(b"content")
    return tmp_path / "f"


def test_within_a_tick_of_its_clock_a_file_system_would_not_tell(tmp_path: Path, file: Path, read: list[str]) -> None:
    found = Digests(tmp_path / "kept")
    assert {found.of(str(file)) for _ in range(3)} == {digest_of(str(file))}
    assert len(read) == 3


@pytest.mark.parametrize("change", ["nothing", "content", "boot", "damage", "rights", "no folder", "no boot"])
@pytest.mark.usefixtures("settled")
def test_another_process_reads_it_only_if_it_must(
    tmp_path: Path, file: Path, read: list[str], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if change == "no boot":
        monkeypatch.setattr(digests, "boot", lambda: "")
    folder = None if change == "no folder" else tmp_path / "kept"
    first = Digests(folder)
    assert first.of(str(file)) == first.of(str(file)) == digest_of(str(file))
    assert len(read) == 1
    if change == "content":
        file.write_bytes(b"another")
    elif change == "boot":
        monkeypatch.setattr(digests, "boot", lambda: "another life")
    elif change == "damage":
        (tmp_path / "kept" / TABLE).write_bytes(b"\x80")
    elif change == "rights":
        (tmp_path / "kept").chmod(0o777)
    assert Digests(folder).of(str(file)) == digest_of(str(file))
    assert len(read) == (1 if change == "nothing" else 2)


@pytest.mark.usefixtures("settled")
def test_a_folder_that_cannot_be_written_costs_nothing_but_reading(tmp_path: Path, file: Path, read: list[str]) -> None:
    assert Digests(file / "kept").of(str(file)) == digest_of(str(file))
    assert Digests(file / "kept").of(str(file)) == digest_of(str(file))
    assert len(read) == 2
