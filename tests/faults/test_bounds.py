"""What one client can take of a running server, on every port: quotas of keys, slow handshakes and floods of connections; and
that neither paths nor headers lead anywhere else.
"""

import asyncio
import http.client
import json
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from dlproxy.protos.oip import oip
from dlproxy.protos.tfs import tfs
from dlproxy.wire.grpc import frames
from dlproxy.wire.identity import key_file
from tests import models
from tests.certificates import Authority, trusting
from tests.instance.test_remote import OIP, echo
from tests.instance.upstreams import ScriptedUpstream

from ..clients.server import HANG_S, ServerProcess, asked

INFER = json.dumps({"inputs": [[1.0]]})
OIP_INFER = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}
SLOW_S = 0.4


def message(model: str) -> bytes:
    tensor = oip.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 1])
    asked: bytes = oip.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[bytes(4)]).SerializeToString()
    return asked


class Guarded:
    """A server with keys that have quotas, TensorFlow Serving's ports, and an audit log."""

    def __init__(self, folder: Path) -> None:
        self.keys, self.audit = folder / "keys.toml", folder / "audit.jsonl"
        self.key: dict[str, str] = {}
        for name in ("http", "grpc", "tfs", "tfs-grpc", "stream"):  # each has three requests, and then none for an hour
            self.create(name, requests_per_s=0.001, burst_s=3000.0)
        self.create("rows", rows_per_s=0.001, burst_s=4000.0)
        self.create("one", concurrent=1)
        self.create("changed", requests_per_s=0.001, burst_s=1000.0)
        self.create("free")
        self.ops = key_file.create(self.keys, "ops", scopes=["admin"], models=["*"])
        self.key["ops"] = self.ops
        config = f"""
[server]
audit_log = "{self.audit}"
tfs = true
tfs_http_port = {_free_port()}
tfs_grpc_port = {_free_port()}
[auth]
keys = "keys.toml"
[models.m]
path = "sleep:base=1ms"
[models.slow]
path = "sleep:base={SLOW_S * 1e3:g}ms"
"""
        (folder / "dlproxy.toml").write_text(config)
        self.tfs_port, self.tfs_grpc_port = (int(line.split("= ")[1]) for line in config.split("\n") if line.startswith("tfs_"))

    def create(self, name: str, **quota: Any) -> None:
        self.key[name] = key_file.create(self.keys, name, scopes=["infer"], models=["*"], **quota)

    def records(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def ask(port: int, path: str, key: str = "", body: Any = INFER, method: str = "POST") -> tuple[int, dict[str, str]]:
    more = {"authorization": f"Bearer {key}"} if key else {}
    told = asked(
        f"http://127.0.0.1:{port}{path}", None if body is None else body.encode(), method=method, within_s=10.0, **more
    )
    return told.status, {name.lower(): value for name, value in told.headers.items()}


def call(port: int, method: str, data: bytes, key: str, timeout: float = 10) -> tuple[grpc.StatusCode, dict[str, str | bytes]]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        asked = channel.unary_unary(method).with_call
        try:
            _, done = asked(data, metadata=(("authorization", f"Bearer {key}"),), timeout=timeout)
        except grpc.RpcError as error:
            return error.code(), dict(error.trailing_metadata() or ())
        return done.code(), {}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    return Guarded(tmp_path_factory.mktemp("guarded"))


@pytest.fixture(scope="module")
def server(guarded: Guarded) -> Iterator[ServerProcess]:
    with ServerProcess("--config", guarded.keys.with_name("dlproxy.toml")) as running:
        yield running


# Quotas of keys


def test_a_keys_requests_are_counted_over_all_models_and_protocols(guarded: Guarded, server: ServerProcess) -> None:
    """Three ways in use up what another one is then refused: with each key another one is the last."""
    infer = "/inference.GRPCInferenceService/ModelInfer"
    predict = tfs.PredictRequest(
        model_spec={"name": "m"}, inputs={"x": {"dtype": 1, "tensor_shape": {"dim": [{"size": 1}] * 2}}}
    )
    predict.inputs["x"].float_val.append(1.0)
    ways: dict[str, Callable[[str], Any]] = {
        "http": lambda key: ask(server.http_port, "/v2/models/slow/infer", key, json.dumps(OIP_INFER))[0] == 200,
        "grpc": lambda key: call(server.grpc_port, infer, message("m"), key)[0] is grpc.StatusCode.OK,
        "tfs": lambda key: ask(guarded.tfs_port, "/v1/models/m:predict", key, '{"instances": [[1.0]]}')[0] == 200,
        "tfs-grpc": lambda key: (
            call(guarded.tfs_grpc_port, "/tensorflow.serving.PredictionService/Predict", predict.SerializeToString(), key)[0]
            is grpc.StatusCode.OK
        ),
    }
    for last, way in ways.items():
        key = guarded.key[last]
        assert [other(key) for name, other in ways.items() if name != last] == [True] * 3, last
        assert not way(key), last
    status, headers = ask(server.http_port, "/predict/m", guarded.key["http"])
    assert (status, int(headers["retry-after"]) > 500) == (429, True)
    code, trailers = call(server.grpc_port, infer, message("m"), guarded.key["grpc"])
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(trailers["grpc-retry-pushback-ms"]) > 500_000
    assert ask(server.http_port, "/predict/m", guarded.key["free"])[0] == 200, "another key is not touched"


def test_a_keys_requests_in_a_stream_count_too(guarded: Guarded, server: ServerProcess) -> None:
    with grpc.insecure_channel(server.grpc_address) as channel:
        answers = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
            iter([message("m")] * 5), metadata=(("authorization", f"Bearer {guarded.key['stream']}"),), timeout=10
        )
        errors = [oip.ModelStreamInferResponse.FromString(answer).error_message for answer in answers]
    assert [bool(error) for error in errors] == [False] * 3 + [True] * 2
    assert "'stream' may send 0.001 requests a second" in errors[4]


