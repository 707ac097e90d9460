"""How much of the cores the hypervisor gave to others: on a shared machine the first reason why two equal runs differ."""

import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness.processes import Cores

STAT = Path("/proc/stat")
STEAL = 8  # field of a cpu line, the name being 0 (proc_stat(5))
TICKS_PER_S = 100.0  # USER_HZ, which is 100 on every Linux that runs Python


class StolenTime:
    """Begins to count when it is made."""

    def __init__(self, cores: Cores, stat: Path = STAT, clock: Callable[[], float] = time.perf_counter) -> None:
        self._names = {f"cpu{core}" for core in cores if core is not None}
        self._stat = stat
        self._clock = clock
        self._began_at = clock()
        self._before = self._ticks()

    def share(self) -> float | None:
        """Of the time since the beginning, on the core that lost most; None where the system does not tell."""
        seconds, after = self._clock() - self._began_at, self._ticks()
        lost = [after[name] - ticks for name, ticks in self._before.items() if name in after]
        return max(lost) / TICKS_PER_S / seconds if lost else None

    def _ticks(self) -> dict[str, int]:
        try:
            lines = self._stat.read_text().splitlines()
        except OSError:  # no Linux
            return {}
        fields = [line.split() for line in lines if line.startswith("cpu")]
        return {cpu[0]: int(cpu[STEAL]) for cpu in fields if cpu[0] in self._names}
