"""A variant of a real server's model answers in its place: every door says so, and none says it of the model's own answers."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from threading import Event
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import tritonclient.grpc as triton

from dlproxy import AsyncClient, Client, Model, Proxy
from tests.clients.doors import DOORS, Site, X
from tests.clients.server import HANG_S, ServerProcess, environment, write_config

MODEL = '''
class Times:
    """y is a multiple of x, by which one knows who answered."""

    inputs, outputs = {"x": "FP32[N,2]"}, {"y": "FP32[N,2]", "run": "INT64[N,1]"}
    factor = 2

    def predict(self, batch):
        return {"y": self.factor * batch["x"], "run": batch["x"][:, :1].astype("int64")}


class Thrice(Times):
    factor = 3
'''
NAME = "m: ß"  # which no header can hold as it is
ENCODED = "m%3A%20%C3%9F"
OWN, THEIRS = [3.0, 4.0], [4.5, 6.0]  # y


class Varied(Site):
    """The variant answers everything for m, and would for own if that had too much to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "times.py").write_text(MODEL)
        ways = {"run": "inline", "instances": 1}
        models: dict[str, dict[str, Any]] = {
            "m": {"path": f"{folder / 'times.py'}:Times", "variants": [NAME], "variant": NAME, **ways},
            **{name: {"path": f"{folder / 'times.py'}:Times", "variants": [NAME], **ways} for name in ("own", "other")},
            f'"{NAME}"': {"path": f"{folder / 'times.py'}:Thrice", "accuracy": 0.9, **ways},
        }
        config = write_config(folder / "dlproxy.toml", models, access_log=True, tfs=True, tfs_grpc_port=0, tfs_http_port=0)
        super().__init__("--config", config)
        tries = int(HANG_S / 0.02)  # what is pinned is looked at a few times a second
        assert any(self.infer(X)[1] == THEIRS or Event().wait(0.02) for _ in range(tries)), self.errors()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Varied]:
    with (process := Varied(tmp_path_factory.mktemp("varied"))):
        yield process


def test_every_door_says_who_answered(server: Varied) -> None:
    header = {name: NAME if name.endswith("client") else ENCODED for name in DOORS} | {"tritonclient": ""}
    assert {name: ask(server, "variant") for name, ask in DOORS.items()} == {name: (header[name], THEIRS, 1) for name in DOORS}


def test_own_answers_say_nothing(server: Varied) -> None:
    assert server.infer(X, says="variant")[0] == ENCODED
    assert server.infer(X, "own", says="variant") == ("", OWN, 1)
    with Client(f"grpc://{server.grpc_address}") as client:
        assert [client.infer(model, [X]).variant for model in ("m", "own", NAME)] == [NAME, "", ""]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_parts_say_it_too(server: Varied, scheme: str) -> None:
    async with AsyncClient(f"{scheme}://{server.address if scheme == 'http' else server.grpc_address}") as client:
        for model, variant in (("m", NAME), ("own", "")):
            (part,) = [part async for part in client.stream(model, [X])]
            assert part.variant == variant


def test_events_say_it_in_their_header(server: Varied) -> None:
    url, body = f"http://{server.address}/v2/models/m/generate_stream", json.dumps({"x": X}).encode()
    with urlopen(Request(url, body), timeout=HANG_S) as reply:
        assert reply.headers["x-dlproxy-variant"] == ENCODED
        assert json.loads(reply.read().removeprefix(b"data: "))["y"] == THEIRS


def test_tritons_stream_has_it_as_a_parameter(server: Varied) -> None:
    x = triton.InferInput("x", [1, 2], "FP32")
    x.set_data_from_numpy(np.array([X], np.float32))
    answers: Queue[Any] = Queue()
    with triton.InferenceServerClient(server.grpc_address) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        for model in ("m", "own"):
            client.async_stream_infer(model, [x])
        told = [answers.get(timeout=HANG_S).get_response() for _ in range(2)]
        client.stop_stream()
    assert [response.model_name for response in told] == ["m", "own"]
    assert [response.parameters["x-dlproxy-variant"].string_param for response in told] == [NAME, ""]


def test_the_access_log_names_it_where_there_is_one(server: Varied) -> None:
    server.infer(X)
    server.infer(X, "own")
    server.await_in_errors("/v2/models/own/infer ")
    lines = [line for line in server.errors().splitlines() if "/infer " in line]
    assert any(f" model=m variant={ENCODED}" in line for line in lines)
    assert not any("variant" in line for line in lines if "model=own" in line)