def test_rows_are_counted_and_what_is_too_much_is_refused_as_a_whole(guarded: Guarded, server: ServerProcess) -> None:
    rows = [
        ask(server.http_port, "/predict/m", guarded.key["rows"], json.dumps({"inputs": [[1.0]] * number}))[0]
        for number in (3, 2, 1, 1)
    ]
    assert rows == [200, 429, 200, 429]


def test_a_place_is_given_back_however_a_request_ends(guarded: Guarded, server: ServerProcess) -> None:
    """One at a time: while a slow one runs, every way in is refused; and when it is over, or left, none is."""
    key = guarded.key["one"]

    def free() -> bool:
        return ask(server.http_port, "/predict/m", key)[0] == 200

    def soon(condition: Callable[[], bool], what: str) -> None:
        assert any(condition() or threading.Event().wait(0.01) for _ in range(6000)), what

    infer = "/inference.GRPCInferenceService/ModelInfer"
    for end in ("answered", "client gone", "cancelled"):
        with ExitStack() as open_here:
            for _ in range(50):  # a question whether it is free may take the place first, or the slow one be over before
                soon(free, end)
                if end == "cancelled":
                    channel = open_here.enter_context(grpc.insecure_channel(server.grpc_address))
                    asked = channel.unary_unary(infer).future(message("slow"), metadata=(("x-api-key", key),))
                else:
                    client = open_here.enter_context(socket.create_connection(("127.0.0.1", server.http_port)))
                    head = f"POST /predict/slow HTTP/1.1\r\nhost: h\r\nx-api-key: {key}\r\ncontent-length: {len(INFER)}"
                    client.sendall(f"{head}\r\n\r\n{INFER}".encode())
                threading.Event().wait(0.05)
                if not free() and call(server.grpc_port, infer, message("m"), key)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    break
            else:
                pytest.fail(f"{end}: somebody else's request was never in the way")
            if end == "cancelled":
                asked.cancel()
            elif end == "answered":
                assert client.recv(100).startswith(b"HTTP/1.1 200")
        soon(free, end)


def test_a_changed_quota_holds_within_a_second(guarded: Guarded, server: ServerProcess) -> None:
    key = guarded.key["changed"]
    assert [ask(server.http_port, "/predict/m", key)[0] for _ in range(2)] == [200, 429]
    before, mine, after = guarded.keys.read_text().partition('[keys."changed"]')
    changed = guarded.keys.with_suffix(".new")
    changed.write_text(before + mine + after.replace("requests_per_s = 0.001", "requests_per_s = 1000.0", 1))
    changed.replace(guarded.keys)
    assert any(ask(server.http_port, "/predict/m", key)[0] == 200 or threading.Event().wait(0.05) for _ in range(20))


