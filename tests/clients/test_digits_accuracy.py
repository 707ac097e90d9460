"""The held-out digits through a server under 64 concurrent clients give exactly what ONNX Runtime alone gives."""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from tests import models
from tests.clients.raw import RawConnection, RawReply, binary_infer, binary_output, connect, json_infer, json_output
from tests.clients.server import HANG_S, ServerProcess

CLIENTS = 64
ROUNDS = 5

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def images() -> Floats:
    with np.load(models.HELDOUT) as heldout:
        return heldout["images"].astype(np.float32)


@pytest.fixture(scope="module")
def expected(images: Floats) -> Floats:
    """Probabilities of every image alone, from ONNX Runtime itself."""
    session = ort.InferenceSession(str(models.DIGITS), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": images[i : i + 1]})[0] for i in range(len(images))])


async def _ask_all(port: int, requests: Sequence[bytes]) -> list[RawReply]:
    """Every request once, over CLIENTS connections that are all kept busy until none is left."""
    replies: list[RawReply | None] = [None] * len(requests)
    asked: dict[RawConnection, int] = {}
    left = iter(range(len(requests)))
    answered = asyncio.Event()
    missing = len(requests)

    def ask_next(connection: RawConnection) -> None:
        number = next(left, None)
        if number is not None:
            asked[connection] = number
            connection.send(requests[number])

    def on_reply(connection: RawConnection, reply: RawReply) -> None:
        nonlocal missing
        replies[asked[connection]] = reply
        missing -= 1
        if not missing:
            answered.set()
        ask_next(connection)

    connections = [await connect(port, on_reply) for _ in range(CLIENTS)]
    for connection in connections:
        ask_next(connection)
    await asyncio.wait_for(answered.wait(), HANG_S)
    for connection in connections:
        connection.close()
        await connection.ended
    return [reply for reply in replies if reply is not None]


@pytest.mark.parametrize(
    ("encode", "decode"),
    [
        pytest.param(binary_infer, lambda reply: binary_output(reply, np.float32), id="binary"),
        pytest.param(json_infer, json_output, id="json"),
    ],
)
async def test_64_clients_get_what_onnx_runtime_gives(
    server: ServerProcess,
    images: Floats,
    expected: Floats,
    encode: Callable[[str, str, str, Floats], bytes],
    decode: Callable[[RawReply], Floats],
) -> None:
    before = server.stats("digits")
    requests = [encode("digits", "image", "FP32", images[i : i + 1]) for i in range(len(images))]
    replies = await _ask_all(server.http_port, requests * ROUNDS)

    assert {reply.status for reply in replies} == {200}
    got = np.concatenate([decode(reply) for reply in replies]).reshape(ROUNDS, len(images), 10)
    assert (got.argmax(axis=2) == expected.argmax(axis=1)).all()
    assert np.abs(got - expected).max() < 1e-5

    after = server.stats("digits")
    rows = after["inference_count"] - before["inference_count"]
    batches = after["execution_count"] - before["execution_count"]
    assert rows == ROUNDS * len(images)
    # How many wait together depends on how quickly this process asks: 3 to 20 rows, by how busy the machine is.
    assert rows / batches > 1.5, f"{batches} batches for {rows} rows: batches do not form"


async def test_one_request_with_every_image_gives_the_same(server: ServerProcess, images: Floats, expected: Floats) -> None:
    connection = await connect(server.http_port)
    for start in range(0, len(images), 180):
        part = slice(start, start + 180)
        reply = await asyncio.wait_for(connection.ask(binary_infer("digits", "image", "FP32", images[part])), HANG_S)
        assert reply.status == 200
        assert np.abs(binary_output(reply, np.float32) - expected[part]).max() < 1e-5
    connection.close()
    await connection.ended


def test_the_model_reads_digits(images: Floats, expected: Floats) -> None:
    with np.load(models.HELDOUT) as heldout:
        assert (expected.argmax(axis=1) == heldout["labels"]).mean() > 0.98
