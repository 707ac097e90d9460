"""Repositories in an object store, which here is memory: what is copied when, and what becomes of copies."""

import io
import os
from collections.abc import Iterator
from errno import ENOSPC
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dlproxy.config import ConfigError, ServerConfig
from dlproxy.fleet.repository.model_folder import FoundModel
from dlproxy.fleet.repository.remote import KEEP_S, RemoteTree
from dlproxy.fleet.repository.scan import listed, read_listed, scan
from dlproxy.fleet.repository.watcher import Repository
from dlproxy.instance.integrity.manifest import Listed, Manifest
from dlproxy.testing.clock import ManualClock
from tests.fleet.repository.fixtures import Store, much_later, problems

fsspec = pytest.importorskip("fsspec")


class Usage(NamedTuple):
    free: int


class Bucket(NamedTuple):
    """An object store, and a machine that copies from it."""

    store: Any
    cache: Path
    tree: RemoteTree
    clock: ManualClock

    def put(self, *names: str, content: bytes = b"an ONNX model") -> None:
        for name in names:
            self.store.pipe_file(f"/bucket/models/{name}", content)

    def scan(self) -> dict[str, FoundModel]:
        return scan(listed(self.tree))

    def copies(self) -> set[str]:
        """Their names, without the folder of this URL."""
        return {"/".join(file.relative_to(self.cache).parts[1:]) for file in self.cache.rglob("*") if file.is_file()}


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    store = fsspec.filesystem("memory")
    clock = ManualClock()
    yield Bucket(store, tmp_path, RemoteTree("memory://bucket/models", tmp_path, clock), clock)
    store.store.clear()


def served(bucket: Bucket, found: FoundModel) -> dict[str, bytes]:
    assert problems(found) == {}
    return {number: Path(version.config.path).read_bytes() for number, version in found.wanted.versions.items()}


def test_no_more_is_copied_than_is_served(bucket: Bucket) -> None:
    bucket.put("m/1/model.onnx", "m/2/model.onnx", "m/2/more/words.txt", "other.txt", ".hidden/1/model.onnx", "n.onnx")
    found = bucket.scan()
    assert served(bucket, found["m"]) == {"2": b"an ONNX model"}
    assert served(bucket, found["n"]) == {"1": b"an ONNX model"}
    assert bucket.copies() == {"m/2/model.onnx", "m/2/more/words.txt", "n.onnx"}
    assert set(found) == {"m", "n"}


def test_what_a_manifest_lists_is_copied_with_a_model_in_one_file(bucket: Bucket) -> None:
    bucket.put("m.onnx", "sealed.bin", "others.bin", "n.onnx")
    first = bucket.scan()["m"].wanted.versions["1"].stamp
    files = {name: Listed(0, "") for name in ("m.onnx", "sealed.bin", "../outside.bin", "missing.bin")}
    bucket.put("m.onnx.manifest.json", content=Manifest(files=files).encoded())
    bucket.put("n.onnx.manifest.json", content=b"not a manifest")
    found = bucket.scan()
    assert set(found) == {"m", "n"}
    assert found["m"].wanted.versions["1"].stamp != first  # it is read again when it is signed
    manifests = {"m.onnx.manifest.json", "n.onnx.manifest.json"}
    assert bucket.copies() == {"m.onnx", "sealed.bin", "n.onnx", *manifests}


