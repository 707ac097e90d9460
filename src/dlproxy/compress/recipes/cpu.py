"""What this CPU's kernels for whole numbers can do, and what recipes make of it.

Asked by the int8 recipes. Not aware of: graphs.
"""

import platform
from functools import cache
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_X86 = ("x86_64", "amd64")


def is_x86() -> bool:
    return platform.machine().lower() in _X86


@cache
def flags() -> frozenset[str]:
    """Of the first core, as Linux names them; empty elsewhere."""
    if not _CPU_INFO.exists():
        return frozenset()
    lines = _CPU_INFO.read_text("utf-8", "replace").splitlines()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").partition(":")[2].split())


def weight_bits() -> int:
    """7 on x86 without VNNI, whose 8-bit products are summed in pairs to 16 bits and cut off there (vpmaddubsw); else 8."""
    return 7 if is_x86() and not flags() & {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"} else 8
