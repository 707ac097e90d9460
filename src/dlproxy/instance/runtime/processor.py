"""The processor: what it can compute with, and its caches, as far as the system tells (Linux).

Asked by graphs.py for what depends on it, by fleet/warm_model.py for what a model meets there, by recipes of compress/.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from dlproxy.cores import processor_model

ROOT = Path("/")
KERNELS = {  # flags of /proc/cpuinfo, in the order in which ONNX Runtime's kernels prefer them
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx2": "AVX2",
    "avx": "AVX",
    "sve": "SVE",
    "i8mm": "I8MM",
    "asimddp": "NEON with dot products",
    "asimd": "NEON",
}


@cache
def fingerprint(root: Path = ROOT) -> str:
    """Changes with the processor and with what of it this machine may use."""
    fields = _fields(root)
    names = ("model name", "vendor_id", "cpu family", "model", "flags", "Features")
    told = [processor_model(), *(fields.get(name, "") for name in names)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def flags(root: Path = ROOT) -> frozenset[str]:
    """Of the first core, as Linux names them; empty elsewhere."""
    fields = _fields(root)
    return frozenset((*fields.get("flags", "").split(), *fields.get("Features", "").split()))


def vector_units(root: Path = ROOT) -> list[str]:
    """The instruction sets that ONNX Runtime's kernels choose from, the widest first; none where the system does not tell."""
    there = flags(root)
    return [name for flag, name in KERNELS.items() if flag in there]


def cache_bytes(root: Path = ROOT) -> dict[int, int]:
    """Bytes of the unified or data caches of the first core, by level; empty where the system does not tell."""
    found = {}
    for folder in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        with suppress(OSError, ValueError):
            level, kind, size = ((folder / name).read_text("ascii").strip() for name in ("level", "type", "size"))
            if kind != "Instruction":
                factor = {"K": 2**10, "M": 2**20, "G": 2**30}.get(size[-1], 1)
                found[int(level)] = int(size.rstrip("KMG")) * factor
    return found


def working_set(weights_bytes: int, root: Path = ROOT) -> str:
    """Which vector units ONNX Runtime's kernels find here, and where weights of this size stay between runs: two sentences."""
    units, caches = vector_units(root), cache_bytes(root)
    can = f"kernels find {', '.join(units)}" if units else "the system does not tell which vector units kernels find"
    size = f"{weights_bytes / 2**20:.1f} MiB of weights"
    if not caches:
        return f"{can}; {size}, and the system does not tell how large its caches are"
    there = ", ".join(f"L{level} {bytes_ / 2**20:g} MiB" for level, bytes_ in sorted(caches.items()) if level > 1)
    fits = next((f"fit in L{level}" for level, bytes_ in sorted(caches.items()) if weights_bytes <= bytes_), "")
    return f"{can}; {size} {fits or 'come from memory with every batch'} ({there})"


def _fields(root: Path) -> Mapping[str, str]:
    """Of the first core."""
    with suppress(OSError):
        text = (root / "proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0]
        pairs = (line.partition(":") for line in text.splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}
    return {}
