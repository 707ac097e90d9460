"""The control port's models: what they look like, and that a change is taken whole or refused with a clear message."""

import asyncio
import json
import socket
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from starlette.applications import Starlette

from dlproxy.config import ConfigError
from dlproxy.instance.runtime import ModelError
from dlproxy.message import Failure, FailureKind, InferenceError
from dlproxy.policy.planner import VersionState
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.control.http import MOST_BODY, control_app
from dlproxy.wire.control.server import ControlServer

from .fixtures import PLAIN, Client, EchoService, post, request, served


class Control:
    """A ModelControl with one knob, `speed`."""

    def __init__(self) -> None:
        self.speed = 1

    def state(self) -> dict[str, Any]:
        return {"knobs": {"speed": self.speed}}


class Pilots:
    """An autopilot of model m that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def states(self, name: str = "") -> list[dict[str, Any]]:
        self._known(name)
        return [{"name": "m", "whole": bool(name)}]

    def pause(self, name: str = "") -> None:
        self._known(name)
        self.told.append(("pause", name))

    def resume(self, name: str = "") -> None:
        self.told.append(("resume", name))

    async def challenge(self, challenger: str, name: str = "") -> None:
        self._known(name)
        if not challenger.endswith(".onnx"):
            raise ConfigError(f"there is no policy '{challenger}'")
        self.told.append((challenger, name))

    def _known(self, name: str) -> None:
        if name not in ("", "m"):
            raise InferenceError(Failure(FailureKind.NOT_FOUND, f"there is no model '{name}'"))


class Remembered:
    """Result caches of both versions of m."""

    def __init__(self) -> None:
        self.entries = {"1": 0, "2": 3}

    def states(self, name: str = "") -> list[dict[str, Any]]:
        found = [{"name": "m", "version": version, "entries": count} for version, count in self.entries.items()]
        return found if name in ("", "m") else []

    def clear(self, name: str = "") -> int:
        if name not in ("", "m"):
            return 0
        forgotten = sum(self.entries.values())
        self.entries = dict.fromkeys(self.entries, 0)
        return forgotten


class Port:
    """The application, asked as uvicorn asks it; models m (versions 1 and 2) and fixed. An Operations, too."""

    def __init__(self, *others: str) -> None:
        self.controls = {"1": Control(), "2": Control()}
        catalog = Catalog()
        for version, control in self.controls.items():
            model = served(EchoService(PLAIN, version=version))
            model.control = control
            catalog.add(model)
        for name in ("fixed", *others):
            catalog.add(served(EchoService(PLAIN, model=name)))
        self.catalog = catalog
        self.coming: list[VersionState] = []
        self.acted: list[tuple[str, str, Mapping[str, Any]]] = []
        self.pilots = Pilots()
        self.remembered = Remembered()
        self.app: Starlette = control_app(catalog, lambda: 0, self, self.pilots, self.remembered)

    def states(self) -> list[VersionState]:
        here = [
            VersionState(one.name, one.version, "serving", default=self.catalog.get(one.name) is one) for one in self.catalog
        ]
        return here + self.coming

    async def act(self, name: str, action: str, arguments: Mapping[str, Any]) -> None:
        self.acted.append((name, action, arguments))
        if action == "explode":
            raise ModelError("it cannot be loaded")
        if action == "set":
            if not isinstance(arguments["knobs"].get("speed", 1), int):
                raise ConfigError("speed: expected `int`")
            control = self.controls[arguments["version"]]
            control.speed = arguments["knobs"].get("speed", control.speed)

    def __call__(self, method: str, path: str, *pieces: bytes, leaves: bool = False) -> tuple[int, Any]:
        """Status and JSON (or text) of the answer. `leaves`: the client goes before its body has ended."""
        return asyncio.run(ask(self.app, method, path, *pieces, leaves=leaves))


async def ask(app: Starlette, method: str, path: str, *pieces: bytes, leaves: bool = False) -> tuple[int, Any]:
    """As uvicorn asks it: status and JSON (or text) of the answer."""
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [],
        "server": ("127.0.0.1", 8002),
    }
    inbox = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    inbox.append({"type": "http.disconnect"} if leaves else {"type": "http.request", "body": b"", "more_body": False})
    sent: list[Any] = []

    async def receive() -> Any:
        return inbox.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    try:
        return sent[0]["status"], json.loads(body)
    except ValueError:
        return sent[0]["status"], body.decode()


def state(version: str, speed: int = 1) -> dict[str, Any]:
    shown = {**seen("m", version, default=version == "2"), "ready": True, "knobs": {"speed": speed}, "busy_s": 0.0}
    return {**shown, "cache": {"entries": 3 if version == "2" else 0}}


def seen(name: str, version: str, **fields: Any) -> dict[str, Any]:
    """As a VersionState is shown."""
    return {
        "name": name,
        "version": version,
        "phase": "serving",
        "reason": "",
        "default": True,
        "labels": [],
        "share": 0.0,
        "on_demand": False,
        "size_bytes": 0,
        **fields,
    }


def test_all_models_are_shown() -> None:
    port = Port()
    fixed = {**seen("fixed", "1"), "ready": True, "busy_s": 0.0}
    assert port("GET", "/models") == (200, [state("1"), state("2"), fixed])
    port.coming.append(VersionState("m", "3", "failed", reason="no such file"))
    third = {**seen("m", "3", phase="failed", default=False, reason="no such file"), "ready": False}
    assert port("GET", "/models") == (200, [state("1"), state("2"), fixed, third])
    port.catalog.announce("m", "3", "is being loaded")
    assert port("GET", "/models/m?version=3") == (503, {"error": "model 'm' version 3 is being loaded"})


def test_how_a_shadows_answers_compare_is_shown_once_there_are_any() -> None:
    port = Port()
    port.catalog.get("m", "2").stats.shadows["different"] = 3
    shown = {**state("2"), "shadow": {"same": 0, "different": 3, "failed": 0, "dropped": 0}}
    assert port("GET", "/models/m?version=2") == (200, shown)
    assert port("GET", "/models/m?version=1") == (200, state("1"))


def test_streams_are_shown_of_a_model_that_answers_in_parts() -> None:
    port = Port()
    streams = port.catalog.get("m", "2").stats.streaming()
    streams.open, streams.parts = 3, 40
    assert port("GET", "/models/m?version=2") == (200, {**state("2"), "streams": {"open": 3, "parts": 40}})


def test_an_action_is_done_and_answered_with_the_state_of_all_versions() -> None:
    port = Port()
    assert port("POST", "/models/m/promote", b'{"version": "1"}') == (200, [state("1"), state("2")])
    assert port("POST", "/models/new%20one/unload") == (200, [])
    assert port.acted == [("m", "promote", {"version": "1"}), ("new one", "unload", {})]
    assert port("POST", "/models/m/explode") == (400, {"error": "it cannot be loaded"})


def test_a_model_is_healthy_if_all_its_versions_are() -> None:
    port = Port()
    assert port("GET", "/healthz") == (200, {"ready": True, "models": {"m": True, "fixed": True}})
    port.catalog.add(served(EchoService(PLAIN, version="1"), ready=False))
    assert port("GET", "/healthz") == (503, {"ready": False, "models": {"m": False, "fixed": True}})


@pytest.mark.parametrize(("path", "version"), [("/models/m", "2"), ("/models/m?version=1", "1"), ("/models/m?version=", "2")])
def test_one_model_is_shown_in_its_latest_version_or_the_one_asked_for(path: str, version: str) -> None:
    assert Port()("GET", path) == (200, state(version))


@pytest.mark.parametrize("method", ["GET", "PATCH"])
@pytest.mark.parametrize(
    ("path", "clues"), [("/models/n", ["'n'", "'m', 'fixed'"]), ("/models/m?version=7", ["'m' version 7", "1, 2"])]
)
def test_a_model_that_is_not_there_is_404(method: str, path: str, clues: list[str]) -> None:
    port = Port()
    status, body = port(method, path, b'{"speed": 2}')
    assert status == 404
    assert not [clue for clue in clues if clue not in body["error"]], body["error"]
    assert not port.acted


def test_a_change_is_answered_with_the_new_state() -> None:
    port = Port()
    assert port("PATCH", "/models/m", b'{"spe', b'ed": 4}') == (200, state("2", speed=4))
    assert port("GET", "/models/m?version=1") == (200, state("1"))
    assert port("PATCH", "/models/m?version=1", b'{"speed": 3}') == (200, state("1", speed=3))
    assert port("PATCH", "/models/m", b"{}") == (200, state("2", speed=4))


@pytest.mark.parametrize(
    ("body", "clue"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"discipline=edf", "not JSON"),
        (b"{'speed': 2}", "not JSON"),
        (b'{"speed": NaN}', "not JSON"),
        (b'{"speed": 1e400}', "not JSON"),
        (b'{"speed": "\xff"}', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 60_000, "not JSON"),
        (b'{"a":' * 10_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b'[{"speed": 2}]', "not a JSON object"),
        (b'"speed"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"3", "not a JSON object"),
    ],
)
def test_a_body_that_is_no_object_is_refused(body: bytes, clue: str) -> None:
    port = Port()
    status, answer = port("PATCH", "/models/m", body)
    assert status == 400
    assert clue in answer["error"]
    assert len(answer["error"]) < 300
    assert port.acted == []


def test_a_refusal_says_what_the_model_says_of_it() -> None:
    port = Port()
    assert port("PATCH", "/models/m", b'{"speed": "quick"}') == (400, {"error": "speed: expected `int`"})
    assert port("GET", "/models/m") == (200, state("2"))


def test_a_body_may_be_as_long_as_any_object_of_knobs_and_no_longer() -> None:
    body = b'{"speed": 2}'.ljust(MOST_BODY)
    port = Port()
    assert port("PATCH", "/models/m", body)[0] == 200
    status, answer = port("PATCH", "/models/m", body[:100], body[100:], b" ")
    assert (status, answer) == (400, {"error": f"the body is longer than {MOST_BODY} bytes"})
    assert len(port.acted) == 1


def test_a_client_that_leaves_in_the_middle_changes_nothing() -> None:
    port = Port()
    port("PATCH", "/models/m", b'{"speed": 2}', leaves=True)
    assert port.acted == []


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/models/m"), ("PUT", "/models/m"), ("DELETE", "/models/m"), ("PATCH", "/models"), ("POST", "/models")],
)
def test_other_methods_are_refused(method: str, path: str) -> None:
    port = Port()
    assert port(method, path, b'{"speed": 2}')[0] == 405
    assert port.acted == []


@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
def test_the_other_pages_stand_beside(path: str) -> None:
    ask: Callable[..., tuple[int, Any]] = Port()
    assert ask("GET", path)[0] == 200


# Paths and HTTP


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *(("m/", "m"), ("%6D", "m"), ("my%20model", "my model"), ("z%C3%BCrich/", "zürich"), ("a+b", "a+b"), ("a%2Bb", "a+b")),
        *(("a%2Fb", "a/b"), ("100%25", "100%"), ("%2525", "%25")),
    ],
)
def test_a_model_is_found_however_its_name_is_spelt(path: str, name: str) -> None:
    port = Port("my model", "zürich", "a+b", "a/b", "100%", "%25")
    status, told = port("GET", f"/models/{path}")
    assert (status, told["name"]) == (200, name)


@pytest.mark.parametrize("path", ["/models/%", "/models/%zz", "/%4", "/models/m%"])
def test_an_escape_that_is_none_is_400(path: str) -> None:
    status, told = Port()("GET", path)
    assert status == 400
    assert "%25" in told["error"]


@pytest.mark.parametrize("path", ["/models%2Fm", "/models//m", "/models/m//", "/models/m%2Fscale", "/models/m/scale/x"])
def test_a_slash_that_came_encoded_parts_nothing(path: str) -> None:
    assert Port()("GET", path)[0] == 404


async def test_bodies_arrive_behind_an_offer_to_upgrade_and_targets_with_a_host_are_understood() -> None:
    port = Port()
    server, listener = ControlServer(port.app), socket.create_server(("127.0.0.1", 0))
    server.start(listener)
    client = Client(*await asyncio.open_connection(*listener.getsockname()))
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQ"}
    for speed, target in enumerate(("/models/m", "http://127.0.0.1:8002/models/m/?version=1"), start=2):
        client.send(request(target, "PATCH", {"Content-Length": "11", **offer}, b'{"speed":%d}' % speed))
        reply = await client.reply()
        assert (reply.status, reply.json()["knobs"]) == (200, {"speed": speed})
    assert [control.speed for control in port.controls.values()] == [3, 2]
    client.send(post("/models/m/scale", b"[]", Connection="Upgrade", Upgrade="websocket"))
    assert (await client.reply()).status == 400
    await client.close()
    await server.stop()


def test_the_autopilot_is_shown_paused_and_resumed() -> None:
    port = Port()
    assert port("GET", "/autopilot") == (200, [{"name": "m", "whole": False}])
    assert port("GET", "/autopilot/m") == (200, [{"name": "m", "whole": True}])
    assert port("GET", "/autopilot/zzz") == (404, {"error": "there is no model 'zzz'"})
    assert port("POST", "/autopilot/pause", b'{"model": "m"}')[0] == 200
    assert port("POST", "/autopilot/resume")[0] == 200
    assert port.pilots.told == [("pause", "m"), ("resume", "")]
    for body in (b'{"model": 3}', b'{"modle": "m"}', b"[]"):
        status, told = port("POST", "/autopilot/pause", body)
        assert (status, list(told)) == (400, ["error"])
    assert port("POST", "/autopilot/pause", b'{"model": "zzz"}')[0] == 404


def test_the_autopilot_is_challenged() -> None:
    port = Port()
    assert port("POST", "/autopilot/challenge", b'{"challenger": "a.onnx", "model": "m"}')[0] == 200
    assert port("POST", "/autopilot/challenge", b'{"challenger": "b.onnx"}')[0] == 200
    assert port.pilots.told == [("a.onnx", "m"), ("b.onnx", "")]
    assert port("POST", "/autopilot/challenge", b'{"challenger": "oracle"}') == (400, {"error": "there is no policy 'oracle'"})
    for body in (b"{}", b'{"challenger": 3}', b'{"challenger": "a.onnx", "modle": "m"}'):
        assert port("POST", "/autopilot/challenge", body)[0] == 400
    assert port("POST", "/autopilot/challenge", b'{"challenger": "a.onnx", "model": "zzz"}')[0] == 404


def test_result_caches_are_shown_and_cleared() -> None:
    port = Port()
    first, second = ({"name": "m", "version": "1", "entries": 0}, {"name": "m", "version": "2", "entries": 3})
    assert port("GET", "/cache") == (200, [first, second]) == port("GET", "/cache/m")
    assert port("GET", "/cache/fixed") == (200, []), "it remembers nothing"
    assert port("POST", "/cache/clear", b'{"model": "fixed"}') == (200, {"forgotten": 0})
    assert port("POST", "/cache/clear", b'{"model": "m"}') == (200, {"forgotten": 3})
    assert port("GET", "/cache/m")[1][1]["entries"] == 0
    port.remembered.entries["1"] = 5
    assert port("POST", "/cache/clear") == (200, {"forgotten": 5})


@pytest.mark.parametrize(
    ("body", "status", "clue"),
    [
        (b'{"model": "zzz"}', 404, "'zzz' is not found"),
        (b'{"model": 1}', 400, '{"model": "digits"}'),
        (b'{"modle": "m"}', 400, '{"model": "digits"}'),
        (b"[]", 400, "not a JSON object"),
    ],
)
def test_what_names_no_model_clears_nothing(body: bytes, status: int, clue: str) -> None:
    port = Port()
    answered, told = port("POST", "/cache/clear", body)
    assert answered == status
    assert clue in told["error"]
    assert port.remembered.entries["2"] == 3
    assert port("GET", "/cache/clear")[0] == 404, "which is a model's name"
    assert port("GET", "/cache/zzz")[0] == 404
