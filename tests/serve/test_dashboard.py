"""The dashboard of a real server: what its models do is told, and it ends with the server."""

import asyncio

import msgspec
import pytest

from dlproxy.config import Config, ModelConfig, ServerConfig
from dlproxy.serve.server import Server
from tests.wire.fixtures import Client, post, request


async def test_a_server_tells_what_its_models_do_until_it_stops(caplog: pytest.LogCaptureFixture) -> None:
    config = ServerConfig(http_port=0, control_port=0, grpc="off", calibration_folder="")
    model = ModelConfig(path="sleep:base=1ms", slo="p99=30s", run="thread", threads=1)
    server = Server(Config(server=config, models={"m": [model]}))
    await server.start()
    control = Client(*await asyncio.open_connection("127.0.0.1", server.control_port))
    client = Client(*await asyncio.open_connection("127.0.0.1", server.http_port))
    other = Client(*await asyncio.open_connection("127.0.0.1", server.control_port))
    try:
        control.send(request("/dashboard/feed"))
        whole = await told(control)
        shown = whole["models"]["m/1"]
        assert (shown["state"], shown["share"], shown["canary"]) == ("up", 1.0, None)
        assert shown["instances"] == [{"name": "m-0", "state": "up", "busy": 0, "address": "", "problem": ""}]
        assert shown["objective"] == {"seconds": 30.0, "share": 0.99, "met": None, "budget_left": None}
        assert whole["server"].keys() == {
            *("version", "started_at", "cores", "cpu", "memory_bytes", "connections", "ready", "may_change")
        }
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}
        client.send(post("/v2/models/m/infer", msgspec.json.encode(body)))
        assert (await client.reply()).status == 200
        other.send(post("/models/m/scale", b'{"instances": 2}'))
        assert (await other.reply()).status == 200
        events: list[tuple[str, str]] = []
        answered, instances = 0.0, 1
        while not answered or instances < 2 or len(events) < 2:
            changed = await told(control)
            events += [(event["kind"], event["words"]) for event in changed.get("events", ())]
            model = changed.get("models", {}).get("m/1", {})
            answered, instances = max(answered, model.get("rate", 0.0)), len(model.get("instances", "?" * instances))
        assert sorted(events) == [("instance", "instance m-1 is up"), ("knobs", "an operator: scale instances 2")]
        await server.stop()
        assert "graceful shutdown exceeded" not in caplog.text
        assert (await control.rest()).endswith(b"0\r\n\r\n")
    finally:
        for each in (control, client, other):
            await each.close()


async def told(client: Client) -> dict[str, object]:
    async with asyncio.timeout(10.0):
        line = b""
        while not line.startswith(b"data: "):
            line = await client.reader.readline()
    found: dict[str, object] = msgspec.json.decode(line.removeprefix(b"data: "))
    return found
