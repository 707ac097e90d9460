"""`dlproxy serve` in front of other servers: a second dlproxy, a gRPC server. Real processes, as a user starts them."""

import asyncio
import signal
from typing import Any

import numpy as np

from dlproxy.testing import FakeRuntime
from tests import models
from tests.clients.server import HANG_S, ServerProcess, asked
from tests.instance.remote_grpc import GrpcUpstream
from tests.instance.test_remote import PAIR, double


def _ask(port: int, path: str, body: Any = None) -> tuple[int, Any]:
    told = asked(f"http://127.0.0.1:{port}{path}", body)
    return told.status, told.json


def _infer(name: str, rows: Any) -> dict[str, Any]:
    array = np.asarray(rows, np.float32)
    return {"inputs": [{"name": name, "datatype": "FP32", "shape": array.shape, "data": array.ravel().tolist()}]}


def test_two_dlproxys_in_a_row_answer_as_the_last_one_does() -> None:
    with np.load(models.HELDOUT) as heldout:
        images = heldout["images"][:3].astype(np.float32)
    with ServerProcess(f"digits={models.DIGITS}") as inner:
        address = f"http://{inner.address}/v2/models/digits"
        with ServerProcess(f"front={address}", f"again={address}/versions/1") as outer:
            (_, straight), (_, described) = (
                _ask(inner.http_port, "/v2/models/digits"),
                _ask(outer.http_port, "/v2/models/front"),
            )
            assert (described["inputs"], described["outputs"]) == (straight["inputs"], straight["outputs"])
            question = _infer(straight["inputs"][0]["name"], images)
            expected = _ask(inner.http_port, "/v2/models/digits/infer", question)[1]["outputs"]
            for model in ("front", "again"):
                status, answer = _ask(outer.http_port, f"/v2/models/{model}/infer", question)
                assert (status, answer["outputs"]) == (200, expected)
            assert _ask(outer.http_port, "/v2/models/front/infer", _infer("nothing", images))[0] == 400

            inner.send_signal(signal.SIGKILL)
            inner.wait()
            status, answer = _ask(outer.http_port, "/v2/models/front/infer", question)
            assert status == 503
            assert answer["error"]
            assert _ask(outer.http_port, "/v2/health/ready")[0] == 503
            assert outer.stop() == 0


async def test_dlproxy_serves_what_a_grpc_server_runs() -> None:
    upstream = GrpcUpstream(FakeRuntime(PAIR, double), max_batch=16)
    await upstream.start()
    paths = [f"oip={upstream.url}", f"tfs={upstream.address(protocol='v1')}"]
    outer = await asyncio.to_thread(ServerProcess, *paths)
    try:
        for model in ("oip", "tfs"):
            path = f"/v2/models/{model}/infer"
            status, answer = await asyncio.to_thread(_ask, outer.http_port, path, _infer("x", [[1, 2], [3, 4]]))
            assert (status, answer["outputs"][0]["data"]) == (200, [2, 4, 6, 8])
        many = [[row, row] for row in range(40)]
        status, answer = await asyncio.to_thread(_ask, outer.http_port, "/v2/models/oip/infer", _infer("x", many))
        assert (status, answer["outputs"][0]["shape"]) == (200, [40, 2]), "in parts of 16 rows at most"

        await upstream.stop()
        await _until_ready(outer, False)
        await upstream.start()
        await _until_ready(outer, True)
        status, _ = await asyncio.to_thread(_ask, outer.http_port, "/v2/models/oip/infer", _infer("x", [[1, 2]]))
        assert status == 200
        assert await asyncio.to_thread(outer.stop) == 0
        lines = outer.errors().splitlines()
        assert [line for line in lines if " dlproxy." not in line] == [], "gRPC wrote to the terminal"
    finally:
        await asyncio.to_thread(outer.__exit__, None, None, None)
        await upstream.stop()


async def _until_ready(server: ServerProcess, expected: bool) -> None:
    async with asyncio.timeout(HANG_S):
        while ((await asyncio.to_thread(_ask, server.http_port, "/v2/health/ready"))[0] == 200) is not expected:
            pass
