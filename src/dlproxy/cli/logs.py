"""How the server logs to stderr: as lines of text or of JSON, and how much. Called by cli/serve.py.

Not aware of: who logs what.
"""

import json
import logging
import sys
from datetime import UTC, datetime

from dlproxy.config.secrets import hidden

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class TextLines(logging.Formatter):
    """As TEXT, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return hidden(super().format(record))


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
    handler.setFormatter(JsonLines() if as_json else TextLines(TEXT))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("dlproxy.access").setLevel(logging.INFO)
