"""Files in memory that can be opened by a path, for whatever cannot be given bytes: links to memory that ends with the process.

Used by runtimes whose formats are folders, and by Python classes. Not aware of: where the contents come from.
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

from dlproxy.instance.runtime import ModelError


class MemoryFolder:
    """A private folder in which every file is a link to anonymous memory of this process: nothing of them is on a disk.

    It lasts as long as this object, and at most as long as the process: whatever ends that, only links that lead nowhere
    are left. Other processes of the same user could read the memory, as they could that of the process itself.
    """

    def __init__(self, files: Mapping[str, bytes | bytearray]) -> None:
        """Raises ModelError where the system has no such memory."""
        if not hasattr(os, "memfd_create"):
            raise ModelError("it cannot be loaded from memory on this system, which signed and encrypted models are: use Linux")
        self.path = Path(tempfile.mkdtemp(prefix="dlproxy-model-"))
        descriptors: list[int] = []
        self._remove = weakref.finalize(self, _remove, self.path, descriptors)
        for name, content in files.items():
            descriptors.append(_in_memory(content))
            link = self.path / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(f"/proc/self/fd/{descriptors[-1]}")

    def close(self) -> None:
        self._remove()


def _in_memory(content: bytes | bytearray) -> int:
    """A descriptor of memory that nobody can change any more."""
    import fcntl  # there is none on Windows

    descriptor = os.memfd_create("dlproxy-model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return descriptor


def _remove(path: Path, descriptors: list[int]) -> None:
    shutil.rmtree(path, ignore_errors=True)
    for descriptor in descriptors:
        os.close(descriptor)
