"""Graphs that ONNX Runtime has optimised, kept in a folder under a hash of all that they depend on.

Called by kept_graph.py. What is broken is removed and what cannot be read or written done without: a start fails of neither.
Not aware of: sessions, what is in a graph.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from time import time_ns

import msgspec
from msgspec import Struct

from dlproxy.instance.runtime.content import FileState, Stamps, digest_of, model_files, stamp_of
from dlproxy.instance.runtime.digests import Digests, boot, is_private, replace
from dlproxy.instance.runtime.processor import fingerprint

FORMAT = 1
GRAPH, WEIGHTS, ABOUT = "graph.onnx", "weights.bin", "about.msgpack"
LEAST_BYTES = 2**22  # of a model: smaller ones load in milliseconds
MOST_BYTES = 2**34
MOST_GRAPHS = 64
SPARE_BYTES = 2**30  # which a disk keeps free
GROWTH = 2.2  # a graph to a model: the weights, and the weights as kernels want them
LEFT_OVER_S = 3600.0  # what a start that ended halfway has left is removed by a later one
REFUSED = ".refused"
ELSEWHERE = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "afs", "gfs2", "ocfs2", "fuse.")

log = logging.getLogger(__name__)


class About(Struct, frozen=True):
    """A graph that was kept: its files in the life `boot` of the machine, and the seconds of a load without and with it."""

    boot: str
    files: dict[str, FileState]
    plain_s: float
    kept_s: float


class Key(Struct, frozen=True):
    """`name`: of the graph; `stamps`: of the model's files, before they were read for it."""

    name: str
    stamps: Stamps
    size_bytes: int


