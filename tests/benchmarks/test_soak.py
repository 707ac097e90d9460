"""The judge of the soak: a leak is seen among restarts, a failure has its fault's own causes or none, and nothing escapes."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak import memory
from benchmarks.soak.__main__ import findings_of, page
from benchmarks.soak.clients import Asked, Book, Ending
from benchmarks.soak.faults import FAULTS, Strike, clients_of
from benchmarks.soak.memory import Held
from benchmarks.soak.site import Line
from benchmarks.soak.soaking import Outcome, _close, _crashes, plan

BY_NAME = {fault.name: fault for fault in FAULTS}
HOUR = np.arange(0.0, 3600.0, 5.0)


def grows(per_hour: float, *, seed: int = 1, lives: int = 4) -> list[tuple[list[float], list[float]]]:
    """Lives of different sizes, with noise whose neighbours are alike and a few looks in the middle of something."""
    random = np.random.default_rng(seed)
    found = []
    for at in np.array_split(HOUR, lives):
        noise = np.convolve(random.normal(0, 30, len(at) + 9), np.ones(10) / 10, "valid")
        noise[random.integers(0, len(at), 5)] += 5000
        found.append((at.tolist(), (random.uniform(80_000, 90_000) + per_hour * (at - at[0]) / 3600 + noise).tolist()))
    return found


@pytest.mark.parametrize("per_hour", [0.0, 1000.0, -500.0])
def test_growth_is_found_within_its_interval_whatever_restarts(per_hour: float) -> None:
    found = memory.slope(grows(per_hour))
    assert found is not None
    assert found.low < per_hour < found.high
    assert found.high - found.low < 300
    assert found.lives == 4


def test_no_slope_of_a_few_points() -> None:
    assert memory.slope([([0.0, 5.0], [1.0, 2.0]), ([], [])]) is None
    assert memory.slope([]) is None


def test_memory_of_this_process() -> None:
    one = memory.held(0.0, os.getpid(), "keeper")
    assert one is not None
    assert one.rss_kb >= one.pss_kb >= 1000
    assert one.own_kb > 1000
    assert one.descriptors > 2
    assert memory.held(0.0, 2**22 + 1, "keeper") is None
    assert os.getpid() in memory.family(os.getppid())


def answers(identity: str, version: str, value: float) -> str:
    """What the book makes of this answer to request 7 of a model that adds its version."""
    book = Book()
    asked = [book.ask("http", "shop") for _ in range(7)][-1]
    book.judge(asked, lambda: (identity, int(version), value))
    return book.bad[0].kind if book.bad else "right"


@pytest.mark.parametrize(
    ("identity", "version", "value", "kind"),
    [
        ("7", "3", 10.0, "right"),
        ("7", "3", 11.0, "wrong"),
        ("7", "none", 10.0, "wrong"),
        ("8", "3", 10.0, "wrong"),
        ("", "3", 10.0, "wrong"),
        ("6", "3", 10.0, "twice"),
    ],
)
def test_whose_answer_it_is(identity: str, version: str, value: float, kind: str) -> None:
    assert answers(identity, version, value) == kind


def ending(kind: str = "cut", words: str = "EOFError", model: str = "plus", at: float = 105.0, port: int = 7) -> Ending:
    return Ending(kind, words, "http", model, 1, port, at - 1.0, at)


FAR = "503 model 'far': the upstream http://127.0.0.1:1 did not answer within 2 s"


@pytest.mark.parametrize(
    ("fault", "failed", "explained"),
    [
        ("gateway killed", ending(), True),
        ("gateway killed", ending(port=8), False),  # a connection of the other one
        ("gateway killed", ending(at=99.0), False),
        ("gateway killed", ending(at=120.0), False),
        ("gateway killed", ending("refused", "503 full"), False),
        ("gateway killed", ending("wrong", "2.0 for 1.0"), False),
        ("upstream paused", ending("refused", FAR, "far"), True),
        ("upstream paused", ending("refused", FAR), False),
        ("upstream paused", ending("late", FAR, "far"), False),
        ("upstream paused", ending("refused", "500 division by zero", "far"), False),
        ("model removed", ending("refused", "404 'shop' is not found; the models served are …", "shop"), True),
        ("worker killed", ending("refused", "503 the worker process was lost", "twice"), False),
    ],
)
def test_what_a_fault_explains(fault: str, failed: Ending, explained: bool) -> None:
    outcome, book = Outcome("", strikes=[Strike(fault, 100.0, 110.0, ports={7})]), Book()
    book.bad = [failed]
    _close(book, outcome, 0.0)
    assert (len(outcome.explained), len(outcome.unexplained)) == (explained, not explained)
    assert outcome.strikes[0].explained == explained


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "DRAWS", 20)


def outcome_of(seconds: float = 3600.0, leak_kb: float = 0.0) -> Outcome:
    """One in which all was well, but for a gateway that may leak."""
    samples = [
        Held(at, pid, role, 90_000 + int(leak_kb * at / 3600), 95_000, 80_000 + int(leak_kb * at / 3600), 40, 9)
        for at in HOUR[seconds > HOUR].tolist()
        for pid, role in ((1, "keeper"), (2, "gateway"), (3, "worker"), (4, "upstream"))
    ]
    strikes = [Strike("worker killed", 60.0, 62.0, answered=500)]
    return Outcome("", seconds, 60.0, 300.0, strikes, asked={"http plus": 9}, answered={"http plus": 9}, samples=samples)


def missed(outcome: Outcome) -> list[str]:
    return [check.result for findings in findings_of(outcome) for check in findings.checks if check.missed]


@pytest.mark.usefixtures("few_draws")
def test_all_was_well() -> None:
    outcome = outcome_of()
    assert missed(outcome) == []
    text = page(outcome, findings_of(outcome), "a machine", "a command")
    assert "| worker killed: SIGKILL of a worker process; both are up again | 1 | 500 | 0 | 2.0 s |" in text


@pytest.mark.usefixtures("few_draws")
def test_what_makes_a_soak_fail() -> None:
    assert missed(outcome_of(leak_kb=30_000)) == [
        *(f"memory of {name}, growth an hour: the interval's end" for name in ("the keeper", "a gateway", "a worker process")),
        "memory of an upstream's process, growth an hour: the interval's end",
        "PSS of all, growth an hour: the interval's end",
    ]
    assert missed(outcome_of(600.0, leak_kb=30_000)) == []  # too short to tell
    outcome = outcome_of()
    outcome.unexplained = [ending(), ending("twice"), ending("wrong"), ending("late"), ending("refused"), ending("unconnected")]
    outcome.unaccounted, outcome.log = 1, ["dlproxy: Traceback"]
    outcome.strikes[0].problem = "BenchmarkError: it did not come back"
    outcome.answered["quota plus"] = 100_000
    assert len(missed(outcome)) == 10


def test_every_fault_has_its_turn_and_gateways_live_long_in_a_long_soak() -> None:
    assert {fault.name for fault in plan(len(FAULTS))} == set(BY_NAME)
    hour = list(plan(59))
    assert {fault.name for fault in hour} == set(BY_NAME)
    assert len(hour) == 59
    assert not any(fault.gateways for fault in hour[7:-7])
    assert [fault.gateways for fault in hour[-7:]].count(True) == 2


def test_crashes_are_found_in_logs(tmp_path: Path) -> None:
    lines = [
        "2026-01-01 10:00:00,000 ERROR a: lost",
        "2026-01-01 10:00:01,000 ERROR b: it",
        "    Traceback (most …):",
        "      x",
    ]
    (tmp_path / "001-dlproxy.log").write_text("\n".join([*lines, "2026-01-01 10:00:02,000 WARNING c: fine"]))
    assert list(_crashes(tmp_path)) == ["001-dlproxy: " + "\n".join(lines[1:])]


async def test_a_line_that_was_dead_stays_so_for_who_was_connected() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    line = Line(port)
    await line.listen(0)
    assert line._server is not None
    way = line._server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", way)
    writer.write(b"1")
    assert await reader.read(1) == b"1"
    assert writer.get_extra_info("sockname")[1] in clients_of(os.getpid(), {way})
    line.die()
    writer.write(b"2")
    late_reader, late = await asyncio.open_connection("127.0.0.1", way)
    late.write(b"3")
    hearing = [asyncio.ensure_future(one.read(1)) for one in (reader, late_reader)]
    done, _ = await asyncio.wait(hearing, timeout=0.2)
    assert not done
    line.live()
    writer.write(b"4")
    done, _ = await asyncio.wait(hearing, timeout=0.2)
    assert not done
    newer, writes = await asyncio.open_connection("127.0.0.1", way)
    writes.write(b"5")
    assert await newer.read(1) == b"5"
    for one in (writer, late, writes):
        one.close()
    await asyncio.wait(hearing)
    await line.close()
    for one in (writer, late, writes):
        with suppress(OSError):
            await one.wait_closed()
    server.close()
    await server.wait_closed()


def test_the_cached_model_is_asked_for_the_same_again() -> None:
    assert Asked(130, "http", "known", 0.0).given == Asked(131, "http", "known", 0.0).given
    assert Asked(130, "http", "plus", 0.0).given != Asked(131, "http", "plus", 0.0).given
