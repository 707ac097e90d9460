"""Every lock on every door of one running server; that nobody learns of models that are not theirs; that no secret gets out."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import Any

import grpc
import msgspec
import pytest

from dlproxy import Client
from dlproxy.cli import main
from dlproxy.message import FailureKind, InferenceError
from dlproxy.protos.grpc_services import health
from dlproxy.protos.oip import SERVICE, oip
from dlproxy.protos.tfs import MODELS, PREDICTION, tfs
from dlproxy.wire.identity.key_file import revoke

from .locked_server import CUT, SECRET_MODEL, Credentials, LockedServer

OPEN, UNKNOWN, FORBIDDEN = (200, "OK"), (401, "UNAUTHENTICATED"), (403, "PERMISSION_DENIED")
SHUT = (CUT, CUT)
CONFIG = """
[tls]
cert = "server.pem"
clients = "{clients}"
client_ca = "ours.ca.pem"
[auth]
keys = "keys.toml"
"""
OURS = """
jwks = "{folder}/jwks.json"
jwt_issuer = "https://login.example"
jwt_audience = "dlproxy"
[server]
access_log = true
event_log = "{folder}/events"
[grants.shops]
who = "cert:shop-*"
scopes = ["infer", "read"]
models = ["m"]
[grants.ann]
who = "token:ann"
scopes = ["infer", "read"]
models = ["m"]
[grants.account]
who = "unix:{uid}"
models = ["n"]
[models.m]
path = "sleep:base=0.1ms"
run = "process"
[models.n]
path = "sleep:base=0.1ms"
[models.{secret}]
path = "sleep:base=0.1ms"
cache = "on"
[models.m-far]
path = "https://127.0.0.1:{http}/v2/models/m"
cache = "on"
upstream_ca = "ours.ca.pem"
upstream_cert = "shop-1.pem"
upstream_api_key = "env:KEY_OF_FAR"
[models.m-far-grpc]
path = "grpcs://127.0.0.1:{grpc}/v2/models/m"
upstream_ca = "ours.ca.pem"
upstream_cert = "shop-1.pem"
upstream_api_key = "far.key"
upstream_headers = {{ x-more = "upstream-secret-5151" }}
"""


@pytest.fixture(scope="module")
def has(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    return Credentials(tmp_path_factory.mktemp("locks"))


@pytest.fixture(scope="module")
def site(has: Credentials) -> Iterator[LockedServer]:
    """With another server behind it that wants a certificate and a key."""
    from ..clients.server import ServerProcess

    far, ours = has.folder / "far.toml", has.folder / "dlproxy.toml"
    far.write_text(CONFIG.format(clients="required") + '[models.m]\npath = "sleep:base=0.1ms"\n')
    (has.folder / "far.key").write_text(has.sent["key"] + "\n")
    (has.folder / "events").mkdir()
    with pytest.MonkeyPatch.context() as patch, ServerProcess("--config", far, "--grpc-port", "0") as behind:
        patch.setenv("KEY_OF_FAR", has.sent["key"])
        ports = {"http": behind.http_port, "grpc": behind.grpc_port}
        text = OURS.format(folder=has.folder, uid=os.getuid(), secret=SECRET_MODEL, **ports)
        ours.write_text(CONFIG.format(clients="optional") + text)
        server = LockedServer(has, "--verbose")
        yield server
        server.close()


LOCKS: dict[str, tuple[str, str, Any]] = {  # what is sent, the certificate that is shown, and what comes of it
    "right key": ("key", "", OPEN),
    "right token": ("token", "", OPEN),
    "right certificate": ("nothing", "shop", OPEN),
    "no key": ("nothing", "", UNKNOWN),
    **{
        name: (name, "", UNKNOWN)
        for name in (
            *("wrong key", "revoked", "expired", "not valid yet", "expired token", "token not valid yet", "wrong issuer"),
            *("wrong audience", "alg: none", "RS/HS confusion", "another's signature"),
        )
    },
    **{name: (name, "", FORBIDDEN) for name in ("wrong scope", "wrong model", "token for something else", "token of nobody")},
    "certificate of nobody": ("nothing", "nobody", FORBIDDEN),
    "wrong key, right certificate": ("wrong key", "shop", UNKNOWN),
    "expired certificate": ("nothing", "expired", SHUT),
    "certificate not valid yet": ("nothing", "not valid yet", SHUT),
    "certificate of an unknown authority": ("key", "of others", SHUT),
}


def infer_of(model: str) -> bytes:
    tensor = oip.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 1])
    message: bytes = oip.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[bytes(4)]).SerializeToString()
    return message


def predict_of(model: str) -> bytes:
    asked = tfs.PredictRequest()
    asked.model_spec.name = model
    asked.inputs["x"].dtype, asked.inputs["x"].tensor_content = 1, bytes(4)
    for size in (1, 1):
        asked.inputs["x"].tensor_shape.dim.add(size=size)
    return asked.SerializeToString()  # type: ignore[no-any-return]


INFER = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}
HTTP: dict[str, tuple[str, str, Any]] = {  # the port, the path of model MODEL, and the body
    "OIP over HTTP": ("tfs_http", "/v2/models/MODEL/infer", INFER),
    "plain JSON": ("tfs_http", "/predict/MODEL", {"inputs": [[1.0]]}),
    "generate": ("tfs_http", "/v2/models/MODEL/generate", {"x": [1.0]}),
    "generate_stream": ("tfs_http", "/v2/models/MODEL/generate_stream", {"x": [1.0]}),
    "TFS over HTTP": ("tfs_http", "/v1/models/MODEL:predict", {"instances": [[1.0]]}),
    "explain": ("tfs_http", "/v1/models/MODEL:explain", {"instances": [[1.0]]}),
    "metadata": ("tfs_http", "/v2/models/MODEL", None),
    "TFS status": ("tfs_http", "/v1/models/MODEL", None),
    "Unix socket": ("unix", "/v2/models/MODEL/infer", INFER),
    "control port": ("control", "/models/MODEL", None),
    "health": ("tfs_http", "/v2/health/ready", None),
    "health of the control port": ("control", "/healthz", None),
}
GRPC: dict[str, tuple[str, str, Any]] = {
    "OIP over gRPC": ("grpc", f"{SERVICE}/ModelInfer", infer_of),
    "stream over gRPC": ("grpc", f"{SERVICE}/ModelStreamInfer", infer_of),
    "metadata over gRPC": ("grpc", f"{SERVICE}/ModelMetadata", lambda model: dumped(oip.ModelMetadataRequest(name=model))),
    "TFS over gRPC": ("tfs_grpc", f"{PREDICTION}/Predict", predict_of),
    "TFS status over gRPC": ("tfs_grpc", f"{MODELS}/GetModelStatus", lambda model: dumped(status_of(model))),
    "health over gRPC": ("grpc", "/grpc.health.v1.Health/Check", lambda _: b""),
}


def dumped(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def status_of(model: str) -> Any:
    asked = tfs.GetModelStatusRequest()
    asked.model_spec.name = model
    return asked


def expected(lock: str, door: str) -> Any:
    who, _, verdict = LOCKS[lock]
    if verdict is SHUT:
        return SHUT
    if door == "health of the control port":  # an orchestrator's probe has no key, and is told nothing but yes or no
        return OPEN
    if door.startswith("health") and (verdict is FORBIDDEN or who == "nothing"):
        return OPEN
    if door == "Unix socket" and who == "nothing":  # one has the account, which has a rule of its own
        return FORBIDDEN
    return verdict


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("door", [*HTTP, *GRPC])
def test_every_lock_on_every_door(site: LockedServer, door: str, lock: str) -> None:
    who, certificate, _ = LOCKS[lock]
    if door in HTTP:
        port, path, body = HTTP[door]
        found: Any = site.http(port, path.replace("MODEL", "m"), body, who=who, certificate=certificate)[0]
    else:
        port, method, message = GRPC[door]
        found = site.rpc(port, method, message("m"), who=who, certificate=certificate, stream="Stream" in method)[0]
    assert found == expected(lock, door)[door in GRPC]


def test_a_stream_that_is_open_ends_with_its_key(site: LockedServer) -> None:
    """Its answers say so, within a second."""
    sent: SimpleQueue[bytes | None] = SimpleQueue()
    metadata = [("x-api-key", site.has.sent["going"])]
    with site.channel() as channel:
        answers = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(iter(sent.get, None), metadata=metadata, timeout=20)

        def refusal() -> str:
            sent.put(infer_of("m"))
            told: str = oip.ModelStreamInferResponse.FromString(next(answers)).error_message
            return told

        assert refusal() == ""
        revoke(site.has.keys, "going")
        revoked_at = monotonic()
        asked_at = revoked_at
        while not (why := refusal()):
            assert asked_at - revoked_at < 1.0, "what is asked a second later is refused, however long the answer takes"
            asked_at = monotonic()
        assert why == "the API key is revoked"
        sent.put(None)
        assert not list(answers)


def test_an_account_on_the_unix_socket_has_its_own_rights(site: LockedServer) -> None:
    assert site.http("unix", "/v2/models/n/infer", INFER)[0] == 200
    assert site.http("control", "/docs/try/v2/models/n/infer", INFER)[0] == 401, "which nobody gets by way of the control port"


@pytest.mark.parametrize(
    ("certificate", "method", "target", "body", "status"),
    [
        ("shop", "GET", "/models/m", None, 200),
        ("shop", "GET", "/models/n", None, 403),
        ("shop", "PATCH", "/models/m", {"max_wait_s": 0.0}, 403),
        ("shop", "GET", "/metrics", None, 403),
        ("nobody", "GET", "/models", None, 403),
    ],
)
def test_certificates_have_their_rights_on_the_control_port(
    site: LockedServer, certificate: str, method: str, target: str, body: Any, status: int
) -> None:
    assert site.http("control", target, body, certificate=certificate, method=method)[0] == status


# What one may not see


def of_one(model: str) -> Iterator[tuple[str, str, Any, str]]:
    """Port, path or method, body and HTTP's method of all that is about one model."""
    for port, path, body in HTTP.values():
        if "MODEL" in path and port != "unix":
            yield port, path.replace("MODEL", model), body, ""
            yield port, path.replace("MODEL", model), b"no JSON", "POST" if body else "GET"
    for tail in ("ready", "config", "stats", "versions/1", "versions/1/config", "trace/setting", "versions/stable/stats"):
        yield "tfs_http", f"/v2/models/{model}/{tail}", None, ""
    yield "tfs_http", f"/v2/models/{model}/trace/setting", {"trace_rate": "1"}, "POST"
    for action in ("load", "unload"):
        yield "tfs_http", f"/v2/repository/models/{model}/{action}", {}, "POST"
        yield "control", f"/models/{model}/{action}", {}, "POST"
    for tail in ("/metadata", "/versions/1", "/labels/stable", "/versions/1/metadata"):
        yield "tfs_http", f"/v1/models/{model}{tail}", None, ""
    yield "tfs_http", f"/v1/models/{model}:classify", {"examples": [{"x": 1.0}]}, ""
    yield "control", f"/autopilot/{model}", None, ""
    yield "control", f"/cache/{model}", None, ""
    yield "control", "/cache/clear", {"model": model}, "POST"
    yield "control", f"/models/{model}", {"max_wait_s": 0.0}, "PATCH"
    yield "control", "/autopilot/pause", {"model": model}, "POST"
    yield "control", "/autopilot/challenge", {"challenger": "", "model": model}, "POST"
    yield "control", "/models/m/trunk", {"trunk": model}, "POST"
    for kind in ("ModelMetadata", "ModelConfig", "ModelStatistics", "ModelReady"):
        yield "grpc", f"{SERVICE}/{kind}", dumped(getattr(oip, f"{kind}Request")(name=model)), ""
    for kind in ("RepositoryModelLoad", "RepositoryModelUnload"):
        yield "grpc", f"{SERVICE}/{kind}", dumped(getattr(oip, f"{kind}Request")(model_name=model)), ""
    yield "grpc", f"{SERVICE}/TraceSetting", dumped(oip.TraceSettingRequest(model_name=model)), ""
    for port, method, message in GRPC.values():
        if not method.endswith("Check"):
            yield port, method, message(model), "stream" if "Stream" in method else ""
    yield "grpc", f"{SERVICE}/ModelInfer", dumped(oip.ModelInferRequest(model_name=model)), ""
    yield "grpc", "/grpc.health.v1.Health/Check", dumped(health.HealthCheckRequest(service=model)), ""
    described = tfs.GetModelMetadataRequest(metadata_field=["signature_def"])
    described.model_spec.name = model
    yield "tfs_grpc", f"{PREDICTION}/GetModelMetadata", dumped(described), ""


