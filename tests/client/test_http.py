"""The awaited client over HTTP against servers that misbehave, on real sockets."""

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pytest

from dlproxy import AsyncClient, FailureKind, InferenceError
from dlproxy.instance.remote.http_client import MOST_UNREAD
from tests.certificates import make_certificate, server_context
from tests.client.servers import METADATA, X, body_of, echo, scripted
from tests.instance.upstreams import Asked, ScriptedUpstream, until
from tests.serve.rig import pass_time

BUSY = {"error": "the queue is full"}


async def _failure(call: Any) -> tuple[FailureKind, str]:
    with pytest.raises(InferenceError) as caught:
        await call
    return caught.value.failure.kind, caught.value.failure.message


def _in_turn(*behaviours: Callable[[Asked], Any]) -> Callable[[Asked], Any]:
    """One for each request; the last for all that follow."""
    left = list(behaviours)

    async def behave(asked: Asked) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(asked)

    return behave


async def _hang(asked: Asked) -> None:
    await asyncio.Event().wait()


def _says(status: int, value: Any, extra: str = "") -> Callable[[Asked], Any]:
    async def behave(asked: Asked) -> None:
        asked.reply(value, status, extra)

    return behave


# What is sent


async def test_a_request_is_one_binary_message() -> None:
    async with scripted() as (client, server):
        answer = await client.infer("m", {"x": [[1, 2]]}, outputs=["y"], priority=2, tenant="zürich")
        assert answer["y"].tolist() == [[1, 2]]
        assert answer["y"].dtype == np.float32
        assert not answer["y"].flags.writeable
        (asked,) = server.posts
        assert asked.path == "/v2/models/m/infer"
        assert asked.json() == {
            "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}],
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": "y"}],
        }
        assert (asked.header("x-request-priority"), asked.header("x-tenant-id")) == ("2", "zürich")
        assert not asked.header("x-request-deadline-ms"), "the client's own patience is no deadline"


async def test_the_only_input_needs_no_name_and_connections_and_metadata_are_kept() -> None:
    async with scripted() as (client, server):
        for _ in range(5):
            assert (await client.infer("m", X))["y"].tolist() == X.tolist()
        assert server.accepted == 1
        assert [asked.path for asked in server.asked].count("/v2/models/m") == 1


async def test_who_comes_first_asks_for_the_metadata_for_all() -> None:
    async with scripted() as (client, server):
        answers = await asyncio.gather(*(client.infer("m", X + n) for n in range(20)))
        assert [answer["y"][0, 0] for answer in answers] == list(range(1, 21))
        assert len(server.asked) == 21


async def test_the_server_is_told_what_is_left_of_the_deadline() -> None:
    async with scripted(_in_turn(_says(503, BUSY, "retry-after: 0\r\n"), echo)) as (client, server):
        await client.infer("m", X, timeout_s=5.0)
        first, second = (float(asked.header("x-request-deadline-ms")) for asked in server.posts)
        assert 0 < second < first <= 5000


async def test_version_and_label_are_part_of_the_path() -> None:
    async with scripted() as (client, server):
        server.answers["/v2/models/m/versions/stable"] = METADATA
        await client.infer("m", X, version="stable")
        assert server.posts[0].path == "/v2/models/m/versions/stable/infer"


# What is refused before it is sent


@pytest.mark.parametrize(
    ("inputs", "options", "clue"),
    [
        ({"z": X}, {}, "no input 'z'; these are: x"),
        ({"x": "text"}, {}, "not a kind of FP32"),
        ({"x": [[1], [2, 3]]}, {}, "makes no array"),
        (X, {"outputs": ["yy"]}, "did you mean 'y'"),
        (X, {"outputs": "y"}, r"name them in a list: outputs=\['y'\]"),
        (X, {"tenant": "a\r\nb"}, "no header can carry"),
        (X, {"timeout_s": float("nan")}, "timeout_s is nan"),
    ],
)
async def test_mistakes_are_told_here(inputs: Any, options: Any, clue: str) -> None:
    async with scripted() as (client, server):
        with pytest.raises(InferenceError, match=clue) as caught:
            await client.infer("m", inputs, **options)
        assert caught.value.failure.kind is FailureKind.INVALID_ARGUMENT
        assert not server.posts


async def test_a_model_of_several_inputs_wants_their_names() -> None:
    async with scripted() as (client, server):
        server.answers["/v2/models/m"] = {**METADATA, "inputs": [*METADATA["inputs"], {**METADATA["inputs"][0], "name": "z"}]}  # type: ignore[misc, dict-item]
        assert "{'x': ..., 'z': ...}" in (await _failure(client.infer("m", X)))[1]


