"""What is logged, as operators change it; and Triton's logging and trace settings as far as they are true here, for clients.

Called by control/http.py, oip/settings_http.py and grpc/settings.py. Logging is Python's. Nothing is traced as Triton does it.
"""

import difflib
import logging
from collections.abc import Mapping
from reprlib import repr as brief  # bounds the length: the value is somebody else's
from typing import Any

from dlproxy.config import ConfigError
from dlproxy.message import Failure, FailureKind, InferenceError, invalid
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.http import access_log

SEVERITIES = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
TRACE = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
"""Triton's own, as it starts: of a server that traces nothing."""


class _Muted(logging.Filter):
    """Keeps back the severities that are switched off between others that are not. Access lines come if they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: set[int] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name == access_log.log.name or min(record.levelno, logging.ERROR) // 10 * 10 not in self.levels


LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
DEFAULT = "default"


class LogLevels:
    """How severe what is logged is at least: of all, and of single loggers with those below them. What `-v` and `-q` say at
    start is the default.
    """

    def __init__(self) -> None:
        self._root = logging.getLogger()
        self._at_start = self._root.level
        self._loggers: dict[str, str] = {}

    def show(self) -> dict[str, Any]:
        level = self._root.level
        name = next((name for name, number in LEVELS.items() if number >= level), "none")
        return {"level": name, "loggers": dict(self._loggers)}

    def change(self, level: str, logger: str = "") -> None:
        """From now on; `default` takes back what was said here. Raises ConfigError."""
        if level not in (*LEVELS, DEFAULT):
            raise ConfigError(f"there is no level {brief(level)}; there are {', '.join(LEVELS)}, and {DEFAULT}")
        known = self._root.manager.loggerDict
        if logger and logger not in known:
            near = difflib.get_close_matches(logger, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "they are named like dlproxy.serve or dlproxy.fleet.local"
            raise ConfigError(f"there is no logger {brief(logger)}; {hint}")
        if not logger:
            self._root.setLevel(LEVELS.get(level, self._at_start))
        else:
            logging.getLogger(logger).setLevel(LEVELS.get(level, logging.NOTSET))
            self._loggers.pop(logger, None)
            if level != DEFAULT:
                self._loggers[logger] = level
        for handler in self._root.handlers:  # what clients have switched off comes if an operator wants it
            for muted in handler.filters:
                if isinstance(muted, _Muted):
                    muted.levels = {one for one in muted.levels if one < LEVELS.get(level, self._at_start)}


class LogSettings:
    """What is logged. `may_change`: whether clients may say so."""

    def __init__(self, *, may_change: bool) -> None:
        self.may_change = may_change
        self._root = logging.getLogger()
        self._muted = _Muted()
        self._verbose = 0  # the number that a client has set: there is one level of details here

    def show(self) -> dict[str, Any]:
        levels = {name: self._is_on(level) for name, level in SEVERITIES.items()}
        verbose = max(self._verbose, 1) if self._is_on(logging.DEBUG) else 0
        return {"log_file": "", **levels, "log_verbose_level": verbose, "log_format": "default"}

    def change(self, asked: Mapping[str, Any]) -> None:
        """All of it or, if something is wrong, nothing. None leaves a setting as it is. Raises InferenceError."""
        now = self.show()
        wanted = {name: value for name, value in asked.items() if value is not None}
        for name, value in wanted.items():
            _check_log_setting(name, value)
        changes = {name: value for name, value in wanted.items() if value != now[name]}
        if not changes:
            return
        if not self.may_change:
            message = "log settings cannot be changed by clients of this server ([server] client_log_settings allows it)"
            raise InferenceError(Failure(FailureKind.FORBIDDEN, message))
        self._apply({**now, **changes})

    def _is_on(self, level: int) -> bool:
        return self._root.isEnabledFor(level) and level not in self._muted.levels

    def _apply(self, settings: Mapping[str, Any]) -> None:
        self._verbose = settings["log_verbose_level"]
        on = {logging.DEBUG: bool(self._verbose), **{level: settings[name] for name, level in SEVERITIES.items()}}
        lowest = min((level for level, is_on in on.items() if is_on), default=logging.CRITICAL + 1)
        self._muted.levels = {level for level, is_on in on.items() if not is_on}
        for handler in self._root.handlers:
            handler.addFilter(self._muted)
        self._root.setLevel(lowest)


class TraceSettings:
    """What is traced: nothing, and no setting that would change that is taken."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def show(self, model: str = "") -> dict[str, Any]:
        """Of one model, or of all. Raises InferenceError for a model that there is not."""
        if model and not self._catalog.versions(model):
            raise invalid(f"Request for unknown model : {model}")
        return TRACE

    def change(self, asked: Mapping[str, Any], model: str = "") -> None:
        """What is the case already may be asked for; None puts back what is. Raises InferenceError."""
        self.show(model)
        if "trace_file" in asked:
            message = "trace file location can not be updated through network protocol"
            raise InferenceError(Failure(FailureKind.UNSUPPORTED, message))
        for name, value in asked.items():
            if name not in TRACE:
                raise invalid(f"there is no trace setting '{name}'; there are {', '.join(TRACE)}")
            if value is not None and value != TRACE[name]:
                why = f"this server does not trace requests: {name} can only be {TRACE[name]}"
                raise invalid(f"Attempting to set invalid trace setting :{why}")


def _check_log_setting(name: str, value: Any) -> None:
    if name == "log_file":
        message = "log file location can not be updated through network protocol"
        raise InferenceError(Failure(FailureKind.UNSUPPORTED, message))
    if name in SEVERITIES:
        if not isinstance(value, bool):
            raise invalid(f"expect boolean for '{name}'")
    elif name == "log_verbose_level":
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
            raise invalid(f"expect int32 for '{name}', not below 0")
    elif name == "log_format":
        if value not in ("default", "ISO8601"):
            raise invalid(f"invalid argument for log_format, got: {value}")
        if value != "default":
            raise invalid("the format of log lines is set when the server starts (--log-format)")
    else:
        raise invalid(f"there is no log setting '{name}'; there are {', '.join(SEVERITIES)}, log_verbose_level, log_format")