# The audit log


def test_the_audit_log_says_who_did_what_and_counts_floods(guarded: Guarded, server: ServerProcess) -> None:
    for _ in range(200):
        ask(server.http_port, "/v2/models/m?password=1", "", None, "GET")
    assert ask(server.http_port, "/v2/models/m", guarded.key["free"], None, "GET")[0] == 403
    assert ask(server.http_port, "/v2/repository/models/m/unload", guarded.key["ops"], None)[0] == 503
    load = oip.RepositoryModelLoadRequest(model_name="x\r\ny").SerializeToString()
    assert (
        call(server.grpc_port, "/inference.GRPCInferenceService/RepositoryModelLoad", load, guarded.key["ops"])[0] is not None
    )
    assert ask(server.control_port, "/models/m", guarded.key["ops"], '{"max_wait_s": 0.0}', "PATCH")[0] == 200
    said = [f"{one['who']} {one['what']}: {one['outcome']}" for one in guarded.records()]
    assert sum("anonymous GET /v2/models/m:" in line for line in said) == 1
    assert any(line.startswith("free GET /v2/models/m: refused: ") for line in said)
    assert "ops POST /v2/repository/models/m/unload: answered 503" in said
    assert any("/RepositoryModelLoad x\\r\\ny: answered " in line for line in said)
    assert "ops PATCH /models/m: answered 200" in said
    assert all(one["time"].endswith("Z") and one["from"] == "127.0.0.1" for one in guarded.records())
    written = guarded.audit.read_text()
    assert "password" not in written
    assert not [key for key in guarded.key.values() if key.split("_", 2)[2] in written]
    assert os.stat(guarded.audit).st_mode & 0o077 == 0


# Connections and handshakes


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("crowded")
    Authority(folder, "server").own()
    (folder / "dlproxy.toml").write_text(
        """
[tls]
cert = "server.pem"
[http]
max_connections_per_address = 200
unlimited_addresses = []
max_handshakes = 32
handshake_timeout_s = 2.0
[models.m]
path = "sleep:base=1ms"
"""
    )
    with ServerProcess("--config", folder / "dlproxy.toml") as running:
        yield running


def _https(port: int, path: str, address: str) -> int:
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=trusting(), timeout=10, source_address=(address, 0))
    try:
        connection.request("POST" if "predict" in path else "GET", path, INFER if "predict" in path else None)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("door", ["http_port", "grpc_port", "control_port"])
def test_a_crowd_of_slow_handshakes_on_any_port_stops_nobody(crowded: ServerProcess, door: str) -> None:
    for port, path in ((crowded.http_port, "/predict/m"), (crowded.control_port, "/healthz")):
        assert _https(port, path, "127.0.0.3") == 200
    before = _descriptors(crowded)
    with ExitStack() as held:
        slow = [
            held.enter_context(socket.create_connection(("127.0.0.1", getattr(crowded, door)), source_address=("127.0.0.2", 0)))
            for _ in range(400)
        ]
        for sock in slow[::3]:
            with suppress(OSError):
                sock.send(b"\x16\x03")
        for _ in range(10):
            assert _https(crowded.http_port, "/predict/m", "127.0.0.3") == 200
            assert _https(crowded.control_port, "/healthz", "127.0.0.3") == 200
        assert _descriptors(crowded) <= before + 220, "no more than an address may have"
        for sock in slow:
            sock.settimeout(10)
            with suppress(ConnectionError):
                assert sock.recv(100) == b"", "each is closed, whether it was one too many or too slow"
    assert any(_descriptors(crowded) <= before or threading.Event().wait(0.05) for _ in range(1200))
    assert _https(crowded.http_port, "/predict/m", "127.0.0.2") == 200, "and then its address is welcome again"


def _descriptors(server: ServerProcess) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


# Paths