# Failures


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, FailureKind.INVALID_ARGUMENT),
        (401, FailureKind.UNAUTHENTICATED),
        (403, FailureKind.FORBIDDEN),
        (404, FailureKind.NOT_FOUND),
        (413, FailureKind.TOO_LARGE),
        (429, FailureKind.OVERLOADED),
        (500, FailureKind.MODEL_FAILED),
        (501, FailureKind.UNSUPPORTED),
        (503, FailureKind.UNAVAILABLE),
        (504, FailureKind.LATE),
        (418, FailureKind.UNAVAILABLE),
    ],
)
async def test_statuses_are_kinds_of_failure_in_the_servers_words(status: int, kind: FailureKind) -> None:
    async with scripted(_says(status, {"error": "because"})) as (client, server):
        assert await _failure(client.infer("m", X)) == (kind, "because")
        assert len(server.posts) == 1


async def test_an_unknown_model() -> None:
    async with scripted() as (client, _):
        assert await _failure(client.infer("other", X)) == (FailureKind.NOT_FOUND, "no such thing")
        assert not await client.ready("other")


GARBAGE = {
    "no HTTP": b"\x00\x01\x02garbage\r\n\r\n",
    "no JSON": b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd",
    "other JSON": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "more bytes than there are": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ninference-header-content-length: 900\r\n\r\n{}",
}