def answer(site: LockedServer, port: str, target: str, body: Any, method: str, who: str) -> str:
    if port.endswith("grpc"):
        status, words, data = site.rpc(port, target, body, who=who, stream=method == "stream")
        return f"{status} {words} {data!r}"
    code, told = site.http(port, target, body, who=who, method=method)
    return f"{code} {told.decode()}"


@pytest.mark.parametrize("number", range(len(list(of_one("any")))))
def test_a_model_of_others_is_answered_as_one_that_there_is_not(site: LockedServer, number: int) -> None:
    there, not_there = (list(of_one(name))[number] for name in (SECRET_MODEL, "vault-none"))
    found, other = answer(site, *there, "shop"), answer(site, *not_there, "shop")
    assert found.replace(SECRET_MODEL, "vault-none") == other
    assert found.startswith(("403", "PERMISSION_DENIED"))


def test_nobody_watches_how_a_model_of_others_is(site: LockedServer) -> None:
    asked = dumped(health.HealthCheckRequest(service=SECRET_MODEL))
    for who in ("shop", "nothing"):
        assert site.rpc("grpc", "/grpc.health.v1.Health/Watch", asked, who=who, stream=True)[0] == "PERMISSION_DENIED"


@pytest.mark.parametrize("number", range(len(list(of_one("any")))))
def test_a_mistaken_name_is_told_of_no_model_of_others(site: LockedServer, number: int) -> None:
    """And `shop` may look for it: it is among its own."""
    found = answer(site, *list(of_one("m-none"))[number], "shop")
    assert SECRET_MODEL not in found
    assert "'n'" not in found
    assert not found.startswith(("401", "403", "UNAUTH", "PERM")) or "not allowed" in found