def test_metrics_count_answers_by_variant(server: Varied) -> None:
    labels = {"model": "m", "version": "1"}
    before = server.metric("dlproxy_variant_answers", variant=NAME, **labels)
    server.infer(X)
    assert server.metric("dlproxy_variant_answers", variant=NAME, **labels) == before + 1
    assert server.metric("dlproxy_variant_answers", model="own", variant=NAME) == 0
    assert server.metric("dlproxy_variant_switches", **labels) == 1
    assert server.metric("dlproxy_variant_spilled", **labels) == 0
    for model, by, holds in (("m", NAME, 1), ("m", "m", 0), ("own", "own", 1), ("own", NAME, 0)):
        assert server.metric("dlproxy_variant_assigned", model=model, priority="4", variant=by) == holds


def test_a_server_before_it_passes_it_on(server: Varied, tmp_path: Path) -> None:
    addresses = {"http": server.address, "grpc": server.grpc_address}
    models = {scheme: {"path": f"{scheme}://{address}/v2/models/m"} for scheme, address in addresses.items()}
    config = write_config(tmp_path / "front.toml", models)
    with ServerProcess("--config", config) as front, Client(f"http://{front.address}") as client:
        answers = [client.infer(model, [X]) for model in models]
    assert [(answer.variant, answer["y"][0].tolist()) for answer in answers] == [(NAME, THEIRS)] * 2


async def test_the_library_says_it_too(server: Varied) -> None:
    one = Model(server.folder / "times.py:Times", name="m", run="inline", variants=["small"], variant="small")
    other = Model(server.folder / "times.py:Thrice", name="small", run="inline")
    async with Proxy([one, other]) as proxy, asyncio.timeout(HANG_S):
        answer = await proxy.infer("m", {"x": [X]})
        while not answer.variant:
            assert answer["y"].tolist() == [OWN]
            answer = await proxy.infer("m", {"x": [X]})
        assert (answer.variant, answer["y"].tolist()) == ("small", [THEIRS])
        assert [part.variant async for part in proxy.stream("m", {"x": [X]})] == ["small"]
        assert (await proxy.infer("small", {"x": [X]})).variant == ""


def test_dlproxy_infer_tells_of_it(server: Varied) -> None:
    for model, told in (("m", f"dlproxy: {NAME!r} answered in place of 'm'\n"), ("own", "")):
        command = [sys.executable, "-m", "dlproxy", "infer", f"http://{server.address}", model, f"x=[{X}]", "--format", "json"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, env=environment(), check=True)
        assert found.stderr == told
        assert json.loads(found.stdout)["y"] == [THEIRS if told else OWN]


def test_the_control_port_tells_who_answers_and_takes_lists(server: Varied) -> None:
    control = f"http://127.0.0.1:{server.control_port}"

    def models(*arguments: str) -> Any:
        command = [sys.executable, "-m", "dlproxy", "models", *arguments, "--control", control, "--json"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, env=environment(), check=False)
        return json.loads(found.stdout) if found.returncode == 0 else found.stderr

    shown = models("show", "m")
    state = shown["variants"]
    assert state["assignment"] == dict.fromkeys("12345678", NAME)
    assert (state["reason"], state["switches"], state["spilled"]) == ("its operator says so", 1, 0)
    assert 0.0 < state["for_s"] < HANG_S
    (candidate,) = state["candidates"]
    assert candidate.pop("answers") > 0
    assert candidate == {"name": NAME, "accuracy": 0.9, "up": True, "problem": ""}
    changed = models("set", "other", f'variants=["{NAME}","gone"]', "slo=accuracy>=0.95")
    assert changed["knobs"]["variants"] == [NAME, "gone"]
    tries = int(HANG_S / 0.02)
    problems: dict[str, str] = {}
    while len(problems) < 2 and tries:
        tries -= 1
        problems = {one["name"]: one["problem"] for one in models("show", "other")["variants"]["candidates"]}
    assert problems == {NAME: "its accuracy is 0.9, and accuracy>=0.95 holds", "gone": "it is not served here"}
    assert "variant = 'small' is none of auto, other, m: ß, gone" in models("set", "other", "variant=small")
    models("set", "other", f"variant={NAME}", "slo=")
    tries = int(HANG_S / 0.02)
    assert any(server.infer(X, "other", says="variant") == (ENCODED, THEIRS, 1) or Event().wait(0.02) for _ in range(tries))
    assert models("set", NAME, 'variants=["own"]')["knobs"]["variants"] == ["own"], "also of one that was loaded without any"
    assert models("set", NAME, "variants=[]")["knobs"]["variants"] == []


def test_dlproxy_bench_counts_them(server: Varied, tmp_path: Path) -> None:
    arguments = [
        "bench",
        f"http://{server.address}",
        "--model",
        "m",
        "--concurrency",
        "2",
        "--duration",
        "0.2",
        "--warmup",
        "0",
    ]
    command = [sys.executable, "-m", "dlproxy", *arguments, "--json", str(tmp_path / "result.json")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, env=environment(), check=True)
    result = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert result["variants"] == {NAME: result["ok"]}
    assert result["ok"] > 0
    assert f"\nvariant      {NAME}: {result['ok']:,} of {result['ok']:,} answers, 100 %\n" in found.stdout
