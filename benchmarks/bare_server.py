"""The yardstick: the least work that answers a batch-1 binary request of the Open Inference Protocol from Python.

    python benchmarks/bare_server.py mlp.onnx 9001 [--model-name mlp] [--output output]

It trusts its clients: no routes, checks, limits, metrics or errors. What dlproxy loses to it is the price of those.
"""

import argparse
import asyncio
from pathlib import Path
from typing import cast

import httptools
import msgspec
import numpy as np
import onnxruntime
import uvloop
from numpy.typing import NDArray

MAX_BATCH = 64
JSON_LENGTH_HEADER = b"inference-header-content-length"
REPLY_HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"content-type: application/octet-stream\r\n"
    b"inference-header-content-length: %d\r\n"
    b"content-length: %d\r\n"
    b"\r\n"
)

Rows = NDArray[np.float32]


class RequestInput(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str


class RequestHeader(msgspec.Struct):
    inputs: list[RequestInput]


class Model:
    """Runs whatever arrived during the last turn of the event loop as one batch, on the loop itself."""

    def __init__(self, path: Path, model_name: str, output: str | None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.input_name = self.session.get_inputs()[0].name
        outputs = {found.name: found for found in self.session.get_outputs()}
        self.output_name = output or next(iter(outputs))
        self.reply_json = self._reply_json(model_name, outputs[self.output_name].shape[1:])
        self.waiting: list[tuple[Connection, Rows]] = []
        self.scheduled = False

    def _reply_json(self, model_name: str, row_shape: list[int]) -> bytes:
        described = {
            "name": self.output_name,
            "shape": [1, *row_shape],
            "datatype": "FP32",
            "parameters": {"binary_data_size": int(np.prod(row_shape)) * 4},
        }
        return msgspec.json.encode({"model_name": model_name, "model_version": "1", "outputs": [described]})

    def submit(self, connection: "Connection", row: Rows) -> None:
        self.waiting.append((connection, row))
        if not self.scheduled:
            self.scheduled = True
            asyncio.get_running_loop().call_soon(self.run_batch)

    def run_batch(self) -> None:
        batch, self.waiting = self.waiting[:MAX_BATCH], self.waiting[MAX_BATCH:]
        self.scheduled = bool(self.waiting)
        if self.scheduled:
            asyncio.get_running_loop().call_soon(self.run_batch)
        stacked = np.concatenate([row for _, row in batch])
        results = self.session.run([self.output_name], {self.input_name: stacked})[0]
        for (connection, _), result in zip(batch, results, strict=True):
            connection.answer(result)


class Connection(asyncio.Protocol):
    decode_header = msgspec.json.Decoder(RequestHeader).decode

    def __init__(self, model: Model) -> None:
        self.model = model
        self.body_parts: list[bytes] = []
        self.json_length = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are alike, but not of that class
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == len(JSON_LENGTH_HEADER) and name.lower() == JSON_LENGTH_HEADER:
            self.json_length = int(value)

    def on_body(self, body: bytes) -> None:
        self.body_parts.append(body)

    def on_message_complete(self) -> None:
        body = self.body_parts[0] if len(self.body_parts) == 1 else b"".join(self.body_parts)
        self.body_parts.clear()
        shape = self.decode_header(body[: self.json_length]).inputs[0].shape
        self.model.submit(self, np.frombuffer(body, np.float32, offset=self.json_length).reshape(shape))

    def answer(self, result: Rows) -> None:
        if self.transport.is_closing():  # the client left while its request was in the batch
            return
        head, data = self.model.reply_json, result.tobytes()
        self.transport.write(REPLY_HEAD % (len(head), len(head) + len(data)) + head + data)


async def serve(model: Model, port: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Connection(model), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="The least server that answers inference requests.")
    parser.add_argument("model", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--model-name", help="name in the replies (default: the file's name)")
    parser.add_argument("--output", help="output to answer with (default: the model's first)")
    arguments = parser.parse_args()
    model = Model(arguments.model, arguments.model_name or arguments.model.stem, arguments.output)
    uvloop.run(serve(model, arguments.port))


if __name__ == "__main__":
    main()