LISTS: list[tuple[str, str, Any, str]] = [
    *(("tfs_http", path, None, "") for path in ("/", "/openapi.json", "/v2", "/v2/models/stats", "/v1/models", "/v2/logging")),
    ("tfs_http", "/v2/repository/index", {}, "POST"),
    *(
        ("control", path, None, "")
        for path in ("/models", "/autopilot", "/cache", "/metrics", "/openapi.json", "/healthz", "/docs")
    ),
    ("grpc", f"{SERVICE}/RepositoryIndex", b"", ""),
    ("grpc", f"{SERVICE}/ModelStatistics", b"", ""),
]


@pytest.mark.parametrize("number", range(len(LISTS)))
def test_lists_have_only_what_one_may_see(site: LockedServer, number: int) -> None:
    kept, whole = (answer(site, *LISTS[number], who) for who in ("shop", "ops"))
    assert kept.startswith(("200", "OK"))
    assert SECRET_MODEL not in kept
    assert "m-far" not in whole or "m-far" in kept, "one's own are there"
    if LISTS[number][1] not in ("/v2", "/v2/logging", "/docs"):
        assert SECRET_MODEL in whole
    assert SECRET_MODEL not in answer(site, *LISTS[number], "nothing")


@pytest.mark.parametrize(
    ("port", "target", "body", "method"),
    [
        ("tfs_http", "/v2/logging", {"log_info": True}, "POST"),
        ("tfs_http", "/v2/trace/setting", {}, "POST"),
        ("tfs_http", "/v2/systemsharedmemory/unregister", {}, "POST"),
        ("control", "/autopilot/pause", {}, "POST"),
        ("control", "/autopilot/challenge", {"challenger": ""}, "POST"),
        ("control", "/cache/clear", {}, "POST"),
        ("control", "/log", {"level": "debug"}, "PATCH"),
        ("grpc", f"{SERVICE}/LogSettings", b"", ""),
        ("grpc", f"{SERVICE}/TraceSetting", b"", ""),
        ("tfs_grpc", f"{MODELS}/HandleReloadConfigRequest", b"", ""),
    ],
)
def test_who_is_limited_to_models_changes_nothing_of_all(
    site: LockedServer, port: str, target: str, body: Any, method: str
) -> None:
    found = answer(site, port, target, body, method, "shop")
    assert found.startswith(("403", "PERMISSION_DENIED"))
    assert "with all models" in found


