"""Unary gRPC methods whose calls wait for models that are loaded on demand. Called by services.

Not aware of: what a method does, how models are loaded.
"""

from math import inf

from dlproxy.wire.catalog import Catalog, NotServedError
from dlproxy.wire.grpc.call import Call
from dlproxy.wire.grpc.server import Unary
from dlproxy.wire.terms import DEADLINE, deadline_of, in_milliseconds
from dlproxy.wire.waiting import answer_once_up


def once_up(catalog: Catalog, method: Unary) -> Unary:
    """The same method, which is called again when the model is up for lack of which it raised NotServedError."""

    def answer(call: Call, message: bytes) -> None:
        def again(left_s: float) -> None:
            if left_s < inf:
                call.headers = {**call.headers, DEADLINE: in_milliseconds(left_s)}
            method(call, message)

        try:
            method(call, message)
        except NotServedError as missing:
            answer_once_up(
                catalog.waiting, missing, call, again, timeout_s=lambda: deadline_of(call.headers), size_bytes=len(message)
            )

    return answer
