"""Repositories on real servers, as a user starts them: each layout, Triton's client in mode explicit, changes under load."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests import models
from tests.clients.raw import connect, post
from tests.clients.server import ServerProcess
from tests.faults.nodes import answer, light_load, operate, states, until
from tests.faults.test_rollouts_under_load import adds
from tests.serve.rig import pass_time

NO_MODEL = "class Broken:\n    def predict(self, batch):\n        return batch\n"


def put(repository: Path, path: str, number: int) -> Path:
    """A model that adds this number, where nothing else is."""
    file = repository / path
    file.parent.mkdir(parents=True, exist_ok=True)
    adds(number, repository.parent).rename(file)
    return file


def settled(repository: Path) -> Path:
    """As one that was written a while ago, so that no start waits for it."""

    for path in [repository, *repository.rglob("*")]:
        os.utime(path, (1e9, 1e9))
    return repository


@pytest.mark.parametrize("layout", ["m/1/model.onnx", "m/00000001/net.onnx", "m.onnx", "m/1.onnx"])
async def test_one_command_serves_a_repository(layout: str, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    put(repository, layout, 1)
    if "model.onnx" in layout:
        (repository / "m" / "config.pbtxt").write_text('name: "m"\nbackend: "onnxruntime"\nmax_batch_size: 4\n')
    with ServerProcess("--repository", settled(repository)) as server:
        assert await answer(server, "/v2/models/m/infer") == 1
        assert (await states(server))["m", "1"]["knobs"]["max_batch"] == (4 if "model.onnx" in layout else 256)


async def test_a_models_config_of_tensorflow_serving(tmp_path: Path) -> None:
    put(tmp_path / "models", "m/3/model.onnx", 3)
    config = tmp_path / "models.config"
    base = settled(tmp_path / "models") / "m"
    config.write_text(f'model_config_list {{ config {{ name: "m" base_path: "{base}" model_platform: "tensorflow" }} }}')
    with ServerProcess("--repository", config) as server:
        assert await answer(server, "/v2/models/m/infer") == 3


async def test_a_saved_model_without_tensorflow_says_what_to_install(tmp_path: Path) -> None:
    if find_spec("tensorflow") is not None:
        pytest.skip("TensorFlow is installed")
    repository = tmp_path / "models"
    put(repository, "m/1/model.onnx", 1)
    (repository / "saved" / "1").mkdir(parents=True)
    (repository / "saved" / "1" / "saved_model.pb").write_bytes(b"\x08\x01")
    with ServerProcess("--repository", settled(repository)) as server:
        assert await answer(server, "/v2/models/m/infer") == 1
        assert "pip install 'dlproxy[tensorflow]'" in (await states(server))["saved", "1"]["reason"]


@pytest.mark.extras
async def test_saved_models_as_tensorflow_serving_lays_them_out(tmp_path: Path) -> None:
    if find_spec("tensorflow") is None:
        pytest.skip("there is no TensorFlow")
    save = "import pathlib, sys; from tests.instance import small_network as n; n.save_saved_model(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", save, tmp_path]  # TensorFlow's threads are set for good, here by other tests
    await asyncio.to_thread(subprocess.run, command, check=True)
    (tmp_path / "models" / "m").mkdir(parents=True)
    shutil.move(tmp_path / "network", tmp_path / "models" / "m" / "00000007")
    with ServerProcess("--repository", settled(tmp_path / "models")) as server:
        assert (await states(server))["m", "7"]["ready"]


@pytest.fixture
def explicit(tmp_path: Path) -> Iterator[tuple[ServerProcess, triton.InferenceServerClient]]:
    repository = tmp_path / "models"
    put(repository, "m/1/model.onnx", 1)
    put(repository, "m/2/model.onnx", 2)
    put(repository, "broken/1/model.onnx", 1).write_bytes(b"no model")
    with ServerProcess("--repository", settled(repository), "--repository-mode", "explicit") as server:
        client = triton.InferenceServerClient(server.address)
        yield server, client
        client.close()
        assert "Traceback" not in server.errors()


def test_triton_s_client_loads_and_unloads(explicit: tuple[ServerProcess, triton.InferenceServerClient]) -> None:
    _, client = explicit

    def index() -> dict[tuple[str, str], str]:
        return {(entry["name"], entry["version"]): entry["state"] for entry in client.get_model_repository_index()}

    assert index() == dict.fromkeys([("broken", "1"), ("m", "1"), ("m", "2")], "UNAVAILABLE")
    assert not client.is_model_ready("m")
    client.load_model("m")
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "2")
    assert index()["m", "2"] == "READY"
    assert index()["m", "1"] == "UNAVAILABLE"
    config = {"name": "m", "max_batch_size": 3, "version_policy": {"all": {}}}
    client.unload_model("m")
    client.load_model("m", config=json.dumps(config))
    assert client.get_model_config("m")["max_batch_size"] == 3
    assert client.is_model_ready("m", "1")
    assert client.is_model_ready("m", "2")
    client.unload_model("m")
    assert not client.is_model_ready("m")
    with pytest.raises(InferenceServerException, match="the parameter config is not JSON") as bad:
        client.load_model("m", config="{")
    assert bad.value.status() == "400"
    for name, text in (("none", "no model 'none' in the repository"), ("broken", "failed to load 'broken'")):
        with pytest.raises(InferenceServerException, match=text):
            client.load_model(name)
    with pytest.raises(InferenceServerException, match="failed to unload 'm', it is not loaded"):
        client.unload_model("m")
    assert index()["broken", "1"] == "UNAVAILABLE"


async def test_changes_of_files_under_load(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    put(repository, "m/1/model.onnx", 1)
    with ServerProcess("--repository", settled(repository)) as server:
        async with light_load(server):
            adds(2, tmp_path).rename(repository / "2.tmp")
            (repository / ".new").mkdir()
            (repository / "2.tmp").rename(repository / ".new" / "model.onnx")
            (repository / ".new").rename(repository / "m" / "2")
            await until(lambda told: told.keys() == {("m", "2")}, server, within_s=8.0)

            whole = adds(3, tmp_path).read_bytes()
            (repository / "m" / "3").mkdir()
            with (repository / "m" / "3" / "model.onnx").open("wb", buffering=0) as file:
                for byte in range(0, len(whole), len(whole) // 4 + 1):
                    file.write(whole[byte : byte + len(whole) // 4 + 1])
                    await pass_time(0.25)
            await until(lambda told: told.keys() == {("m", "3")}, server, within_s=8.0)

            (repository / "m" / "4").mkdir()
            (repository / "m" / "4" / "model.onnx").write_bytes(b"no model")
            await until(lambda told: ("m", "4") in told and told["m", "4"]["phase"] == "failed", server, within_s=8.0)
            assert await answer(server, "/v2/models/m/infer") == 3
            shutil.rmtree(repository / "m" / "4")
            await until(lambda told: told.keys() == {("m", "3")}, server, within_s=8.0)

            repository.rename(tmp_path / "away")
            await asyncio.to_thread(server.await_in_errors, "what is served stays")
            (tmp_path / "away").rename(repository)
            put(repository, "m/5/model.onnx", 5)
            await until(lambda told: told.keys() == {("m", "5")}, server, within_s=25.0)
            shutil.rmtree(repository / "m" / "5")
            await until(lambda told: told.keys() == {("m", "3")}, server, within_s=8.0)
        assert "Traceback" not in server.errors()


# What comes by these doors


HANGS = """
import time

