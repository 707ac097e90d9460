"""Asks a dlproxy with the models of models.py through the clients of KServe's SDK, in an environment that has it.

`python kserve_client.py HTTP_PORT GRPC_PORT`, run by test_kserve.py; an assertion fails if an answer is wrong.
"""

import asyncio
import sys
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig  # type: ignore
from kserve.protocol.infer_type import RequestedOutput  # type: ignore[import-not-found]

A = np.arange(8, dtype=np.float32).reshape(2, 4)


def given(name: str, array: Any, datatype: str, *, binary: bool) -> Any:
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def pair(*, binary: bool, model: str = "add_sub") -> Any:
    inputs = [given(name, A, "FP32", binary=binary) for name in "AB"]
    outputs = [RequestedOutput(name, {"binary_data": binary}) for name in ("SUM", "DIFF")]
    return InferRequest(model_name=model, infer_inputs=inputs, request_id="k-1", request_outputs=outputs)


def check_pair(response: Any) -> None:
    assert response.id == "k-1"
    found = {output.name: output.as_numpy().tolist() for output in response.outputs}
    assert found == {"SUM": (A + A).tolist(), "DIFF": (A - A).tolist()}


async def over_rest(base: str) -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v2"))
    assert await client.is_server_live(base)
    assert await client.is_server_ready(base)
    assert await client.is_model_ready(base, "add_sub")
    assert not await client.is_model_ready(base, "nobody")
    for binary in (False, True):
        check_pair(await client.infer(base, pair(binary=binary), model_name="add_sub"))
    half = given("X", np.array([[1, 2]], np.float16), "FP16", binary=True)
    outputs = [RequestedOutput("Y", {"binary_data": True})]
    request = InferRequest(model_name="half", infer_inputs=[half], request_outputs=outputs)
    assert (await client.infer(base, request, model_name="half")).outputs[0].as_numpy().tolist() == [[1, 2]]
    await refused(client.infer(base, pair(binary=True, model="nobody"), model_name="nobody"))
    await client.close()


async def over_grpc(port: str) -> None:
    client = InferenceGRPCClient(url=f"127.0.0.1:{port}")
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("add_sub")
    assert not await client.is_model_ready("nobody")
    for binary in (False, True):
        check_pair(await client.infer(pair(binary=binary)))
    text = given("TEXT", np.array([["ab", "c"]], object), "BYTES", binary=False)
    response = await client.infer(InferRequest(model_name="upper", infer_inputs=[text]))
    assert response.outputs[0].as_numpy().tolist() == [[b"AB", b"C"]]
    await refused(client.infer(pair(binary=True, model="nobody")))
    await client.close()


async def over_v1(base: str) -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v1"))
    assert await client.is_server_live(base)
    assert await client.is_model_ready(base, "add_sub")
    answer = await client.infer(base, {"instances": [[3, 4]]}, model_name="wide")
    assert answer == {"predictions": [[3, 4]]}
    rows = {"instances": [{"A": [1, 2, 3, 4], "B": [1, 1, 1, 1]}]}
    answer = await client.infer(base, rows, model_name="add_sub")
    assert answer == {"predictions": [{"SUM": [2, 3, 4, 5], "DIFF": [0, 1, 2, 3]}]}
    explained = await client.explain(base, "varied", {"instances": [[3, 4]]})
    assert "explanations" in explained, explained
    await refused(client.infer(base, {"instances": [[3]]}, model_name="wide"))
    await client.close()


async def refused(asking: Any) -> None:
    (error,) = await asyncio.gather(asking, return_exceptions=True)
    assert isinstance(error, Exception), "it was answered"
    assert "Request for unknown model: 'nobody'" in str(error) or "400" in str(error)


async def main(http_port: str, grpc_port: str) -> None:
    base = f"http://127.0.0.1:{http_port}"
    await over_rest(base)
    await over_grpc(grpc_port)
    await over_v1(base)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