@pytest.mark.parametrize("wire", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_is_no_answer_and_the_next_call_works(wire: bytes) -> None:
    async def behave(asked: Asked) -> None:
        asked.send(wire)

    async with scripted(behave) as (client, server):
        kind, words = await _failure(client.infer("m", X))
        assert kind in (FailureKind.UNAVAILABLE, FailureKind.MODEL_FAILED)
        assert "the server" in words
        assert "upstream" not in words
        assert len(server.posts) == 1, "what may have run was sent again"
        server.behave = echo
        assert (await client.infer("m", X))["y"].tolist() == X.tolist()


@pytest.mark.parametrize("size", [0, 4, 12])
async def test_sizes_that_do_not_add_up(size: int) -> None:
    body, head_bytes = body_of(bytes(8), size=size)
    async with scripted(_says(200, body, f"inference-header-content-length: {head_bytes}\r\n")) as (client, _):
        with pytest.raises(InferenceError, match="the server"):
            await client.infer("m", X)


async def test_an_output_that_does_not_come() -> None:
    async with scripted() as (client, _):
        assert await _failure(client.infer("m", X, outputs=["t"])) == (FailureKind.UNAVAILABLE, "the server gave no output 't'")


async def test_a_server_that_is_gone_in_the_middle_of_its_answer() -> None:
    async def behave(asked: Asked) -> None:
        asked.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc")
        asked.reset()

    async with scripted(behave) as (client, server):
        kind, words = await _failure(client.infer("m", X))
        assert kind is FailureKind.UNAVAILABLE
        assert "the server closed the connection in the middle of its answer" in words
        assert len(server.posts) == 1


# Deadlines


async def test_a_slow_server_is_given_up_in_time_and_sees_that() -> None:
    async with scripted(_hang) as (client, server):
        await client.metadata("m")
        began_at = monotonic()
        kind, words = await _failure(client.infer("m", X, timeout_s=0.1))
        assert monotonic() - began_at >= 0.1
        assert (kind, words) == (FailureKind.LATE, "no answer within 0.1 s")
        server.behave = echo
        assert (await client.infer("m", X))["y"].tolist() == X.tolist()
        assert server.accepted == 2, "a late answer could be taken for the next one"


async def test_cancelling_closes_the_connection() -> None:
    async with scripted(_hang) as (client, server):
        calling = asyncio.create_task(client.infer("m", X))
        await until(lambda: len(server.posts) == 1)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert await server.posts[0].reader.read() == b"", "the server does not see that its client has left"


async def test_calls_beyond_the_connections_wait_for_one_until_their_deadline() -> None:
    release = asyncio.Event()

    async def behave(asked: Asked) -> None:
        await release.wait()
        await echo(asked)

    async with scripted(behave, connections=2) as (client, server):
        await client.metadata("m")
        calls = [asyncio.create_task(client.infer("m", X + n)) for n in range(5)]
        await until(lambda: len(server.posts) == 2)
        assert (await _failure(client.infer("m", X, timeout_s=0.1)))[0] is FailureKind.LATE
        release.set()
        answers = await asyncio.gather(*calls)
        assert [answer["y"][0, 0] for answer in answers] == [1, 2, 3, 4, 5]
        assert server.most_open == 2


# Second tries


async def test_a_kept_connection_that_was_closed_meanwhile_is_no_failure() -> None:
    async def once(asked: Asked) -> None:
        await echo(asked)
        asked.hang_up()

    async with scripted(once) as (client, server):
        for _ in range(3):
            assert (await client.infer("m", X))["y"].tolist() == X.tolist()
        assert len(server.posts) == 3


async def test_whoever_is_told_to_come_back_does_so() -> None:
    async with scripted(_in_turn(_says(429, BUSY, "retry-after: 0\r\n"), _says(503, BUSY, "retry-after: 0\r\n"), echo)) as (
        client,
        server,
    ):
        assert (await client.infer("m", X))["y"].tolist() == X.tolist()
        assert len(server.posts) == 3


@pytest.mark.parametrize(
    ("extra", "settings", "timeout_s"),
    [("", {}, 5.0), ("retry-after: 30\r\n", {}, 5.0), ("retry-after: 0\r\n", {"retry_budget": 0.0}, 5.0)],
    ids=["no time named", "later than the deadline", "no budget"],
)
async def test_who_need_not_come_back_does_not(extra: str, settings: Any, timeout_s: float) -> None:
    async with scripted(_says(503, BUSY, extra), **settings) as (client, server):
        kind, words = await _failure(client.infer("m", X, timeout_s=timeout_s))
        assert (kind, words) == (FailureKind.UNAVAILABLE, "the queue is full")
        assert len(server.posts) == 1


async def test_a_server_that_is_down_is_tried_until_the_deadline_and_may_come_back() -> None:
    server = ScriptedUpstream({"/v2/models/m": METADATA}, echo)
    await server.start()
    await server.stop()
    async with AsyncClient(f"http://127.0.0.1:{server.port}") as client:
        kind, words = await _failure(client.infer("m", X, timeout_s=0.3))
        assert kind in (FailureKind.UNAVAILABLE, FailureKind.LATE)
        assert "refused" in words or "within" in words
        assert not await client.ready(timeout_s=1.0)
        calling = asyncio.create_task(client.infer("m", X, timeout_s=20.0))
        await asyncio.sleep(0)
        await server.start()
        assert (await calling)["y"].tolist() == X.tolist()
        await client.close()
    await server.stop()


# Models that change


async def test_a_model_with_another_signature_is_learnt_again() -> None:
    renamed = {**METADATA, "inputs": [{"name": "new", "datatype": "FP64", "shape": [-1, 2]}]}
    async with scripted() as (client, server):
        await client.infer("m", X)
        server.answers["/v2/models/m"] = renamed

        async def behave(asked: Asked) -> None:
            name = asked.json()["inputs"][0]["name"]
            await (_says(200, {"outputs": []}) if name == "new" else _says(400, {"error": "unexpected input"}))(asked)

        server.behave = behave
        assert await client.infer("m", X) == {}
        assert await client.infer("m", {"new": X}) == {}
        assert len(server.posts) == 4


async def test_a_request_that_is_wrong_is_not_sent_twice() -> None:
    async with scripted() as (client, server):
        await client.infer("m", X)
        server.behave = _says(400, {"error": "wrong shape"})
        assert await _failure(client.infer("m", X)) == (FailureKind.INVALID_ARGUMENT, "wrong shape")
        assert len(server.posts) == 2


# What the server has


async def test_models_and_readiness() -> None:
    index = [{"name": "m", "version": "1", "state": "READY", "reason": ""}, {"name": "n"}]
    async with scripted(_says(200, index)) as (client, server):
        assert [(model.name, model.state) for model in await client.models()] == [("m", "READY"), ("n", "")]
        server.answers |= {"/v2/health/ready": {"ready": True}, "/v2/models/m/ready": {"ready": False}}
        assert await client.ready()
        assert not await client.ready("m")
        assert (await client.metadata("m")).inputs[0].shape == (-1, 2)


async def test_a_closed_client_says_so() -> None:
    async with scripted(_hang) as (client, server):
        calling = asyncio.create_task(client.infer("m", X))
        await until(lambda: len(server.posts) == 1)
        await client.close()
        assert (await _failure(calling))[0] is FailureKind.UNAVAILABLE
        assert await _failure(client.infer("m", X)) == (FailureKind.UNAVAILABLE, "this client is closed")


# Answers in parts


def _lines(*parts: Any, end: bool = True) -> Callable[[Asked], Any]:
    async def behave(asked: Asked) -> None:
        asked.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n")
        for part in parts:
            line = json.dumps(part).encode() + b"\n"
            for piece in (line[:5], line[5:]):
                asked.send(b"%x\r\n%b\r\n" % (len(piece), piece))
                await asked.writer.drain()
        if end:
            asked.send(b"0\r\n\r\n")
        else:
            asked.reset()

    return behave


def _part(y: float) -> dict[str, Any]:
    return {"model": "m", "version": "1", "outputs": {"y": [[y, None]], "t": ["ä"]}}


async def test_parts_are_arrays_as_they_come() -> None:
    async with scripted(_lines(_part(1), _part(2), _part(3))) as (client, server):
        for _ in range(2):
            parts = [part async for part in client.stream("m", X)]
            assert [part["y"][0, 0] for part in parts] == [1, 2, 3]
            assert np.isnan(parts[0]["y"][0, 1])
            assert parts[0]["t"].tolist() == ["ä".encode()]
        assert (server.posts[0].path, server.posts[0].json()) == ("/predict/m", {"inputs": {"x": [[1, 2]]}})
        assert server.accepted == 1, "the connection was not kept"
        assert [list(part) async for part in client.stream("m", X, outputs=["t"])] == [["t"]] * 3


async def test_one_answer_is_one_part() -> None:
    async with scripted(_says(200, _part(7))) as (client, _):
        assert [part["y"][0, 0] async for part in client.stream("m", X)] == [7]


@pytest.mark.parametrize(
    ("behave", "kind", "clue", "before"),
    [
        (_says(404, {"error": "gone"}), FailureKind.NOT_FOUND, "gone", 0),
        (_lines(_part(1), {"error": "the model broke"}), FailureKind.MODEL_FAILED, "the model broke", 1),
        (_lines(_part(1), end=False), FailureKind.UNAVAILABLE, "in the middle of its answer", 1),
        (_lines(_part(1), {"outputs": {"zz": 1}}), FailureKind.UNAVAILABLE, "does not declare", 1),
        (_lines(_part(1), [1]), FailureKind.UNAVAILABLE, "cannot be used", 1),
    ],
)
async def test_a_stream_that_fails(behave: Any, kind: FailureKind, clue: str, before: int) -> None:
    async with scripted(behave) as (client, server):
        async with aclosing(client.stream("m", X)) as parts:
            for _ in range(before):
                await anext(parts)
            with pytest.raises(InferenceError, match=clue) as caught:
                await anext(parts)
        assert caught.value.failure.kind is kind
        assert len(server.posts) == 1


async def test_whoever_leaves_a_stream_closes_its_connection() -> None:
    async def behave(asked: Asked) -> None:
        asked.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        line = json.dumps(_part(1)).encode() + b"\n"
        asked.send(b"%x\r\n%b\r\n" % (len(line), line))
        assert await asked.reader.read() == b""
        left.set()

    left = asyncio.Event()
    async with scripted(behave) as (client, _):
        async with aclosing(client.stream("m", X)) as parts:
            assert (await anext(parts))["y"][0, 0] == 1
        await asyncio.wait_for(left.wait(), 10.0)


async def test_a_slow_reader_holds_the_server_back() -> None:
    written = 0

    async def behave(asked: Asked) -> None:
        nonlocal written
        asked.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        line = json.dumps({"outputs": {"t": ["x" * 100_000]}}).encode() + b"\n"
        for _ in range(400):
            asked.send(b"%x\r\n%b\r\n" % (len(line), line))
            await asked.writer.drain()
            written += 1
        asked.send(b"0\r\n\r\n")

    async with scripted(behave) as (client, _), aclosing(client.stream("m", X)) as parts:
        await anext(parts)
        before = -1
        while before != written:  # until nothing moves any more
            before = written
            await pass_time(0.2)
        assert written < 400, f"all was read ahead, though at most {MOST_UNREAD} bytes should be"
        assert sum([1 async for _ in parts]) == 399


async def test_a_stream_that_falls_silent_is_given_up() -> None:
    async def behave(asked: Asked) -> None:
        asked.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await asyncio.Event().wait()

    async with scripted(behave, timeout_s=0.2) as (client, _):
        with pytest.raises(InferenceError, match=r"within 0\.2 s") as caught:
            [part async for part in client.stream("m", X)]
        assert caught.value.failure.kind is FailureKind.LATE


# TLS


async def test_certificates_are_verified(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    context = server_context(certificate)
    server = ScriptedUpstream({"/v2/models/m": METADATA}, echo)
    await server.start(ssl=context)
    asyncio.get_running_loop().set_exception_handler(lambda loop, what: None)  # the server's own complaints
    url = f"https://127.0.0.1:{server.port}"
    try:
        async with AsyncClient(url, ca_file=str(certificate)) as client:
            assert (await client.infer("m", X))["y"].tolist() == X.tolist()
        async with AsyncClient(url, verify_tls=False) as client:
            assert await client.metadata("m")
        async with AsyncClient(url, retry_budget=0.0) as client:
            kind, words = await _failure(client.infer("m", X))
            assert kind is FailureKind.UNAVAILABLE
            assert "no TLS connection to the server" in words
    finally:
        await server.stop()
    with pytest.raises(ValueError, match="cannot be loaded"):
        AsyncClient(url, ca_file=str(tmp_path / "nothing.pem"))