OUTSIDE = [
    *("../secret", "..", ".", "", "/etc", "good/../../secret", "../repo/good", "good/1", "good/", "./good", "%2e%2e/secret"),
    *(
        "..%2fsecret",
        "..%5csecret",
        "..\\secret",
        "good\0",
        "~",
        "file:///etc/passwd",
        "\u2024\u2024/secret",
        "..;/secret",
        ".hidden",
    ),
]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A repository with one good model and a hidden one; another model lies beside the repository."""
    folder = tmp_path_factory.mktemp("shelf")
    for place in ("repo/good/1", "repo/.hidden/1", "secret/1"):
        (folder / place).mkdir(parents=True)
        (folder / place / "model.onnx").write_bytes(Path(models.DIGITS).read_bytes())
    with ServerProcess("--repository", folder / "repo", "--repository-mode", "explicit") as running:
        yield running


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_out_of_the_repository(shelf: ServerProcess, name: str) -> None:
    encoded = "".join(f"%{byte:02X}" for byte in name.encode())
    raw = name.replace("\0", "%00").encode("ascii", "ignore").decode()
    for written in (raw, encoded):
        with suppress(http.client.InvalidURL):
            assert ask(shelf.http_port, f"/v2/repository/models/{written}/load", "", "{}")[0] in (400, 404, 405), written
        if written != "good/":
            with suppress(http.client.InvalidURL):
                assert ask(shelf.control_port, f"/models/{written}/load", "", "{}")[0] in (400, 404, 405), written
    load = oip.RepositoryModelLoadRequest(model_name=name).SerializeToString()
    assert call(shelf.grpc_port, "/inference.GRPCInferenceService/RepositoryModelLoad", load, "")[0] in (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
    )
    assert _index(shelf) == ["good"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"file:../../secret/model.onnx": "AAAA"},
        {"file:1/model.onnx": "AAAA"},
        {"config": json.dumps({"path": "../../secret/1/model.onnx"})},
        {"config": json.dumps({"path": "/etc/passwd"})},
        {"config": json.dumps({"class_names": "/etc/passwd"})},
        {"config": json.dumps({"samples": "../../../etc/passwd"})},
        {"config": json.dumps({"backend": "onnxruntime", "default_model_filename": "../../../secret/1/model.onnx"})},
        {"config": json.dumps({"backend": "onnxruntime", "default_model_filename": "/etc/passwd"})},
    ],
)
def test_no_parameter_of_a_load_names_other_files(shelf: ServerProcess, parameters: dict[str, str]) -> None:
    body = json.dumps({"parameters": parameters})
    assert ask(shelf.http_port, "/v2/repository/models/good/load", "", body)[0] in (400, 501)
    assert _ready(shelf) == []


def test_a_label_file_elsewhere_has_no_effect(shelf: ServerProcess) -> None:
    output = {"name": "probabilities", "label_filename": "../../../../../../etc/passwd"}
    config = {"backend": "onnxruntime", "output": [output]}
    ask(shelf.http_port, "/v2/repository/models/good/load", "", json.dumps({"parameters": {"config": json.dumps(config)}}))
    assert b"root:" not in asked(f"http://{shelf.address}/v2/models/good/config").body
    ask(shelf.http_port, "/v2/repository/models/good/unload", "", "{}")


def _index(server: ServerProcess) -> list[str]:
    return sorted({entry["name"] for entry in _listed(server)})


def _ready(server: ServerProcess) -> list[str]:
    return [entry["name"] for entry in _listed(server) if entry["state"] == "READY"]


def _listed(server: ServerProcess) -> list[dict[str, str]]:
    entries: list[dict[str, str]] = server.ask("/v2/repository/index", {})
    return entries


# Upstreams


class Behind:
    """A server of whose model another one computes the answers: a scripted one, which keeps what it was asked."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.upstream = ScriptedUpstream(OIP, echo)
        self.run(self.upstream.start())

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(HANG_S)

    def stop(self) -> None:
        self.run(self.upstream.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def behind() -> Iterator[Behind]:
    made = Behind()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def front(behind: Behind) -> Iterator[ServerProcess]:
    with ServerProcess(f"m=http://127.0.0.1:{behind.upstream.port}/v2/models/m") as running:
        yield running


SENT = {"host", "user-agent", "content-type", "content-length", "inference-header-content-length", "x-dlproxy-via"}
FOLLOWING = "POST /v2/models/m/infer HTTP/1.1\r\nhost: h\r\nx-smuggled: 1\r\ncontent-length: 0\r\n\r\n"
HEADERS = {
    "headers that are none of its business": "cookie: a=b\r\nauthorization: Bearer x\r\nconnection: x\r\nx-forwarded-for: 1",
    "a tenant with tabs and escapes": "x-tenant-id: a\tb\x1b[2J",
    "an id that is none": "x-request-id: \x01a",
    "a trace that is none": "traceparent: 00-1-2-3\r\ntracestate: a=b",
    "a state with a control character": f"traceparent: 00-{'a' * 32}-{'b' * 16}-01\r\ntracestate: a=\x0bb",
    "a trailer": "transfer-encoding: chunked\r\ntrailer: x-smuggled",
}


@pytest.mark.parametrize("more", HEADERS.values(), ids=HEADERS)
def test_an_upstream_gets_one_request_with_headers_of_ours(front: ServerProcess, behind: Behind, more: str) -> None:
    behind.upstream.asked.clear()
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]})
    chunked = "transfer-encoding" in more
    sent = f"{len(body):x}\r\n{body}\r\n0\r\nx-smuggled: 1\r\n\r\n" if chunked else body
    length = "" if chunked else f"content-length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", front.http_port), timeout=10) as client:
        client.sendall(f"POST /v2/models/m/infer HTTP/1.1\r\nhost: h\r\n{length}{more}\r\n\r\n{sent}".encode("latin-1"))
        status = client.recv(1 << 16).split()[1]
    for one in behind.upstream.posts:
        line, *fields = one.head.decode("latin-1").rstrip("\r\n").split("\r\n")
        assert line == "POST /v2/models/m/infer HTTP/1.1"
        names = [field.partition(":")[0].lower() for field in fields]
        traced = {"traceparent"} if "aaaa" in more else set()
        assert {*names} <= SENT | traced
        assert len(names) == len({*names})
    assert status == (b"400" if {*"\x01\x0b\x1b"} & {*more} else b"200")
    assert len(behind.upstream.posts) == (status == b"200")