def test_what_is_the_same_is_copied_once(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("m/1/model.onnx", "m/1/weights.bin")
    copied: list[str] = []
    get_file = bucket.store.get_file

    def counted(path: str, target: str, **options: object) -> None:
        copied.append(path)
        get_file(path, target, **options)

    monkeypatch.setattr(type(bucket.store), "get_file", staticmethod(counted))
    first = bucket.scan()["m"]
    again = scan(listed(RemoteTree("memory://bucket/models", bucket.cache)))["m"]
    assert copied == ["/bucket/models/m/1/model.onnx", "/bucket/models/m/1/weights.bin"]
    assert again.wanted == first.wanted
    bucket.put("m/1/weights.bin", content=b"a newer model")
    assert bucket.scan()["m"].wanted.versions["1"].stamp != first.wanted.versions["1"].stamp
    assert len(copied) == 3
    os.truncate(first.wanted.versions["1"].config.path, 3)  # somebody cuts a copy short
    bucket.scan()
    assert len(copied) == 4


def test_the_stamp_is_the_same_wherever_it_is_copied_to(bucket: Bucket) -> None:
    bucket.put("m/1/model.onnx")
    elsewhere = RemoteTree("memory://bucket/models", bucket.cache / "elsewhere")
    assert scan(listed(elsewhere))["m"].wanted.versions["1"].stamp == bucket.scan()["m"].wanted.versions["1"].stamp


def test_files_that_are_gone_there_go_here(bucket: Bucket) -> None:
    bucket.put("m/1/model.onnx", "m/1/weights.bin")
    bucket.scan()
    bucket.store.rm("/bucket/models/m/1/weights.bin")
    bucket.scan()
    assert bucket.copies() == {"m/1/model.onnx"}


def test_copies_that_nobody_needs_go_after_a_while(bucket: Bucket) -> None:
    bucket.put("m/1/model.onnx")
    bucket.scan()
    bucket.put("m/2/model.onnx")
    for after_s, copies in ((1.0, {"1", "2"}), (KEEP_S, {"2"}), (2 * KEEP_S, {"2"})):
        bucket.clock.advance(after_s)
        bucket.scan()
        bucket.tree.forget()
        assert bucket.copies() == {f"m/{number}/model.onnx" for number in copies}


def test_a_copy_that_cannot_be_made_is_that_models_problem(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("full.onnx", "short.onnx", "odd.onnx", "good.onnx")
    get_file = bucket.store.get_file

    def failing(path: str, target: str, **options: object) -> None:
        if "full" in path:
            raise OSError(ENOSPC, os.strerror(ENOSPC), target)
        if "odd" in path:
            raise RuntimeError("the store hung up")
        get_file(path, target, **options)
        if "short" in path:
            os.truncate(target, 3)

    monkeypatch.setattr(type(bucket.store), "get_file", staticmethod(failing))
    found = bucket.scan()
    assert "No space left on device" in problems(found["full"])["1"]
    assert "memory://bucket/models: RuntimeError: the store hung up" in problems(found["odd"])["1"]
    assert "short.onnx: 3 bytes came instead of 13" in problems(found["short"])["1"]
    assert served(bucket, found["good"]) == {"1": b"an ONNX model"}
    assert bucket.copies() == {"good.onnx"}


def test_a_full_disk_is_known_before_anything_is_copied(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.put("m.onnx")
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(12))
    assert "no room for 13 bytes" in problems(bucket.scan()["m"])["1"]
    assert bucket.copies() == set()


def test_a_store_that_cannot_be_listed_is_no_empty_one(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    def unlisted(*_: object, **__: object) -> None:
        raise RuntimeError("403 Forbidden")

    monkeypatch.setattr(type(bucket.store), "find", unlisted)
    with pytest.raises(ConfigError, match=r"memory://bucket/models cannot be read: .*RuntimeError: 403 Forbidden"):
        bucket.scan()


def test_a_stop_ends_what_is_being_copied(bucket: Bucket) -> None:
    bucket.put("m.onnx", content=bytes(1 << 20))

    class Stopping(io.BytesIO):
        """An object of which one part has come when the server is stopped."""

        def read(self, size: int | None = -1) -> bytes:
            bucket.tree.stop()
            return super().read(1)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(bucket.store), "open", lambda *_, **__: Stopping(bytes(1 << 20)))
        found = bucket.scan()
    assert "was not copied to its end, because the server stops" in problems(found["m"])["1"]
    assert bucket.copies() == set()


def test_models_by_name(bucket: Bucket) -> None:
    bucket.put("m/1/model.onnx", "n/1/model.onnx")
    listing = listed(bucket.tree)
    assert bucket.copies() == set()
    assert served(bucket, read_listed("m", listing["m"])) == {"1": b"an ONNX model"}
    assert bucket.copies() == {"m/1/model.onnx"}


@pytest.mark.parametrize(
    ("url", "message"),
    [("unheard://of", "unheard://of: Protocol not known: unheard"), ("s3://bucket/models", "Install s3fs")],
)
def test_stores_that_nothing_reads(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        RemoteTree(url, tmp_path)


async def test_a_url_as_the_repository(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(bucket.cache))
    bucket.put("m/1/model.onnx")
    store = Store()
    repository = Repository(ServerConfig(repository="memory://bucket/models"), store.change, wall_ns=much_later)
    assert await repository.look() == set()
    path = store.wanted.models["m"].versions["1"].config.path
    assert path.startswith(str(bucket.cache / "dlproxy" / "repositories"))
    assert path.endswith("/m/1/model.onnx")


async def test_a_url_needs_a_place_for_copies() -> None:
    repository = Repository(ServerConfig(repository="memory://bucket/models"), Store().change)  # tests have no cache folder
    with pytest.raises(ConfigError, match="set XDG_CACHE_HOME"):
        await repository.look()
