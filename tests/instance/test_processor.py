"""What /proc/cpuinfo and sysfs say of a processor, in words, and nothing where they say nothing."""

from pathlib import Path

import pytest

from dlproxy.instance.runtime.processor import cache_bytes, fingerprint, flags, vector_units, working_set

X86 = "processor\t: 0\nvendor_id\t: X\nmodel name\t: A\nflags\t\t: fpu avx avx2 {}\n\nprocessor\t: 1\nflags\t: fpu amx_int8\n"


def _machine(folder: Path, cpuinfo: str, caches: dict[str, tuple[str, str, str]]) -> Path:
    (folder / "proc").mkdir(parents=True)
    (folder / "proc/cpuinfo").write_text(cpuinfo)
    for name, values in caches.items():
        place = folder / "sys/devices/system/cpu/cpu0/cache" / name
        place.mkdir(parents=True)
        for field, value in zip(("level", "type", "size"), values, strict=True):
            (place / field).write_text(f"{value}\n")
    return folder


@pytest.fixture
def x86(tmp_path: Path) -> Path:
    caches = {
        "index0": ("1", "Data", "32K"),
        "index1": ("1", "Instruction", "64K"),
        "index2": ("2", "Unified", "512K"),
        "index3": ("3", "Unified", "32M"),
    }
    return _machine(tmp_path / "x86", X86.format("avx512f"), caches)


def test_what_the_first_core_has_is_told(x86: Path) -> None:
    assert flags(x86) == {"fpu", "avx", "avx2", "avx512f"}
    assert vector_units(x86) == ["AVX-512", "AVX2", "AVX"]
    assert cache_bytes(x86) == {1: 2**15, 2: 2**19, 3: 2**25}


@pytest.mark.parametrize(
    ("weights", "where"), [(2**18, "fit in L2"), (2**25, "fit in L3"), (2**25 + 1, "come from memory with every batch")]
)
def test_where_weights_stay(x86: Path, weights: int, where: str) -> None:
    said = working_set(weights, x86)
    assert where in said
    assert "AVX-512, AVX2, AVX" in said
    assert "(L2 0.5 MiB, L3 32 MiB)" in said


def test_where_the_system_does_not_tell_nothing_is_made_up(tmp_path: Path) -> None:
    assert (vector_units(tmp_path), cache_bytes(tmp_path)) == ([], {})
    assert working_set(2**20, tmp_path).count("does not tell") == 2


def test_another_flag_is_another_machine(tmp_path: Path) -> None:
    one, other, same = (_machine(tmp_path / name, X86.format(flag), {}) for name, flag in (("a", "x"), ("b", "y"), ("c", "x")))
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(same)
