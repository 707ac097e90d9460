"""What a worker prints, as lines fit for the log: not too long, not too many, with a note of what was left out.

Called by child.py with the bytes as they come. Not aware of: pipes, processes, the log.
"""

from collections import deque

MAX_LINE_BYTES = 2000
LINES_PER_S = 50.0  # a model that prints for each batch must not fill the disk with it
BURST_LINES = 200.0  # a traceback, or what a framework says when it starts
LAST_LINES = 5


class OutputLines:
    """Cuts bytes into lines. `last`: the last lines of all, those left out too, without the indented ones of a traceback."""

    def __init__(self) -> None:
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._rest = b""
        self._skipping = False  # to the end of a line whose beginning was long enough
        self._left_out = 0
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
        return self._within_allowance(whole)

    def _within_allowance(self, whole: list[bytes]) -> list[str]:
        lines: list[str] = []
        allowed = min(len(whole), int(self._allowance))
        if allowed and self._left_out:
            lines.append(f"({self._left_out} lines left out)")
            self._left_out = 0
        logged = [_text(line) for line in whole[:allowed]]
        for line in (*logged, *map(_text, whole[allowed:][-LAST_LINES:])):
            if line and not line.startswith("  "):
                self.last.append(line)
        self._allowance -= allowed
        self._left_out += len(whole) - allowed
        return lines + [line for line in logged if line]


def _text(line: bytes) -> str:
    shown = line[:MAX_LINE_BYTES].decode("utf-8", "replace").rstrip()
    return shown + " …" if len(line) > MAX_LINE_BYTES else shown
