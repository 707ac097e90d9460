"""What one model was seen to do under which knobs, and what was decided: JSON lines of which agents are trained again.

Held by flight.py, read by lab/learn. Not aware of: training.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from dlproxy.policy.tuning.pilot import Decision
from dlproxy.policy.tuning.protocol import Knobs, Space
from dlproxy.policy.tuning.window import Window, joined

EVERY = 10  # windows in a line, or as many as passed under the same knobs
LINES = 12  # that are written at once
MOST_BYTES = 1 << 24  # then the file is put aside as FILE.1, and the one before that is dropped
ENDING = ".tuning.jsonl"

log = logging.getLogger(__name__)


class Records:
    """A file in this folder. What cannot be written is logged once, and lost."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}{ENDING}"
        self._windows: list[Window] = []
        self._knobs: Knobs = {}
        self._lines: list[Any] = []
        self._failed = False

    def window(self, window: Window, knobs: Knobs, space: Space) -> bool:
        """Whether there is enough to be written."""
        if self._windows and (len(self._windows) >= EVERY or dict(knobs) != self._knobs):
            self._end(space)
        self._windows.append(window)
        self._knobs = dict(knobs)
        return len(self._lines) >= LINES

    def decision(self, decision: Decision) -> None:
        changes: Mapping[str, Sequence[Any]] = decision.changes
        self._lines.append({"time": _now(), "kind": decision.kind, "reason": decision.reason, "changes": changes})

    def write(self) -> None:
        """On any thread, one at a time."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and self.path.stat().st_size > MOST_BYTES:
                os.replace(self.path, f"{self.path}.1")
            with self.path.open("ab") as file:
                file.write(b"".join([msgspec.json.encode(line) + b"\n" for line in lines]))
        except OSError as error:
            if not self._failed:
                log.error("%s cannot be written, which agents would be trained on: %s", self.path, error.strerror or error)
            self._failed = True

    def _end(self, space: Space) -> None:
        bounds = msgspec.structs.replace(space, pinned=frozenset(), closed=frozenset())
        window = joined(self._windows)
        self._lines.append({"time": _now(), "window": window, "knobs": self._knobs, "space": bounds})
        self._windows = []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
