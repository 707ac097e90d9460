"""Where the stores under test keep things, each with a way to look there, to put something else there, and to cut it off."""

from pathlib import Path
from typing import Protocol

from redis import Redis

from dlproxy.fleet.folder_store import FolderStore
from dlproxy.fleet.redis_store import redis_store
from dlproxy.fleet.store import MemoryStore, Store
from tests.fleet.redis_server import RedisServer


class Place(Protocol):
    """`open`: one more handle."""

    def open(self) -> Store: ...

    def end(self) -> None: ...


class SharedPlace(Place, Protocol):
    def get(self) -> bytes | None: ...

    def put(self, content: bytes | None) -> None: ...

    def cut(self) -> None: ...

    def mend(self) -> None: ...


class MemoryPlace:
    """One store is all handles."""

    def __init__(self, path: Path) -> None:
        self._store = MemoryStore()

    def open(self) -> Store:
        return self._store

    def end(self) -> None:
        pass


class FolderPlace:
    """Cut off, a file is in the folder's place: nothing there can be read or written."""

    def __init__(self, path: Path) -> None:
        self._folder, self._away = path / "shared", path / "away"
        self._folder.mkdir()

    def open(self) -> FolderStore:
        return FolderStore(self._folder, poll_s=0.01)

    def get(self) -> bytes | None:
        return (self._folder / "wanted.json").read_bytes()

    def put(self, content: bytes | None) -> None:
        if content is None:
            (self._folder / "wanted.json").unlink()
        else:
            (self._folder / "wanted.json").write_bytes(content)

    def cut(self) -> None:
        self._folder.rename(self._away)
        self._folder.touch()

    def mend(self) -> None:
        self._folder.unlink()
        self._away.rename(self._folder)

    def end(self) -> None:
        pass


class RedisPlace:
    """Cut off, the server is dead. What is put here is not published: the poll finds it."""

    def __init__(self, path: Path) -> None:
        self.server = RedisServer(path)
        self.client = Redis(port=self.server.port)

    def open(self, poll_s: float = 0.05) -> Store:
        return redis_store(self.server.url, poll_s)

    def get(self) -> bytes | None:
        content = self.client.get("dlproxy")
        assert content is None or isinstance(content, bytes)
        return content

    def put(self, content: bytes | None) -> None:
        if content is None:
            self.client.delete("dlproxy")
        else:
            self.client.set("dlproxy", content)

    def cut(self) -> None:
        self.server.kill()

    def mend(self) -> None:
        self.server.start()

    def end(self) -> None:
        self.client.close()
        self.server.kill()