class M:
    def __init__(self):
        time.sleep(1e6)

    def predict(self, batch):
        return batch
"""
CRASHES = HANGS.replace("import time", "import os").replace("time.sleep(1e6)", "os._exit(3)")
IO = {"inputs": {"x": "FP32[N,1]"}, "outputs": {"y": "FP32[N,1]"}, "run": "process"}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServerProcess]:
    put(tmp_path / "models", "m/1/model.onnx", 1)
    with ServerProcess(
        "--repository", settled(tmp_path / "models"), "--repository-mode", "explicit", str(models.DIGITS)
    ) as server:
        yield server
        assert "Traceback" not in server.errors(), server.errors()[-3000:]


BODIES = [
    *(
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"x"',
        b"\xff\xfe",
        b"{}" * 2,
        b"[" * 5000,
        b'{"path":',
        b'{"a":1}',
        b'{"parameters":7}',
    ),
    *(b'{"parameters":{"config":%b}}' % value for value in (b"1", b'"["', b"[]", b'"{}"', b'"{\\"path\\":\\"/etc/passwd\\"}"')),
    *(b'{"parameters":{"config":"{\\"max_batch_size\\":%b}"}}' % value for value in (b"-1", b"1e400", b"[]", b"9" * 50)),
    *(b'{"ready":%b}' % value for value in (b"1", b'"x"', b"null")),
    *(
        b'{"path":%b}' % value
        for value in (
            b"1",
            b'""',
            b'"\\u0000"',
            b'"\\ud800"',
            b'"/"',
            b'"/dev/null"',
            b'"a.py:B"',
            b'"x.py"',
            b'"sleep:base=1ms"',
        )
    ),
    *(b'{"version":%b}' % value for value in (b"-1", b'"-1"', b'"\xc2\xb2"', b'"9999999999999999999999"', b"null", b'"1"')),
    *(b'{"label":%b,"version":"1"}' % value for value in (b'""', b'"a b"', b'"1"', b"{}")),
    *(b'{"version":"1","share":%b}' % value for value in (b"-1", b"2", b"NaN", b"1e999", b'"1"', b"0.5")),
    *(b'{"instances":%b}' % value for value in (b"-1", b"1e9", b"99999999999999999999", b"true")),
    *(b'{"knobs":%b}' % value for value in (b"{}", b'{"path":"x"}', b'{"max_batch":-1}', b'{"slo":"p99=\\u0000"}', b'{"":1}')),
]
NAMES = ["m", "digits", "a%2Fb", "..%2F..%2Fx", "%00", "%F0%9F%90%8D", "%FF", "a%20", "%25", "." * 3, "x" * 3000]


async def test_no_body_is_answered_with_a_defect(served: ServerProcess) -> None:
    control, client = await connect(served.control_port), await connect(served.http_port)
    actions = ("load", "unload", "label", "canary", "shadow", "promote", "rollback", "scale", "set", "none")
    for number, body in enumerate(BODIES):
        for name in (*NAMES[:2], NAMES[2 + number % (len(NAMES) - 2)]):
            requests = [(control, f"/models/{name}/{action}") for action in (actions if name in NAMES[:2] else ["load"])]
            requests += [(client, f"/v2/repository/models/{name}/{action}") for action in ("load", "unload")]
            for connection, target in [*requests, (client, "/v2/repository/index")]:
                if target in ("/models/digits/unload", "/models/digits/scale") or connection.transport.is_closing():
                    continue
                reply = await asyncio.wait_for(connection.ask(post(target, body)), 20.0)
                assert reply.status in (200, 400, 404, 501, 503), (target, body, reply)
                assert reply.status in (200, 404) or reply.json()["error"], (target, body)
    assert not control.transport.is_closing()
    assert not client.transport.is_closing()
    control.close()
    client.close()
    assert not any("/" in name for name, _ in await states(served)), "what could never be asked for"


@pytest.mark.parametrize("name", ["a%2Fb", "..%2F..%2Fx", "%00", "%20a", "..", "a%0Ab"])
async def test_names_that_no_model_can_have(name: str, served: ServerProcess) -> None:
    told = await operate(served, name, "load", status=400, path="sleep:base=1ms")
    assert "cannot be a model's name" in told["error"]


async def test_loads_that_hang_or_crash(served: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    (tmp_path / "crashes.py").write_text(CRASHES)
    hanging, other = await connect(served.control_port), await connect(served.control_port)
    load = json.dumps({"path": f"{tmp_path / 'hangs.py'}:M", "config": IO}).encode()
    hanging.send(post("/models/hangs/load", load))
    await until(lambda told: told.get(("hangs", "1"), {}).get("phase") == "loading", served, within_s=10.0)
    other.send(post("/models/adds/load", json.dumps({"path": str(adds(2, tmp_path))}).encode()))
    async with asyncio.timeout(20.0):
        assert await operate(served, "hangs", "unload") == []
        assert (await hanging.replies.get()).json() == []
        assert (await other.replies.get()).status == 200
    assert await answer(served, "/v2/models/adds/infer") == 2
    crash = json.dumps({"path": f"{tmp_path / 'crashes.py'}:M", "config": IO}).encode()
    reply = await asyncio.wait_for(other.ask(post("/models/crashes/load", crash)), 30.0)
    assert reply.status == 400, reply
    assert "exit status 3" in reply.json()["error"]
    assert {name for name, _ in await states(served)} == {"digits", "adds"}
    hanging.close()
    other.close()


async def test_two_loads_at_once_one_of_a_client_that_leaves(served: ServerProcess) -> None:
    target = "/v2/repository/models/m/load"
    one, two, three = [await connect(served.http_port) for _ in range(3)]
    three.send(post(target, b""))
    three.transport.abort()
    replies = await asyncio.wait_for(asyncio.gather(one.ask(post(target, b"")), two.ask(post(target, b""))), 20.0)
    assert [reply.status for reply in replies] == [200, 200]
    assert await answer(served, "/v2/models/m/infer") == 1, "both were answered when it was up"
    one.send(post(target, b'{"parameters":{"config":"{\\"max_batch_size\\":2}"}}'))
    unloaded = await asyncio.wait_for(two.ask(post("/v2/repository/models/m/unload", b"")), 20.0)
    assert (unloaded.status, (await asyncio.wait_for(one.replies.get(), 20.0)).status) == (200, 200)
    for connection in (one, two):
        connection.close()
