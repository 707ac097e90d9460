"""Routes of Triton's shared memory extensions. Regions of CUDA memory are refused, as by a Triton without GPUs.

Called by serve/server.py, which gives these rows to OipApp. Not aware of: what is done with regions.
"""

from typing import Any

import msgspec
from msgspec import Struct

from dlproxy.message import Failure, FailureKind, InferenceError, invalid
from dlproxy.wire.http.exchange import Exchange
from dlproxy.wire.http.routes import Row
from dlproxy.wire.regions import Regions

JSON = b"application/json"


class _Register(Struct):
    key: str | None = None
    offset: int = 0
    byte_size: int | None = None


class RegionRoutes:
    """Every route of both kinds of regions."""

    def __init__(self, regions: Regions) -> None:
        self._regions = regions

    def rows(self) -> list[Row]:
        rows: list[Row] = []
        for kind, status, register, unregister in (
            ("system", self._status, self._register, self._unregister),
            ("cuda", self._cuda_status, self._cuda_register, self._cuda_unregister),
        ):
            path = f"/v2/{kind}sharedmemory"
            one = path + "/region/(?P<region>[^/]+)"
            rows += [(path + "/status", b"GET", status), (one + "/status", b"GET", status)]
            rows += [(path + "/unregister", b"POST", unregister, "admin"), (one + "/unregister", b"POST", unregister, "admin")]
            rows += [(path + "/register", b"POST", register, "admin"), (one + "/register", b"POST", register, "admin")]
        return rows

    def _status(self, exchange: Exchange, region: str = "") -> None:
        exchange.reply(200, JSON, msgspec.json.encode(self._regions.status(region)))

    def _register(self, exchange: Exchange, region: str = "") -> None:
        if not region:
            raise invalid("'region name' is necessary to register system shared memory region")
        try:
            asked = msgspec.json.decode(exchange.body, type=_Register)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise invalid(f"the body is not understood: {error}") from None
        if asked.key is None:
            raise invalid("Shared memory register request has no 'key' field")
        if asked.byte_size is None:
            raise invalid("Shared memory register request has no 'byte_size' field")
        self._regions.register(region, asked.key, asked.offset, asked.byte_size)
        exchange.reply(200, JSON, b"")

    def _unregister(self, exchange: Exchange, region: str = "") -> None:
        self._regions.unregister(region)
        exchange.reply(200, JSON, b"")

    def _cuda_status(self, exchange: Exchange, region: str = "") -> None:
        exchange.reply(200, JSON, msgspec.json.encode(cuda_status(self._regions, region)))

    def _cuda_register(self, exchange: Exchange, region: str = "") -> None:
        if not region:
            raise invalid("'region name' is necessary to register cuda shared memory region")
        raise no_cuda(region)

    def _cuda_unregister(self, exchange: Exchange, region: str = "") -> None:
        exchange.reply(200, JSON, b"")


def cuda_status(regions: Regions, name: str) -> list[Any]:
    """Of all regions of CUDA memory: there are none. Raises InferenceError if one is named."""
    if not name:
        return []
    try:
        regions.status(name)
    except InferenceError:
        message = f"Unable to find cuda shared memory region: '{name}'"
    else:
        message = f"The region named '{name}' is registered as system shared memory, not CUDA shared memory"
    raise InferenceError(Failure(FailureKind.NOT_FOUND, message))


def no_cuda(name: str) -> InferenceError:
    """Why a region of CUDA memory is not registered."""
    return invalid(f"failed to register CUDA shared memory region: '{name}', GPUs not supported")
