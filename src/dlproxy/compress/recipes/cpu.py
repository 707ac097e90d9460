"""What this CPU's kernels for whole numbers can do, and what recipes make of it.

Asked by the int8 recipes. Not aware of: graphs.
"""

import platform
from pathlib import Path

from dlproxy.instance.runtime.processor import ROOT, flags

_VNNI = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"}
_X86 = ("x86_64", "amd64")


def is_x86() -> bool:
    return platform.machine().lower() in _X86


def weight_bits(root: Path = ROOT) -> int:
    """7 on x86 without VNNI, whose 8-bit products are summed in pairs to 16 bits and cut off there (vpmaddubsw); else 8."""
    return 7 if is_x86() and not flags(root) & _VNNI else 8
