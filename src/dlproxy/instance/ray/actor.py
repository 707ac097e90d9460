"""One model in an actor of Ray: listens on its node, and runs the batches of the one server that knows its token.

Made by broker.py, runs wherever Ray puts it; what it runs is a Worker, as in worker processes. Not aware of: Ray, event loops.
"""

import hmac
import socket
from collections.abc import Callable
from contextlib import closing

import dlproxy
from dlproxy.instance.process.messages import Done, Load, Order, Report, Run, frame
from dlproxy.instance.process.slots import end_of
from dlproxy.instance.process.worker import Channel, Held, Worker, give_up
from dlproxy.instance.ray.buffers import Buffer

TOKEN_BYTES = 32
GREETING_S = 10.0  # for the server to come, and for a connection to show its token


class ModelActor:
    """`listen`, and then `serve`, which returns when the model is not needed any more."""

    def __init__(self, token: bytes, node: Callable[[], tuple[str, str]]) -> None:
        """`node`: the address and the name of the node that this runs on."""
        self._token = token
        self._node = node

    def listen(self) -> tuple[str, int, str, str]:
        """Host, port, the node's name and the version of dlproxy there."""
        host, name = self._node()
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        return host, self._listener.getsockname()[1], name, dlproxy.__version__

    def serve(self) -> None:
        """Until the server says stop or has gone, or nobody came in time."""
        with self._listener:
            connection = _greeted(self._listener, self._token)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with closing(TensorChannel(connection)) as channel:
            order = channel.receive()
            if not isinstance(order, Load):
                return
            slots = [channel.input, channel.output] = [Buffer(order.max_slot_bytes), Buffer(order.max_slot_bytes)]
            try:
                worker = Worker(channel, slots, Held(order))
            except Exception as error:
                give_up(channel, "", error)
                return
            worker.serve()


def _greeted(listener: socket.socket, token: bytes) -> socket.socket:
    """The first connection that begins with the token. Raises TimeoutError."""
    listener.settimeout(GREETING_S)
    while True:
        connection, _ = listener.accept()
        try:
            connection.settimeout(GREETING_S)
            if hmac.compare_digest(connection.recv(TOKEN_BYTES, socket.MSG_WAITALL), token):
                connection.settimeout(None)
                return connection
        except OSError:  # it was slow, or has gone: not who is waited for
            pass
        connection.close()


class TensorChannel(Channel):
    """A Channel over which tensors come behind their Run, and go behind their Done."""

    input: Buffer
    output: Buffer

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)

    def close(self) -> None:
        self._socket.close()

    def receive(self) -> Order | None:
        try:
            return self._received()
        except ConnectionError:  # the server has gone
            return None

    def _received(self) -> Order | None:
        head = self._socket.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            return None
        length = int.from_bytes(head, "little")
        payload = bytearray(length)
        if not self._fill(memoryview(payload)):
            return None
        (order,) = self._frames.feed(head + payload)
        if isinstance(order, Run):
            self.input.follow(order.input_bytes)
            assert self.input.memory is not None
            if not self._fill(memoryview(self.input.memory)[: end_of(order.inputs)]):
                return None
        return order  # type: ignore[no-any-return]

    def _fill(self, memory: memoryview) -> bool:
        """False if the server has gone meanwhile."""
        at = 0
        while at < len(memory):
            count = self._socket.recv_into(memory[at:])
            if not count:
                return False
            at += count
        return True

    def send(self, report: Report) -> None:
        """Who does not listen any more is noticed when there is nothing more to receive."""
        pieces = [memoryview(frame(report))]
        if isinstance(report, Done) and report.outputs:
            assert self.output.memory is not None
            pieces.append(memoryview(self.output.memory)[: end_of(report.outputs)])
        try:
            if sum(map(len, pieces)) <= SMALL_BYTES:
                self._socket.sendall(b"".join(pieces))
                return
            for piece in pieces:
                self._socket.sendall(piece)
        except ConnectionError:
            pass


SMALL_BYTES = 1 << 16  # one packet on the loopback, and one call
