"""What a worker prints, as lines fit for the log: not too long, not too many, with a note of what was left out.

Called by child.py with the bytes as they come. Not aware of: pipes, processes, the log.
"""

from collections import deque

MAX_LINE_BYTES = 2000
LINES_PER_S = 1.0  # a model that prints for each batch must not fill the disk, or the terminal, with it
BURST_LINES = 20.0  # what a framework says when it starts
FINAL_LINES = 20  # of those left out, logged when no more will come: the traceback that explains the end
LAST_LINES = 5
WHY = f"(lines are left out after {BURST_LINES:g}, but for {LINES_PER_S:g} a second; to keep all, let the model log to a file)"


class OutputLines:
    """Cuts bytes into lines. `last`: the last lines of all, those left out too, without the indented ones of a traceback."""

    def __init__(self) -> None:
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._rest = b""
        self._skipping = False  # to the end of a line whose beginning was long enough
        self._left_out = 0
        self._latest: deque[bytes] = deque(maxlen=FINAL_LINES)  # of those
        self._said_why = False
        self._allowance = BURST_LINES
        self._at = 0.0

    def feed(self, data: bytes, now: float) -> list[str]:
        """The lines to log; empty `data` means that no more will come. `now`: monotonic seconds."""
        self._allowance = min(self._allowance + (now - self._at) * LINES_PER_S, BURST_LINES)
        self._at = now
        *whole, self._rest = (self._rest + data).split(b"\n")
        if self._skipping and whole:
            whole.pop(0)
            self._skipping = False
        if len(self._rest) > MAX_LINE_BYTES or not data:
            if self._rest and not self._skipping:
                whole.append(self._rest)
            self._rest, self._skipping = b"", bool(data)
        lines = self._within_allowance([line for line in whole if line.strip()])
        return lines if data else lines + self._final()

    def _within_allowance(self, whole: list[bytes]) -> list[str]:
        lines: list[str] = []
        allowed = min(len(whole), int(self._allowance))
        if allowed and self._left_out:
            lines.append(_counted(self._left_out))
            self._left_out = 0
            self._latest.clear()
        logged, left_out = [_text(line) for line in whole[:allowed]], whole[allowed:]
        for line in (*logged, *map(_text, left_out[-LAST_LINES:])):
            if not line.startswith("  "):
                self.last.append(line)
        lines += logged
        if left_out and not self._said_why:
            self._said_why = True
            lines.append(WHY)
        self._allowance -= allowed
        self._left_out += len(left_out)
        self._latest.extend(left_out)
        return lines

    def _final(self) -> list[str]:
        before = self._left_out - len(self._latest)
        lines = ([_counted(before)] if before else []) + list(map(_text, self._latest))
        self._left_out = 0
        self._latest.clear()
        return lines


def _counted(lines: int) -> str:
    return f"({lines} line{'s' * (lines > 1)} left out)"


def _text(line: bytes) -> str:
    shown = line[:MAX_LINE_BYTES].decode("utf-8", "replace").rstrip()
    return shown + " …" if len(line) > MAX_LINE_BYTES else shown
