"""gRPC calls for models that are loaded on demand: they are answered when the model is up. Called by services.

Not aware of: what a method does, how models are loaded.
"""

import asyncio
from math import inf

from dlproxy.message import InferenceError
from dlproxy.wire.catalog import Catalog, NotServedError
from dlproxy.wire.grpc.call import Call
from dlproxy.wire.grpc.server import Unary
from dlproxy.wire.terms import DEADLINE, deadline_of
from dlproxy.wire.waiting import Waiting

TRIES = 3  # a model that was up may be gone again


def once_up(catalog: Catalog, method: Unary) -> Unary:
    """The same method, for whose NotServedError a call waits where that may help."""

    def answer(call: Call, message: bytes, tries: int = TRIES) -> None:
        try:
            method(call, message)
        except NotServedError as missing:
            waiting = catalog.waiting
            if waiting is None or not tries or not waiting.may_come(missing.name, missing.version):
                raise
            task = asyncio.get_running_loop().create_task(answer_later(waiting, missing, call, message, tries))
            call.on_abandoned = task.cancel

    async def answer_later(waiting: Waiting, missing: NotServedError, call: Call, message: bytes, tries: int) -> None:
        try:
            left_s = await waiting.until_up(missing, deadline_of(call.headers), len(message))
            if left_s < inf:
                call.headers = {**call.headers, DEADLINE: b"%.6f" % max(left_s * 1e3, 1e-6)}
            answer(call, message, tries - 1)
        except InferenceError as error:
            call.refuse(error.failure)
        except Exception:
            call.give_up()

    return answer
