"""What dlproxy is set to by hand, and the ways to call ONNX Runtime without a server: what its defaults must match."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

NEAR = 0.95  # a second candidate that a screening finds this close to the best is measured in pairs too


class Setting(NamedTuple):
    """Of [models.NAME]."""

    threads: int
    instances: int
    run: str

    @property
    def label(self) -> str:
        return f"{self.run}, threads {self.threads}, instances {self.instances}"

    def toml(self, name: str, model: Path) -> str:
        knobs = f'threads = {self.threads}\ninstances = {self.instances}\nrun = "{self.run}"'
        return f'[models.{name}]\npath = "{model}"\n{knobs}\n'


class Loop(NamedTuple):
    """Of ort_loop.py."""

    label: str
    threads: int
    callers: int
    sessions: int

    @property
    def options(self) -> list[str]:
        return ["--threads", str(self.threads), "--callers", str(self.callers), "--sessions", str(self.sessions)]


def settings(cores: int) -> list[Setting]:
    """Inline is one instance, whatever is asked for."""
    counts = sorted({1, cores})
    inline = [Setting(threads, 1, "inline") for threads in counts]
    return inline + [Setting(threads, instances, "thread") for threads, instances in product(counts, counts)]


def loops(cores: int) -> list[Loop]:
    return [
        Loop(f"in turn, threads {cores}", cores, 1, 1),
        Loop(f"{cores} callers of a session, threads 1", 1, cores, 1),
        Loop(f"{cores} sessions, threads 1", 1, cores, cores),
    ]


def finalists(rates: Mapping[str, float], most: int) -> Sequence[str]:
    """The fastest of a screening, and what is so close that the screening cannot tell them apart, but no more than `most`."""
    ranked = sorted(rates, key=lambda label: -rates[label])
    return [label for label in ranked if rates[label] >= NEAR * rates[ranked[0]]][:most]