@pytest.mark.parametrize(
    "wrong",
    [
        "content-length: 10\r\ncontent-length: {length}",
        "content-length: {length}\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding: xchunked",
        "x: 1\r\n content-length: {length}",
        "content-length: {length}\nx: 1",
    ],
)
def test_nothing_that_parsers_read_differently_reaches_an_upstream(front: ServerProcess, behind: Behind, wrong: str) -> None:
    behind.upstream.asked.clear()
    with socket.create_connection(("127.0.0.1", front.http_port), timeout=10) as client:
        head = f"POST /v2/models/m/infer HTTP/1.1\r\nhost: h\r\n{wrong.format(length=len(FOLLOWING))}\r\n\r\n"
        client.sendall(f"{head}{FOLLOWING}".encode("latin-1"))
        client.shutdown(socket.SHUT_WR)
        replies = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert replies.count(b"HTTP/1.1 ") == 1
    assert replies.split()[1] in (b"400", b"501")
    assert behind.upstream.posts == []


@pytest.mark.parametrize("value", ["a\r\nx-smuggled: 1", "a\n b", "a\0"])
def test_metadata_of_grpc_cannot_end_a_header_of_an_upstream(front: ServerProcess, behind: Behind, value: str) -> None:
    """Written by hand: no gRPC client sends that."""
    behind.upstream.asked.clear()
    fields = [
        *((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/inference.GRPCInferenceService/ModelInfer")),
        *((b":authority", b"h"), (b"te", b"trailers"), (b"content-type", b"application/grpc")),
        (b"x-request-id", value.encode()),
    ]
    data = message("m")
    framed = b"\0" + len(data).to_bytes(4, "big") + data
    with socket.create_connection(("127.0.0.1", front.grpc_port), timeout=10) as client:
        client.sendall(frames.PREFACE + frames.settings({}))
        client.sendall(frames.frame(frames.HEADERS, frames.END_HEADERS, 1, frames.header_block(fields)))
        client.sendall(frames.frame(frames.DATA, frames.END_STREAM, 1, framed))
        received = b""
        while not _reset(received):
            piece = client.recv(1 << 16)
            assert piece, "the call was not reset"
            received += piece
    assert behind.upstream.posts == []


def _reset(received: bytes) -> bool:
    """Whether there is a RST_STREAM of stream 1 among these frames."""
    while len(received) >= frames.HEADER:
        size, kind, stream = int.from_bytes(received[:3], "big"), received[3], int.from_bytes(received[5:9], "big")
        if kind == frames.RST_STREAM and stream == 1:
            return True
        received = received[frames.HEADER + size :]
    return False
