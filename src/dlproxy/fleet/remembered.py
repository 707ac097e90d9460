"""What was found out about a model, kept on disk under a hash of its content, so that the next start is right at once.

Used by fleet/warm_model.py. Whatever could change the findings is in the hash: files, knobs, versions, the processor. What
cannot be read or written costs a warm-up, never a start. Not aware of: how anything is found out.
"""

import logging
import os
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import NamedTemporaryFile
from time import time_ns

import msgspec
from msgspec import Struct

from dlproxy import __version__
from dlproxy.config import ModelConfig
from dlproxy.cores import processor_model, usable_cores
from dlproxy.instance.runtime.content import FileState, digest_of, model_files, stamp_of
from dlproxy.instance.samples import sample_files
from dlproxy.instance.trial import Measured, Way
from dlproxy.message import Signature

FORMAT = 3
MOST_FILES = 256  # models; the one that was not used for longest goes first
MOST_DIGESTS = 4096  # files
FRESH_NS = 2 * 10**9
MATTERS = (
    *("threads", "instances", "run", "device", "gpu_memory_limit_mb", "max_batch", "batching", "padding", "pad_value"),
    *("inputs", "outputs", "slo"),
)
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "torch", "tensorflow", "numpy")

log = logging.getLogger(__name__)


class Remembered(Struct, frozen=True):
    """The findings of one warm-up, as later ones in service have left them."""

    signature: Signature
    points: tuple[tuple[int | float, ...], ...]
    warning: str
    way: Way
    found: Measured | None


class Memory:
    """A folder of findings. Raises nothing: what does not work is logged once and done without."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._complained = False
        self._digests: dict[str, FileState] = {}  # of models that come and go

    def key(self, config: ModelConfig) -> str:
        """What the findings for this model depend on, as the name of a file; empty if its files cannot be read."""
        digest = blake2b(digest_size=20)
        settings = {name: getattr(config, name) for name in MATTERS}
        digest.update(msgspec.json.encode([FORMAT, __version__, _versions(), processor_model(), usable_cores(), settings]))
        try:
            for file in [*model_files(config.path), *sample_files(config.samples)]:
                digest.update(os.path.basename(file).encode("utf-8", "surrogateescape"))
                digest.update(self._digest(file))
        except OSError as error:  # loading says so, and better
            log.debug("no findings are looked for: %s", error)
            return ""
        return digest.hexdigest()

    def _digest(self, file: str) -> bytes:
        stamp, known = stamp_of(file), self._digests.get(file)
        if known is not None and known.stamp == stamp:
            return known.digest
        digest = digest_of(file)
        if len(self._digests) >= MOST_DIGESTS:
            self._digests.clear()
        if time_ns() - stamp[-1] > FRESH_NS:  # else it may be written again within one tick of the file system's clock
            self._digests[file] = FileState(stamp, digest)
        return digest

    def recall(self, key: str) -> Remembered | None:
        """What was found before; None for nothing, or nothing that can be understood."""
        path = self._folder / f"{key}.msgpack"
        try:
            found = msgspec.msgpack.decode(path.read_bytes(), type=Remembered)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            self._complain(f"{path} cannot be used: {error}")
            return None
        return found

    def keep(self, key: str, found: Remembered) -> None:
        """For the next start; in one step, so that a server that ends meanwhile leaves the old findings or the new."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=self._folder, suffix=".new", delete=False) as file:
                file.write(msgspec.msgpack.encode(found))  # JSON has no infinity
            os.replace(file.name, self._folder / f"{key}.msgpack")
            kept = sorted(self._folder.glob("*.msgpack"), key=lambda path: path.stat().st_mtime)
            for path in kept[:-MOST_FILES]:
                path.unlink(missing_ok=True)
        except OSError as error:
            self._complain(f"findings about models cannot be kept in {self._folder}: {error}")

    def _complain(self, what: str) -> None:
        if not self._complained:
            self._complained = True
            log.warning("%s (every start measures anew; see calibration_folder)", what)


def memory_in(setting: str) -> Memory | None:
    """The memory that the knob `calibration_folder` asks for; "auto" is the user's cache folder, if there is one."""
    if setting != "auto":
        return Memory(Path(setting)) if setting else None
    folder = cache_folder("calibrations")
    return None if folder is None else Memory(folder)


def cache_folder(name: str) -> Path | None:
    """Ours of that name in the user's cache folder, if there is one."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with suppress(OSError):  # a home that may not be looked into is none
        if cache.is_dir():
            return cache / "dlproxy" / name
    return None


@cache
def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
