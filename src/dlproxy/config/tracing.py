"""The table's rows for traces. Taken in by knobs.py; not aware of: spans, models."""

from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Struct

from dlproxy.config.traits import Only
from dlproxy.config.traits import knob as _knob
from dlproxy.config.values import ConfigError

AS_SAID = "auto"  # of `endpoint`


class TracingConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[tracing]: spans of requests, sent to an OpenTelemetry collector."""

    endpoint: Annotated[
        str,
        _knob(
            "where a collector takes OTLP over HTTP, such as http://127.0.0.1:4318; auto: where OTEL_EXPORTER_OTLP_ENDPOINT "
            "says; empty: no request is traced (needs the extra otel)"
        ),
    ] = ""
    sample: Annotated[
        float,
        _knob(
            "share of the requests without a traceparent that are traced; those that have one are if it says so",
            only=(Only("endpoint", but=("",)),),
            ge=0,
            le=1,
        ),
    ] = 0.01
    most_per_s: Annotated[
        float,
        _knob(
            "requests without a traceparent that are traced in a second at most, so that traces never take more than about 1 % "
            "of a core",
            unit="requests/s",
            log=True,
            only=(Only("endpoint", but=("",)),),
            gt=0,
            le=1e6,
        ),
    ] = 20.0


def check_endpoint(endpoint: str) -> None:
    """Raises ConfigError for what is no URL."""
    try:
        parts = urlsplit(endpoint)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if endpoint not in ("", AS_SAID) and not fine:
        message = f"endpoint = {endpoint!r} is no URL; write it like http://127.0.0.1:4318, or {AS_SAID}"
        raise ConfigError(message, "endpoint")
