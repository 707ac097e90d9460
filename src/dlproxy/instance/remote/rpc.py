"""One gRPC call as bytes: what is asked and what came back. Made by the gRPC codecs and grpc_channel.py.

Not aware of: the gRPC library, what the messages hold.
"""

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError, Message
from msgspec import Struct

from dlproxy.instance.remote.failures import UpstreamError, grpc_refusal

OK = "OK"
Part = bytes | memoryview


class Rpc(Struct, frozen=True):
    """`method`: /package.Service/Method. `parts`: the message, to be sent in turn. `deadline_s`: told to the server.

    `metadata`: beside what every call has.
    """

    method: str
    parts: Sequence[Part]
    deadline_s: float | None = None
    metadata: Sequence[tuple[str, str]] = ()


class RpcReply(Struct):
    """`status`: the name of the gRPC status. `words`: what came with it, where it is not OK. `cache`: what a result cache had
    to do with it, `variant`: the model that answered in place of the one asked for, `load`: what a node says of itself, as the
    end of the call has them.
    """

    status: str
    message: bytes = b""
    words: str = ""
    cache: str = ""
    variant: str = ""
    load: str = ""

    def refusal(self) -> UpstreamError | None:
        """What another status than OK says."""
        return None if self.status == OK else grpc_refusal(self.status, self.words)


def parsed(kind: type[Message], message: bytes) -> Any:
    """Raises UpstreamError for what is none of this kind."""
    try:
        return kind.FromString(message)
    except DecodeError:
        raise UpstreamError(f"the upstream's answer cannot be read as {kind.DESCRIPTOR.full_name}") from None
