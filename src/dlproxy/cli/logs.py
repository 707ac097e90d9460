"""How the server logs to stderr: as lines of text or of JSON, and how much. Called by cli/serve.py.

Not aware of: who logs what.
"""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from dlproxy.config.secrets import hidden
from dlproxy.telemetry.audit_file import AuditFile

_LINES_AND_DIRECTIONS = (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
CONTROL = {
    code: ascii(chr(code))[1:-1]
    for code in (*range(0x20), *range(0x7F, 0xA0), *_LINES_AND_DIRECTIONS)
    if code not in (0x09, 0x0A)
}
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class TextLines(logging.Formatter):
    """As TEXT, without secrets. What is logged may quote a client: no record begins a line but its own first, nor does it tell
    the terminal anything. `colours`: a terminal reads them, which shall see from afar what is no mere information.
    """

    def __init__(self, text: str = TEXT, *, colours: bool = False) -> None:
        super().__init__(text)
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        text = hidden(super().format(record)).translate(CONTROL).replace("\n", "\n    ")
        if not self._colours or record.levelno < logging.WARNING:
            return text
        return f"\x1b[{31 if record.levelno >= logging.ERROR else 33}m{text}\x1b[0m"


class JsonLines(logging.Formatter):
    """One JSON object per record. What an access line says of its request has keys of its own (wire/http/access_log.py)."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        told = {**line, **getattr(record, "request", {})}
        return json.dumps({name: hidden(value) if isinstance(value, str) else value for name, value in told.items()})


def set_up(level: int, *, as_json: bool) -> None:
    """Log whatever is as severe as `level`, and all access lines, since only those who ask for them get any."""
    handler = logging.StreamHandler(sys.stderr)
    colours = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    handler.setFormatter(JsonLines() if as_json else TextLines(colours=colours))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("dlproxy.access").setLevel(logging.INFO)


def audit_to(path: Path, *, most_mb: int, keep: int) -> None:
    """Have the audit log in this file, and not among the other lines. Raises LogError."""
    audit = logging.getLogger("dlproxy.audit")
    audit.addHandler(AuditFile(path, most_mb << 20, keep))
    audit.setLevel(logging.INFO)
    audit.propagate = False