class Graphs:
    """Raises nothing. `folder`: on a disk of this machine, as what is there is mapped into memory, and only ours to write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._usable: bool | None = None
        self.digests = Digests(folder)

    def key(self, model: Path, settings: Mapping[str, object]) -> Key | None:
        """Of the graph that is made of this model with these settings on this machine; None if its files cannot be read."""
        digest = hashlib.sha256(msgspec.json.encode([FORMAT, fingerprint(), settings]))
        try:
            files = model_files(str(model))
            stamps = {file: stamp_of(file) for file in files}
            for file in files:
                digest.update(os.path.basename(file).encode("utf-8", "surrogateescape") + b"\0" + self.digests.of(file))
        except OSError as error:  # loading says so, and better
            log.debug("no graph is looked for: %s", error)
            return None
        return Key(digest.hexdigest()[:40], stamps, sum(stamp[0] for stamp in stamps.values()))

    def find(self, key: Key) -> Path | None:
        """The graph's file, if it is here and as it was written."""
        place = self._folder / key.name
        try:
            if not place.is_dir() or not self._may_use():
                return None
            about = msgspec.msgpack.decode((place / ABOUT).read_bytes(), type=About)
            stamps = {name: stamp_of(str(place / name)) for name in about.files}
            if GRAPH not in about.files or not is_private(place):
                raise ValueError("it is not laid out as it was written")
            if about.boot != boot() or any(stamps[name] != state.stamp for name, state in about.files.items()):
                if any(digest_of(str(place / name)) != state.digest for name, state in about.files.items()):
                    raise ValueError("it is not what was written")
                files = {name: FileState(stamps[name], state.digest) for name, state in about.files.items()}
                replace(place / ABOUT, msgspec.msgpack.encode(msgspec.structs.replace(about, boot=boot(), files=files)))
            os.utime(place / ABOUT)
        except (OSError, ValueError) as error:  # msgspec's are ValueErrors, too
            self.remove(key, str(error))
            return None
        return place / GRAPH

    def remove(self, key: Key, why: str) -> None:
        """It is broken. Who has it mapped goes on with it."""
        log.warning("the graph kept in %s cannot be used, and is made anew: %s", self._folder / key.name, why)
        self._drop(self._folder / key.name)

    def begin(self, key: Key) -> Path | None:
        """A new folder to write this graph to; None if it is not to be kept."""
        wanted = int(key.size_bytes * GROWTH)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if key.size_bytes < LEAST_BYTES or wanted > MOST_BYTES or not self._may_use():
                return None
            if self._refused(key).exists() or shutil.disk_usage(self._folder).free < wanted + SPARE_BYTES:
                return None
            self._tidy()
            return Path(mkdtemp(prefix=".", dir=self._folder))
        except OSError as error:
            log.debug("no graph is kept in %s: %s", self._folder, error)
            return None

    def keep(self, key: Key, made: Path, *, plain_s: float, kept_s: float) -> None:
        """What was written to this folder is the graph, from now on and for all processes."""
        try:
            if any(stamp_of(file) != stamp for file, stamp in key.stamps.items()):
                raise OSError("the model was changed while it was loaded")
            files = {one.name: FileState(stamp_of(str(one)), digest_of(str(one))) for one in made.iterdir()}
            replace(made / ABOUT, msgspec.msgpack.encode(About(boot(), files, plain_s, kept_s)))
            made.rename(self._folder / key.name)
            self._make_room(key)
        except OSError as error:  # another start was quicker, or the disk is full
            log.debug("a graph is not kept: %s", error)
            self.discard(made)

    def refuse(self, key: Key, made: Path, why: str) -> None:
        """Do not try it again."""
        self.discard(made)
        with suppress(OSError):
            self._refused(key).write_text(why, "utf-8")
        log.debug("no graph is kept in %s: %s", self._folder / key.name, why)

    def forgive(self, key: Key, why: str) -> None:
        """If it was refused for this, the next load may try it again."""
        with suppress(OSError):
            if self._refused(key).exists() and self._refused(key).read_text("utf-8") == why:
                self._refused(key).unlink()

    def discard(self, made: Path) -> None:
        shutil.rmtree(made, ignore_errors=True)

    def _may_use(self) -> bool:
        if self._usable is None:
            private, kind = is_private(self._folder), _file_system(self._folder)
            self._usable = private and not kind.startswith(ELSEWHERE)
            if not self._usable:
                reason = f"is on {kind}, which may take mapped files away" if private else "may be written by others"
                log.warning("no graphs are kept: graph_folder %s %s", self._folder, reason)
        return self._usable

    def _refused(self, key: Key) -> Path:
        return self._folder / f"{key.name}{REFUSED}"

    def _make_room(self, new: Key) -> None:
        """For the graph that was kept just now; those that were not used for longest go."""
        kept = sorted(self._folder.glob(f"*/{ABOUT}"), key=lambda about: about.stat().st_mtime, reverse=True)
        total = 0
        for number, about in enumerate(sorted(kept, key=lambda about: about.parent.name != new.name)):
            total += sum(file.stat().st_size for file in about.parent.iterdir())
            if number >= MOST_GRAPHS or total > MOST_BYTES:
                self._drop(about.parent)

    def _drop(self, place: Path) -> None:
        """In one step for those who look for it."""
        with suppress(OSError):
            gone = Path(mkdtemp(prefix=".", dir=self._folder))
            with suppress(OSError):
                place.rename(gone / place.name)
            self.discard(gone)

    def _tidy(self) -> None:
        """Leftovers, and refusals so old that they are worth another try."""
        for one in [*self._folder.glob(".*"), *self._folder.glob("*.new")]:
            if time_ns() / 1e9 - one.stat().st_mtime > LEFT_OVER_S:
                self.discard(one) if one.is_dir() else one.unlink(missing_ok=True)
        for one in sorted(self._folder.glob(f"*{REFUSED}"), key=lambda one: one.stat().st_mtime)[: -4 * MOST_GRAPHS]:
            one.unlink(missing_ok=True)


@cache
def graphs_in(folder: str) -> Graphs:
    """One for all models of this process."""
    return Graphs(Path(folder))


def _file_system(folder: Path) -> str:
    """Its kind; empty where the system does not tell."""
    with suppress(OSError):
        device = os.stat(folder).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}" if hasattr(os, "major") else ""
        for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
            if line.split()[2] == wanted:
                return line.partition(" - ")[2].split()[0]
    return ""