# Those who come with keys and certificates themselves


@pytest.mark.parametrize("name", ["m-far", "m-far-grpc"])
def test_an_upstream_gets_its_key_and_certificate(site: LockedServer, name: str) -> None:
    status, told = site.http("tfs_http", f"/predict/{name}", {"inputs": [[2.5]]}, who="shop")
    assert (status, json.loads(told)["outputs"]) == (200, {"y": [[2.5]]})


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_the_client_comes_with_a_key_or_a_certificate(site: LockedServer, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = site.process.tfs_http_port if scheme == "https" else site.process.grpc_port
    url, trusts = f"{scheme}://127.0.0.1:{port}", {"ca_file": str(site.has.authority.path)}
    with Client(url, api_key=site.has.sent["key"], **trusts) as client:
        assert client.infer("m", [[1.5]])["y"].tolist() == [[1.5]]
        assert [model.name for model in client.models()] == ["m"]
        with pytest.raises(InferenceError, match="'key' may not do this") as refused:
            client.metadata("n")
        assert refused.value.failure.kind is FailureKind.FORBIDDEN
    with Client(url, cert_file=str(site.has.certificates["shop"]), **trusts) as client:
        assert client.infer("m", [[1.5]])["y"].tolist() == [[1.5]]
    with Client(url, **trusts) as client, pytest.raises(InferenceError) as refused:
        client.metadata("m")
    assert refused.value.failure.kind is FailureKind.UNAUTHENTICATED
    monkeypatch.setenv("DLPROXY_API_KEY", site.has.sent["key"])
    with Client(url, **trusts) as client:
        assert client.ready("m")


@pytest.mark.parametrize("certificate", [False, True])
def test_commands_come_with_a_key_or_a_certificate(
    site: LockedServer, certificate: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_text(site.has.sent["key"])
    asks = ["--cert", str(site.has.certificates["shop"])] if certificate else ["--api-key-file", str(tmp_path / "key")]
    asks += ["--ca", str(site.has.authority.path)]
    url = f"https://127.0.0.1:{site.process.tfs_http_port}"
    assert main(["infer", url, "m", "[[0.5]]", *asks]) == 0
    assert "0.5" in capsys.readouterr().out
    result = tmp_path / "result.json"
    bench = ["bench", url, "--model", "m", "--concurrency", "2", "--duration", "0.2", "--warmup", "0", "--json", str(result)]
    assert main([*bench, *asks]) == 0
    assert "0 failed" in capsys.readouterr().out or msgspec.json.decode(result.read_bytes())["ok"] > 0
    assert main(["models", "show", "m", "--control", f"https://127.0.0.1:{site.process.control_port}", *asks]) == 0
    shown = capsys.readouterr()
    for secret in site.has.secrets.values():
        assert secret not in shown.out + shown.err + result.read_text()


# Secrets


def test_nothing_that_was_written_holds_a_secret(site: LockedServer, has: Credentials) -> None:
    """After all of the above. Keys are put where they do not belong, too."""
    written: dict[str, bytes] = {}
    for name in ("key", "token", "wrong key", "RS/HS confusion"):
        sent = has.sent[name]
        for door in ("tfs_http", "control"):
            written |= {
                f"{door} {target[:9]}": site.http(door, target, who=name)[1] for target in ("/v2/nothing", "/models/no")
            }
            site.http(door, f"/predict/m?api_key={sent}", {"inputs": [[1.0]]}, who=name)
    for port, target, body, method in LISTS:
        written[f"{port} {target}"] = answer(site, port, target, body, method, "ops").encode()
    written["state"] = site.http("control", "/models/m-far", who="ops")[1]
    written["a knob that is none"] = site.http("control", "/models/m-far", {"upstream_headers": 1}, who="ops", method="PATCH")[
        1
    ]
    log = written["log"] = site.process.errors().encode()
    for line in (b"DEBUG", b"dlproxy.access", b"dlproxy.audit", b"/predict/m?api_key=dlp_"):
        assert line in log, "it holds all that is looked through"
    written["report"] = site.process.report.encode()
    server, *workers = site.process_ids()
    assert workers
    for process in (server, *workers):
        written[f"command line {process}"] = Path(f"/proc/{process}/cmdline").read_bytes()
        assert re.search(r"Max core file size +0 ", Path(f"/proc/{process}/limits").read_text())
    for process in workers:
        written[f"environment {process}"] = Path(f"/proc/{process}/environ").read_bytes()
    events = list((has.folder / "events").iterdir())
    assert events
    written |= {file.name: file.read_bytes() for file in events}
    for name, secret in {**has.secrets, "header": "upstream-secret-5151"}.items():
        for where, data in written.items():
            assert secret.encode() not in data, f"{name} is in {where}"


def test_a_store_s_password_is_not_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "dlproxy.toml"
    file.write_text('[server]\nstore = "redis://ann:redis-secret-4242@127.0.0.1:1/0"\nhttp_port = 0\ncontrol_port = 0\n')
    assert main(["serve", "--config", str(file)]) != 0
    told = capsys.readouterr()
    assert told.err
    assert "redis-secret-4242" not in told.out + told.err


def test_grpc_without_tls_is_no_way_in(site: LockedServer) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{site.process.grpc_port}") as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(f"{SERVICE}/ServerLive")(b"", timeout=10)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
