"""The sockets that a server listens on: bound before models load, so that a taken port is reported at once.

Called by server.py and gateways/. Not aware of: what is served on them.
"""

import errno
import logging
import socket
from collections.abc import Mapping
from typing import Self

from dlproxy.config import ServerConfig
from dlproxy.config.server import GRPC_PORT
from dlproxy.hosts import authority, plain_host
from dlproxy.serve.unix_socket import UnixSocket

log = logging.getLogger(__name__)


class PortError(Exception):
    """A port that cannot be listened on; the message says which and what to do."""


class Listeners:
    """Bound sockets by the knobs that name them, closed at the end of the `with` unless they were taken out.

    `shared`: other processes will bind the same ports (`beside`). Raises PortError.
    """

    def __init__(self, server: ServerConfig, *, shared: bool = False) -> None:
        self._host, self._shared = server.host, shared
        self._sockets: dict[str, socket.socket] = {}
        self.unix_socket = _unix_socket(server.uds) if server.uds else None
        try:
            if self.unix_socket is not None:
                self._sockets["uds"] = self.unix_socket.listener
            else:
                self._bind("http_port", server.http_port)
            self._sockets["control_port"] = bind(server.host, server.control_port, "control_port")
            if server.grpc != "off":
                self._bind_grpc(server)
            if server.tfs:
                self._bind("tfs_grpc_port", server.tfs_grpc_port)
                self._bind("tfs_http_port", server.tfs_http_port)
        except PortError:
            self.__exit__()
            raise
        self.ports: dict[str, int] = {
            knob: listener.getsockname()[1] for knob, listener in self._sockets.items() if knob != "uds"
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self._sockets.values():
            listener.close()
        if self._sockets and self.unix_socket is not None:
            self.unix_socket.remove()

    def _bind(self, knob: str, port: int) -> None:
        listener = bind(self._host, port, knob)
        if self._shared:  # that one has shown that nobody else has the port, which a shared one would not
            port = listener.getsockname()[1]
            listener.close()
            listener = bind(self._host, port, knob, shared=True)
        self._sockets[knob] = listener

    def _bind_grpc(self, server: ServerConfig) -> None:
        by_default = server.grpc == "auto" and server.grpc_port == GRPC_PORT
        port = 0 if by_default and server.http_port == 0 else server.grpc_port
        try:
            self._bind("grpc_port", port)
        except PortError as error:
            if not by_default:
                raise
            log.warning("gRPC is off: %s", error)

    def beside(self) -> dict[str, socket.socket]:
        """The inference sockets once more, for another process: the kernel shares new connections out among them.

        A Unix socket is one for all. Raises PortError.
        """
        assert self._shared
        found = {}
        for knob, listener in self._sockets.items():
            if knob == "uds":
                found[knob] = listener.dup()
            elif knob != "control_port":
                found[knob] = bind(self._host, self.ports[knob], knob, shared=True)
        return found

    def take_control(self) -> socket.socket:
        """That of the control port, which is not shared."""
        return self._sockets.pop("control_port")

    def take(self) -> dict[str, socket.socket]:
        """Hand the sockets over to the servers."""
        taken_out, self._sockets = self._sockets, {}
        return taken_out


class GivenListeners:
    """The same for a process that was given its sockets, whose Unix socket's file is somebody else's. See Listeners."""

    unix_socket = None

    def __init__(self, sockets: Mapping[str, socket.socket]) -> None:
        self._sockets = dict(sockets)
        self.ports = {
            knob: listener.getsockname()[1] for knob, listener in sockets.items() if listener.family != socket.AF_UNIX
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for listener in self._sockets.values():
            listener.close()

    def take(self) -> dict[str, socket.socket]:
        """As Listeners has it."""
        taken_out, self._sockets = self._sockets, {}
        return taken_out


def taken(host: str, port: int, error: OSError, knob: str) -> PortError:
    """With what to do about it."""
    option = f"--{knob.replace('_', '-')}"
    hint = f"; is another server running? {option} 0 picks a free port" if error.errno == errno.EADDRINUSE else ""
    return PortError(f"cannot listen on {authority(host, port)}: {error.strerror}{hint}")


def _unix_socket(path: str) -> UnixSocket:
    try:
        return UnixSocket(path)
    except OSError as error:
        raise PortError(f"cannot listen on {path}: {error.strerror or error}") from None


def bind(host: str, port: int, knob: str, *, shared: bool = False) -> socket.socket:
    """A socket that is bound. `knob`: its option's name, for messages. Raises PortError."""
    try:
        found = socket.getaddrinfo(plain_host(host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PortError(f"cannot listen on {authority(host, port)}: {error.strerror or error}") from None
    try:
        if port:  # of those that are free, the system would choose one that another process is about to listen on
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise taken(host, port, error, knob) from None
    return listener
