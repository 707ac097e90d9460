"""Routes of Triton's logging and trace extensions. Called by serve/server.py, which gives these rows to OipApp.

Not aware of: what settings mean.
"""

from typing import Any

import msgspec

from dlproxy.message import invalid
from dlproxy.wire.http_exchange import Exchange
from dlproxy.wire.http_routes import Row
from dlproxy.wire.settings import LogSettings, TraceSettings


class SettingRoutes:
    """Each shows its settings; POST changes some before."""

    def __init__(self, logs: LogSettings, trace: TraceSettings) -> None:
        self._logs = logs
        self._trace = trace

    def rows(self) -> list[Row]:
        of_model = "/v2/models/(?P<name>[^/]+)/trace/setting"
        return [
            ("/v2/logging", b"GET", self._show_logs),
            ("/v2/logging", b"POST", self._change_logs, "admin"),
            ("/v2/trace/setting", b"GET", self._show_trace),
            ("/v2/trace/setting", b"POST", self._change_trace, "admin"),
            (of_model, b"GET", self._show_trace),
            (of_model, b"POST", self._change_trace, "admin"),
        ]

    def _show_logs(self, exchange: Exchange) -> None:
        exchange.reply(200, b"application/json", msgspec.json.encode(self._logs.show()))

    def _change_logs(self, exchange: Exchange) -> None:
        self._logs.change(_settings(exchange))
        self._show_logs(exchange)

    def _show_trace(self, exchange: Exchange, name: str = "") -> None:
        exchange.reply(200, b"application/json", msgspec.json.encode(self._trace.show(name)))

    def _change_trace(self, exchange: Exchange, name: str = "") -> None:
        self._trace.change(_settings(exchange), name)
        self._show_trace(exchange, name)


def _settings(exchange: Exchange) -> dict[str, Any]:
    try:
        return msgspec.json.decode(exchange.body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the body is not a JSON object of settings: {error}") from None
