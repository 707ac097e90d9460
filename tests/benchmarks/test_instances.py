"""The judge of benchmarks/instances: that nothing which goes wrong with a request or leaks from a process escapes it."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.harness import running
from benchmarks.harness.checks import Findings
from benchmarks.harness.live import Live
from benchmarks.harness.processes import BenchmarkError
from benchmarks.harness.turns import spread
from benchmarks.instances import __main__ as command
from benchmarks.instances import faulty, watch
from benchmarks.instances.crowd import Crowd, Tally, ask_for, ask_once

Array = NDArray[np.float32]
Reply = Callable[[str, Array], bytes]  # (id, values) to whatever the server sends; nothing: it hangs up

CLIENTS, ODD = 4, 17  # the request that the server answers in an odd way


def answer(name: str, values: Array) -> bytes:
    """As dlproxy answers."""
    head = json.dumps({"id": name, "outputs": [{"name": "output", "datatype": "FP32", "shape": values.shape}]}).encode()
    lines = ["HTTP/1.1 200 OK", f"inference-header-content-length: {len(head)}", f"content-length: {len(head) + values.nbytes}"]
    return "\r\n".join([*lines, "", ""]).encode() + head + values.tobytes()


def refusal(name: str, values: Array) -> bytes:
    return b'HTTP/1.1 503 Service Unavailable\r\ncontent-length: 16\r\n\r\n{"error":"full"}'


def hang_up(name: str, values: Array) -> bytes:
    return b""


async def judged(odd: Reply) -> Tally:
    """A crowd's verdict on a server that gives twice of what it gets, but answers request ODD oddly."""
    enough, answered = asyncio.Event(), 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        while True:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
            except asyncio.IncompleteReadError:  # the client has left
                break
            json_bytes, size = (int(number) for number in re.findall(r"Content-Length: (\d+)", head))
            body = await reader.readexactly(size)
            asked = json.loads(body[:json_bytes])
            values = 2 * np.frombuffer(body[json_bytes:], np.float32).reshape(asked["inputs"][0]["shape"])
            reply = (odd if int(asked["id"]) == ODD else answer)(asked["id"], values)
            answered += 1
            if answered > 2 * ODD:
                enough.set()
            if not reply:
                break
            writer.write(reply)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    items = [np.array([[number, 1.0]], np.float32) for number in range(CLIENTS)]
    async with server, Crowd(url, [ask_for("m", item, 2 * item) for item in items], CLIENTS) as crowd:
        await asyncio.wait_for(enough.wait(), 30.0)
    return crowd.tally


ENDS: dict[str, tuple[Reply, dict[str, int]]] = {  # what request ODD got, and how that counts
    "right": (answer, {}),
    "refused": (refusal, {"failures": 1}),
    "another's number": (lambda name, values: answer("00000000", values), {"wrong": 1}),
    "other values": (lambda name, values: answer(name, values + 1), {"wrong": 1}),
    "not a number": (lambda name, values: answer(name, values * np.float32(np.nan)), {"wrong": 1}),
    "another shape": (lambda name, values: answer(name, values[:, :1]), {"wrong": 1}),
    "no answer": (hang_up, {"lost": 1}),
}


@pytest.mark.parametrize(("odd", "counts"), ENDS.values(), ids=list(ENDS))
async def test_a_request_that_ends_oddly_is_counted_as_what_it_is(odd: Reply, counts: dict[str, int]) -> None:
    tally = await judged(odd)
    assert tally.asked == tally.ended
    assert tally.answered == tally.asked - sum(counts.values())
    found = {name: getattr(tally, name) for name in ("failures", "wrong", "lost", "unasked")}
    assert {name: count for name, count in found.items() if count} == counts


async def test_an_answer_that_comes_twice_is_noticed() -> None:
    tally = await judged(lambda name, values: answer(name, values) * 2)
    assert tally.wrong + tally.unasked >= 1
    assert tally.ended > tally.asked


async def test_a_request_that_is_never_answered_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.instances.crowd.LAST_ANSWERS_S", 0.05)
    tally = await judged(lambda name, values: b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
    assert (tally.lost, tally.asked) == (1, tally.ended)


async def test_one_question_gets_its_answer_or_an_error() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"]}")
        writer.write(refusal("", np.zeros(0, np.float32)) if b"/models/m/" in asked else b"")
        writer.close()

    item = np.zeros((1, 1), np.float32)
    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        told = await ask_once(url, ask_for("m", item, item))
        assert (told.status, told.text) == (503, "full")
        with pytest.raises(EOFError, match="without an answer"):
            await ask_once(url, ask_for("other", item, item))


def test_what_a_process_holds_is_counted() -> None:
    before = watch.holdings(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child, open(__file__, "rb"):
        during = watch.holdings(os.getpid())
        assert child.pid in watch.children_of(os.getpid())
        child.communicate(b"\n")
    after = watch.holdings(os.getpid())
    assert during.children == before.children + 1
    assert during.descriptors == before.descriptors + 2  # the pipe and the file
    assert (after.children, after.descriptors, after.slots) == (before.children, before.descriptors, before.slots)


async def test_waiting_for_what_never_comes_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no() -> bool:
        return False

    monkeypatch.setattr(watch, "HANG_S", 0.02)
    assert await watch.until(no, 0.0, holds=False) > 0.0
    with pytest.raises(BenchmarkError, match="did not come about"):
        await watch.until(no, watch.perf_counter())


def test_the_faulty_model_doubles_and_fails_on_request() -> None:
    model, fine = faulty.Faulty(), np.array([[faulty.OK, 7.0], [0.5, 8.0]], np.float32)
    assert np.array_equal(model.predict({"input": fine})["output"], 2 * fine)
    with pytest.raises(ValueError, match="this item is bad"):
        model.predict({"input": np.array([[faulty.OK, 7.0], [faulty.RAISE, 7.0]], np.float32)})


@pytest.mark.parametrize(("share", "code", "verdict"), [(0.7, 0, "pass"), (0.5, 1, "MISS")])
def test_a_missed_goal_ends_with_1_and_is_on_the_page(
    share: float, code: int, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(live: Live) -> Findings:
        findings = Findings("Rates", details=["- a detail"])
        findings.at_least("process / inline", 0.6, share, note=spread([share, 1.0]))
        findings.none("lost", 0)
        return findings

    monkeypatch.setattr(command, "PARTS", {"rates": SimpleNamespace(run=run, ABOUT="How it was done.")})
    monkeypatch.setattr(running, "interrupt_once", lambda: None)  # it would catch the test run's own Ctrl-C
    page = tmp_path / "page.md"
    assert command.main(["--only", "rates", "--page", str(page)]) == code
    assert verdict in capsys.readouterr().out
    written: Any = page.read_text()
    assert f"| process / inline |  | >= 0.60 | {share:.2f} ({share:.2f} to 1.00) | {verdict} |" in written
    assert f"{2 - code} of 2 goals are reached." in written
    assert "How it was done." in written
    assert "- a detail" in written


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--only", "kills,leeks"])
    assert "there is no leeks; there are kills, faults, leaks" in capsys.readouterr().err
