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

import msgspec
from msgspec import Struct

from dlproxy import __version__
from dlproxy.config import ModelConfig
from dlproxy.cores import processor_model, usable_cores
from dlproxy.instance.made_up import Known
from dlproxy.instance.runtime.content import model_files
from dlproxy.instance.runtime.digests import Digests, replace
from dlproxy.instance.runtime.graphs import graphs_in
from dlproxy.instance.samples import sample_files
from dlproxy.instance.trial import Measured, Way
from dlproxy.instance.warmup import Calibration
from dlproxy.message import Signature

FORMAT = 4
MOST_FILES = 256  # models; the one that was not used for longest goes first
MATTERS = (
    *("threads", "instances", "run", "device", "gpu_memory_limit_mb", "max_batch", "batching", "padding", "pad_value"),
    *("inputs", "outputs", "slo"),
)
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "torch", "tensorflow", "numpy")

log = logging.getLogger(__name__)


class Remembered(Struct, frozen=True):
    """The findings of one warm-up, as later ones in service have left them. `known`: of the inputs that suited the model."""

    signature: Signature
    points: tuple[tuple[int | float, ...], ...]
    warning: str
    way: Way
    found: Measured | None
    known: Known | None = None

    @property
    def calibration(self) -> Calibration:
        return Calibration(self.points, self.signature.batched, self.warning, self.known)


class Memory:
    """A folder of findings, if there is one. Raises nothing: what does not work is logged once and done without.

    `graphs`: a folder of optimised graphs, whose digests of models serve here, too; empty: none.
    """

    def __init__(self, folder: Path | None, graphs: str = "") -> None:
        self.graphs = graphs
        self._folder = folder
        self._complained = False
        self._digests = graphs_in(graphs).digests if graphs else Digests(folder)

    def key(self, config: ModelConfig) -> str:
        """What the findings for this model depend on, as a file name; empty: none are kept, or its files cannot be read."""
        if self._folder is None:
            return ""
        digest = blake2b(digest_size=20)
        settings = {name: getattr(config, name) for name in MATTERS}
        digest.update(msgspec.json.encode([FORMAT, __version__, _versions(), processor_model(), usable_cores(), settings]))
        try:
            for file in [*model_files(config.path), *sample_files(config.samples)]:
                digest.update(os.path.basename(file).encode("utf-8", "surrogateescape"))
                digest.update(self._digests.of(file))
        except OSError as error:  # loading says so, and better
            log.debug("no findings are looked for: %s", error)
            return ""
        return digest.hexdigest()

    def recall(self, key: str) -> Remembered | None:
        """What was found before; None for nothing, or nothing that can be understood."""
        if self._folder is None:
            return None
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
        if self._folder is None:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace(self._folder / f"{key}.msgpack", msgspec.msgpack.encode(found))  # JSON has no infinity
            kept = sorted(self._folder.glob("*.msgpack"), key=lambda path: path.stat().st_mtime)
            for path in kept[:-MOST_FILES]:
                path.unlink(missing_ok=True)
        except OSError as error:
            self._complain(f"findings about models cannot be kept in {self._folder}: {error}")

    def _complain(self, what: str) -> None:
        if not self._complained:
            self._complained = True
            log.warning("%s (every start measures anew; see calibration_folder)", what)


def memory_in(calibrations: str, graphs: str = "") -> Memory | None:
    """The memory that the knobs `calibration_folder` and `graph_folder` ask for; "auto": in the user's cache folder, if any."""
    folder, beside = _place(calibrations, "calibrations"), _place(graphs, "graphs")
    return None if folder is beside is None else Memory(folder, "" if beside is None else str(beside))


def _place(setting: str, name: str) -> Path | None:
    if setting == "auto":
        return cache_folder(name)
    return Path(setting) if setting else None


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
