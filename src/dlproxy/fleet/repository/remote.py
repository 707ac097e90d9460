"""A repository in an object store, through fsspec: listed there, and copied to a folder here as far as it is served.

Opened by watcher.py. Not aware of: what is a model, versions.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from errno import ENOSPC
from hashlib import blake2b
from pathlib import Path
from tempfile import NamedTemporaryFile
from time import monotonic
from typing import Any, TypeVar

from msgspec import Struct

from dlproxy.config import ConfigError
from dlproxy.fleet.repository.tree import is_visible

KEEP_S = 3600.0  # copies that no scan has asked for; processes that serve them may start anew
CONTENT = (  # what stores call whatever changes with an object's content
    *("ETag", "etag", "md5Hash", "content_md5", "checksum", "generation", "version_id"),
    *("LastModified", "last_modified", "updated", "mtime", "modified", "created"),
)

Answer = TypeVar("Answer")


class _Object(Struct, frozen=True):
    path: str  # as the store has it
    size: int
    changed_ns: int  # no instant: another for another content, and the same wherever it is copied to


class RemoteTree:
    """One URL. A copy is taken for the object if size and time are as they were set here."""

    def __init__(self, url: str, cache: Path, clock: Callable[[], float] = monotonic) -> None:
        """Raises ConfigError if nothing that is installed reads such URLs."""
        self.place = url
        self._folder = cache / blake2b(url.encode(), digest_size=8).hexdigest()
        self._clock = clock
        self._objects: dict[str, _Object] = {}
        self._needed_at: dict[Path, float] = {}
        self._stopped = False
        try:
            from fsspec.callbacks import Callback
            from fsspec.core import url_to_fs

            self._on_part = Callback(hooks={"stop": self._go_on})
            self._store, self._root = url_to_fs(url)
        except ImportError as error:
            raise ConfigError(f"{url}: {error} (pip install 'dlproxy[remote]', and what the store needs)") from None
        except ValueError as error:
            raise ConfigError(f"{url}: {error}") from None

    def refresh(self) -> None:
        found = self._asked(self._list)
        root = self._root.strip("/")
        self._objects = {
            name: _Object(path, int(about.get("size") or 0), _changed_ns(about))
            for path, about in found.items()
            if about.get("type") == "file" and not path.endswith("/")  # some stores have objects that stand for folders
            if (name := path.strip("/").removeprefix(root).strip("/")) and all(map(is_visible, name.split("/")))
        }

    def forget(self) -> None:
        """Remove the copies that have not been needed for long."""
        now = self._clock()
        for target in [file for file in self._folder.rglob("*") if file.is_file()]:
            if now - self._needed_at.setdefault(target, now) > KEEP_S:
                target.unlink(missing_ok=True)
                del self._needed_at[target]

    def stop(self) -> None:
        """Copy nothing more: what is being copied fails."""
        self._stopped = True

    def _go_on(self, *_: object, **__: object) -> None:
        if self._stopped:
            raise OSError(None, "was not copied to its end, because the server stops", self.place)

    def entries(self, folder: str) -> dict[str, bool]:
        found: dict[str, bool] = {}
        for name in self._below(folder):
            entry, slash, _ = name.removeprefix(f"{folder}/" if folder else "").partition("/")
            found[entry] = bool(slash)
        if not found and folder:
            raise FileNotFoundError(None, "is not there", f"{self.place}/{folder}")
        return dict(sorted(found.items()))

    def fetch(self, path: str) -> Path:
        names = [path] if path in self._objects else list(self._below(path))
        if not names:
            raise FileNotFoundError(None, "is not there", f"{self.place}/{path}")
        for name in names:
            self._copy(name)
        target = self._folder / path
        if target.is_dir():
            for file in [file for file in target.rglob("*") if file.is_file() and is_visible(file.name)]:
                if file.relative_to(self._folder).as_posix() not in self._objects:
                    file.unlink()
        return target

    def _below(self, folder: str) -> Iterator[str]:
        return (name for name in self._objects if not folder or name.startswith(f"{folder}/"))

    def _list(self) -> dict[str, dict[str, Any]]:
        self._store.invalidate_cache()
        found: dict[str, dict[str, Any]] = self._store.find(self._root, detail=True)
        return found

    def _copy(self, name: str) -> None:
        wanted, target = self._objects[name], self._folder / name
        self._needed_at[target] = self._clock()
        if target.exists():
            status = target.stat()
            if (status.st_size, status.st_mtime_ns) == (wanted.size, wanted.changed_ns):
                return
        self._go_on()
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if shutil.disk_usage(target.parent).free < wanted.size:
            raise OSError(ENOSPC, f"no room for {wanted.size} bytes", str(target))
        with NamedTemporaryFile(dir=target.parent, prefix=".copy-", delete=False) as file:
            copy = file.name
        try:
            self._asked(lambda: self._store.get_file(wanted.path, copy, callback=self._on_part))
            size = os.stat(copy).st_size
            if size != wanted.size:
                raise OSError(None, f"{size} bytes came instead of {wanted.size}", f"{self.place}/{name}")
            os.utime(copy, ns=(wanted.changed_ns, wanted.changed_ns))
            os.replace(copy, target)
        except BaseException:
            os.unlink(copy)
            raise

    def _asked(self, ask: Callable[[], Answer]) -> Answer:
        """What the store answers; whatever its library raises is an OSError here."""
        try:
            return ask()
        except OSError:
            raise
        except Exception as error:
            raise OSError(None, f"{type(error).__name__}: {error}", self.place) from error


def _changed_ns(about: dict[str, Any]) -> int:
    """In whole seconds, and even ones: some file systems keep no others."""
    content = [str(about[name]) for name in CONTENT if about.get(name) is not None]
    return int.from_bytes(blake2b("\0".join(content).encode(), digest_size=4).digest()) // 4 * 2 * 10**9
