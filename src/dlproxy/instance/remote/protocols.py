"""Which codec and which channel an address means. Called by remote.py. gRPC is imported only here, once an address asks for it.

Not aware of: instances.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dlproxy.instance.remote.address import Address
from dlproxy.instance.remote.channel import Channel
from dlproxy.instance.remote.codec import Codec
from dlproxy.instance.remote.http_channel import HttpChannel
from dlproxy.instance.remote.oip import OipCodec
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.remote.tfs import TfsCodec
from dlproxy.instance.runtime import ModelError


def codec_for(address: Address, settings: RemoteSettings) -> Codec[Any, Any]:
    """Raises ModelError for headers that cannot be sent, and for gRPC without its extra."""
    if address.transport == "http":
        return OipCodec(address, settings) if address.protocol == "oip" else TfsCodec(address, settings)
    with _extra(address):
        from dlproxy.instance.remote.oip_grpc import OipGrpcCodec
        from dlproxy.instance.remote.tfs_grpc import TfsGrpcCodec
    return OipGrpcCodec(address, settings) if address.protocol == "oip" else TfsGrpcCodec(address, settings)


def channel_for(address: Address, settings: RemoteSettings, on_dropped: Callable[[], None]) -> Channel[Any, Any]:
    """`on_dropped`: a kept connection was closed by the server.

    Raises ModelError as `codec_for`, and for authorities that cannot be loaded.
    """
    if address.transport == "http":
        return HttpChannel(address, settings, on_dropped)
    with _extra(address):
        from dlproxy.instance.remote.grpc_channel import GrpcChannel
    return GrpcChannel(address, settings, on_dropped)


@contextmanager
def _extra(address: Address) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("google", "grpc"):
            raise
        raise ModelError(
            f"upstream {address.authority}{address.path} is asked by gRPC, which needs a package that is not installed: "
            "pip install 'dlproxy[grpc]'"
        ) from None
