"""Methods for operators, whose answers are told to the audit log. Used by services.py. Not aware of: what a method does."""

from typing import Any

from google.protobuf.message import DecodeError

from dlproxy.message import Response
from dlproxy.protos.oip import oip
from dlproxy.wire.grpc.call import Call, Status
from dlproxy.wire.grpc.messages import Piece
from dlproxy.wire.grpc.server import Unary

NAMING = {b"RepositoryModelLoad": oip.RepositoryModelLoadRequest, b"RepositoryModelUnload": oip.RepositoryModelUnloadRequest}


def audited(path: bytes, method: Unary) -> Unary:
    """The same, but its answer is told."""
    whats: dict[Call, str] = {}

    class Telling(Call):
        __slots__ = ()

        def reply(self, *message: Piece, of: Response | None = None) -> None:
            super().reply(*message, of=of)
            self._tell("answered OK")

        def end(self, status: Status = Status.OK, message: str = "", extra: tuple[tuple[bytes, bytes], ...] = ()) -> None:
            super().end(status, message, extra)
            self._tell(f"answered {status.name}: {message}")

        def _tell(self, outcome: str) -> None:
            what = whats.pop(self, "")
            if what:
                self.connection.server.audit.deed(self.principal, self.connection.address, what, outcome)

    def handle(call: Call, message: bytes) -> None:
        whats[call] = _what(path, message)
        call.__class__ = Telling
        method(call, message)

    return handle


def _what(path: bytes, message: bytes) -> str:
    shown, kind = path.decode("latin-1"), NAMING.get(path.rpartition(b"/")[2])
    if kind is None:
        return shown
    try:
        asked: Any = kind.FromString(message)
    except DecodeError:
        return shown
    return f"{shown} {asked.model_name}"
