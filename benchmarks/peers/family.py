"""All processes that one server started, found by a mark in their environment: some systems leave session and parent.

Memory and processor time are theirs together, and nothing else is ever ended.
"""

import contextlib
import os
import signal
import time
import uuid
from pathlib import Path

MARK = "DLPROXY_PEER_MARK"
IDLE_SECONDS = 2.0
IDLE_CHECK_SECONDS = 0.2
IDLE_CHECKS = 25
BUSY_SHARE = 0.3  # of a core; LitServe and Ray take some 0.1 when nobody asks anything of them
GONE_SECONDS = 5.0
GONE_CHECK_SECONDS = 0.02


class Family:
    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self._wanted = f"{MARK}={self.mark}".encode()

    @property
    def environment(self) -> list[str]:
        """For env(1)."""
        return [f"{MARK}={self.mark}"]

    def members(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if self._wanted in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    def cpu_seconds(self) -> float:
        ticks = 0
        for member in self.members():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / float(os.sysconf("SC_CLK_TCK"))

    def pss_megabytes(self) -> float:
        """Resident memory with shared pages divided among those that share them, in units of 10**6 bytes."""
        kibibytes = 0
        for member in self.members():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        kibibytes += int(line.split()[1])
        return kibibytes * 1024 / 1e6

    def idle_cpu_share(self) -> float:
        """Of one core, taken while nobody asks anything of it."""
        before = self.cpu_seconds()
        time.sleep(IDLE_SECONDS)
        return (self.cpu_seconds() - before) / IDLE_SECONDS

    def wait_until_idle(self) -> None:
        """Until it has worked off what clients that have left still had in its queue, or a limit is reached."""
        before = self.cpu_seconds()
        for _ in range(IDLE_CHECKS):
            time.sleep(IDLE_CHECK_SECONDS)
            now = self.cpu_seconds()
            if now - before <= BUSY_SHARE * IDLE_CHECK_SECONDS:
                return
            before = now

    def pause(self) -> None:
        """Stops all of it, so that it takes nothing from the other system while that is measured."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        """Kills what is left of it; returns when nothing is."""
        deadline = time.monotonic() + GONE_SECONDS
        while self._signal(signal.SIGKILL) and time.monotonic() < deadline:
            time.sleep(GONE_CHECK_SECONDS)

    def _signal(self, number: signal.Signals) -> bool:
        """Whether there was anybody to be told."""
        members = self.members()
        for member in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, number)
        return bool(members)
