"""The table's rows for what clients and tenants may ask for. Taken in by knobs.py; not aware of: models."""

from typing import Annotated

from msgspec import Struct, field

from dlproxy.config.traits import Only
from dlproxy.config.traits import knob as _knob


class HttpLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[http]: what one client may ask of the server."""

    max_header_bytes: Annotated[
        int, _knob("names and values of a request's header fields, in bytes", unit="bytes", log=True, ge=1024, le=1 << 24)
    ] = 32 * 1024
    max_headers: Annotated[int, _knob("header fields of a request", log=True, ge=8, le=1 << 16)] = 100
    max_body_bytes: Annotated[
        int, _knob("body of a request, in bytes (Triton's default)", unit="bytes", log=True, ge=1, le=1 << 36)
    ] = 64 * 1024 * 1024
    max_json_bytes: Annotated[
        int,
        _knob(
            "JSON in a body, in bytes: decoding it blocks all; binary tensors do not", unit="bytes", log=True, ge=1, le=1 << 32
        ),
    ] = 8 * 1024 * 1024
    max_connections: Annotated[int, _knob("connections at a time; one more is answered 503", log=True, ge=1, le=1 << 20)] = 4096
    max_connections_per_address: Annotated[
        int,
        _knob(
            "connections of one address at a time, over all ports; one more is closed at once; an IPv6 /64 counts as one; "
            "0: no limit",
            ge=0,
            le=1 << 20,
        ),
    ] = 1024
    unlimited_addresses: Annotated[
        list[str],
        _knob("addresses and networks for which that does not hold, such as a load balancer's; by default this machine"),
    ] = field(default_factory=lambda: ["127.0.0.0/8", "::1"])
    max_handshakes: Annotated[
        int,
        _knob(
            "TLS handshakes under way at a time, over all ports, a quarter of them with one address; more have to wait",
            log=True,
            ge=1,
            le=1 << 16,
        ),
    ] = 256
    handshake_timeout_s: Annotated[
        float,
        _knob(
            "seconds within which a TLS handshake must be complete; while others wait for its place, 1 second",
            unit="s",
            log=True,
            gt=0,
            le=86400,
        ),
    ] = 10.0
    max_pipelined: Annotated[
        int, _knob("requests of one connection that are worked on at a time", unit="requests", log=True, ge=1, le=1 << 16)
    ] = 32
    header_timeout_s: Annotated[
        float, _knob("seconds within which a begun header must be complete", unit="s", log=True, gt=0, le=86400)
    ] = 10.0
    body_timeout_s: Annotated[
        float, _knob("seconds for a body, on top of its size / min_body_bytes_per_s", unit="s", log=True, gt=0, le=86400)
    ] = 30.0
    min_body_bytes_per_s: Annotated[
        int, _knob("the slowest upload that is waited for", unit="bytes/s", log=True, ge=1, le=1 << 30)
    ] = 16 * 1024
    idle_timeout_s: Annotated[
        float,
        _knob("seconds after which a silent connection is closed (nginx's default)", unit="s", log=True, gt=0, le=86400),
    ] = 75.0
    write_timeout_s: Annotated[
        float, _knob("seconds that a client may leave a reply unread", unit="s", log=True, gt=0, le=86400)
    ] = 30.0
    compress_above_bytes: Annotated[
        int,
        _knob(
            "answers longer than this are compressed for clients that accept it, if they shrink; by default where zstd pays up "
            "to 1 Gbit/s and gzip up to 250 Mbit/s; 0: none",
            unit="bytes",
            ge=0,
            le=1 << 36,
        ),
    ] = 64 * 1024
    cors_origins: Annotated[
        list[str],
        _knob(
            'sites whose pages may ask the inference port from a browser, such as "https://shop.example"; "*": all; empty: none'
        ),
    ] = []


RequestsPerS = Annotated[
    float, _knob("requests per second; more are answered 429; 0: no limit", unit="requests/s", ge=0, le=1e9)
]
RowsPerS = Annotated[float, _knob("rows per second, in all of the requests together; 0: no limit", unit="rows/s", ge=0, le=1e9)]
BurstS = Annotated[
    float,
    _knob(
        "seconds' worth of both that may come at once",
        unit="s",
        log=True,
        only=(Only("requests_per_s", but=(0.0,), alternatives=("rows_per_s",)),),
        gt=0,
        le=3600,
    ),
]
Concurrent = Annotated[
    int, _knob("requests under way at a time; one more is answered 429; 0: no limit", unit="requests", ge=0, le=1 << 30)
]


class TenantConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[tenants.NAME]: what one tenant may ask for; `"*"` stands for each one that is not named."""

    requests_per_s: RequestsPerS = 0.0
    rows_per_s: RowsPerS = 0.0
    burst_s: BurstS = 1.0
    concurrent: Concurrent = 0
    weight: Annotated[
        float,
        _knob("share of a model under the fair discipline, beside tenants of weight 1", log=True, ge=0.001, le=1000),
    ] = 1.0
