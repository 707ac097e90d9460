"""Whole servers under pressure: quotas, urgent requests in a full queue, knobs that change under load, and its replay."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest

from dlproxy.policy.events import BatchDone, Dispatch, KnobsChanged, TurnGranted
from dlproxy.telemetry.event_log import read, replay
from tests.clients import raw
from tests.clients.server import ServerProcess, asked

ONE = b'{"inputs":[[1]]}'
CONNECTIONS = 32


def config(folder: Path, text: str) -> Path:
    path = folder / "dlproxy.toml"
    path.write_text(text, "utf-8")
    return path


def ask_control(server: ServerProcess, path: str, changes: dict[str, Any] | None = None) -> tuple[int, Any]:
    """A GET of the control port or, with changes, a PATCH."""
    told = asked(f"http://127.0.0.1:{server.control_port}{path}", changes, method=None if changes is None else "PATCH")
    return told.status, told.json


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """quick, with a quota for some; small: batches of one of 150 ms, of which four may wait."""
    text = """
        [tenants.small]
        requests_per_s = 0.02
        burst_s = 100
        [tenants."zürich"]
        rows_per_s = 0.01
        burst_s = 100
        [models.quick]
        path = "sleep:base=10us"
        [models.small]
        path = "sleep:base=150ms"
        max_batch = 1
        max_queue_rows = 4
        run = "thread"
        discipline = "priority"
    """
    with ServerProcess("--config", config(tmp_path_factory.mktemp("pressure"), text)) as process:
        yield process
        assert process.stop() == 0
        assert "Traceback" not in process.errors()


async def test_a_tenant_over_its_quota_is_429_and_another_is_not(server: ServerProcess, connect: raw.Connect) -> None:
    connection = await connect(server.http_port)

    async def ask(tenant: str, body: bytes = ONE) -> raw.RawReply:
        return await connection.ask(raw.post("/predict/quick", body, f"x-tenant-id: {tenant}"))

    assert [(await ask("small")).status for _ in range(4)] == [200, 200, 429, 429], "two in 100 s"
    refused = await ask("small")
    assert 1 <= int(refused.headers["retry-after"]) <= 50
    assert "tenant 'small' may send 0.02 requests a second" in refused.json()["error"]
    assert not refused.closes
    assert {(await ask(tenant)).status for tenant in ("other", "SMALL", "") for _ in range(5)} == {200}
    assert server.stats("quick")["inference_stats"]["fail"]["count"] == 3


async def test_rows_count_too_and_names_may_have_any_letters(server: ServerProcess, connect: raw.Connect) -> None:
    connection = await connect(server.http_port)
    request = raw.post("/predict/quick", b'{"inputs":[[1],[2]]}', "x-tenant-id: zürich")
    statuses = [(await connection.ask(request)).status for _ in range(2)]
    assert statuses == [200, 429], "more than its burst passes once, and is paid back"


async def test_an_urgent_request_gets_a_place_in_a_full_queue(server: ServerProcess, connect: raw.Connect) -> None:
    crowd = [await connect(server.http_port) for _ in range(5)]
    crowd[0].send(raw.post("/predict/small", ONE, "x-request-priority: 7"))
    wait_for(server, running_batches=1)
    for connection in crowd[1:]:
        connection.send(raw.post("/predict/small", ONE, "x-request-priority: 7"))
    wait_for(server, queued_requests=4)
    urgent = await connect(server.http_port)
    reply = await urgent.ask(raw.post("/predict/small", ONE, "x-request-priority: 1"))
    assert (reply.status, reply.json()["outputs"]) == (200, {"y": [[1.0]]})
    assert sum(connection.received for connection in crowd) <= 2, "it ran next"
    replies = [await connection.replies.get() for connection in crowd]
    assert Counter(reply.status for reply in replies) == {200: 4, 503: 1}
    (displaced,) = (reply for reply in replies if reply.status == 503)
    assert "more urgent" in displaced.json()["error"]
    assert displaced.headers["retry-after"] == "1"
    assert not displaced.closes


def wait_for(server: ServerProcess, **state: int) -> None:
    """Until model small is in this state. What was sent needs no turn of this loop to reach the server."""
    while not state.items() <= ask_control(server, "/models/small")[1].items():
        pass


async def test_a_deadline_in_a_header_is_kept_while_the_model_is_busy(server: ServerProcess, connect: raw.Connect) -> None:
    first, second = [await connect(server.http_port) for _ in range(2)]
    first.send(raw.post("/predict/small", ONE))
    wait_for(server, running_batches=1)
    late = await second.ask(raw.post("/predict/small", ONE, "x-request-deadline-ms: 20"))
    assert late.status == 503
    assert "timeout expired" in late.json()["error"]
    assert first.received == 0, "before the batch that ran had ended"
    assert (await first.replies.get()).status == 200


def test_a_change_over_the_control_port_holds_or_is_refused(server: ServerProcess) -> None:
    status, state = ask_control(server, "/models/quick", {"discipline": "hrrn", "max_batch": 16})
    assert (status, state["knobs"]["discipline"], state["knobs"]["max_batch"]) == (200, "hrrn", 16)
    assert ask_control(server, "/models/quick", {"dicipline": "edf"})[0] == 400
    assert ask_control(server, "/models/nobody", {"discipline": "edf"})[0] == 404
    assert ask_control(server, "/models/quick")[1]["knobs"] == state["knobs"]
    assert [model["name"] for model in ask_control(server, "/models")[1]] == ["quick", "small"]


CHANGES: list[dict[str, Any]] = [
    *({"discipline": name} for name in ("fcfs", "sjf", "hrrn", "mlfq", "priority", "fair", "edf")),
    *({"balancer": name} for name in ("round-robin", "least-connections", "power-of-two", "prequal", "consistent-hash")),
    *({"max_batch": rows} for rows in (1, 7, 2, 32)),
    {"discipline": "fair", "balancer": "peak-ewma", "max_batch": 3, "max_wait_s": 0.001, "hedge": True, "eject_after": 0},
    {"slo": "p99=60s", "ageing_s": 0.1, "retry_budget": 0, "codel_target_s": 30, "slow_start_s": 1},
]


async def test_changing_knobs_under_load_loses_no_request_and_replays(tmp_path: Path, connect: raw.Connect) -> None:
    """Two models of two instances each share a core: batches wait for turns meanwhile."""
    text = f"""
        [server]
        arbiter = "auto"
        event_log = {str(tmp_path / "log")!r}
        cores = 1
        [tenants.a]
        weight = 3
        [models.m]
        path = "sleep:base=1ms,row=100us"
        instances = 2
        [models.n]
        path = "sleep:base=2ms"
        instances = 2
    """
    statuses: Counter[int] = Counter()
    wanted, enough = 0.0, asyncio.Event()
    with ServerProcess("--config", config(tmp_path, text)) as server:
        assert "take turns on the cores" in server.report

        def again(connection: raw.RawConnection, reply: raw.RawReply) -> None:
            statuses[reply.status] += 1
            if wanted < inf:
                send(connection)
            if statuses.total() >= wanted or all(one.sent == one.received for one in crowd):
                enough.set()

        def send(connection: raw.RawConnection) -> None:
            number = connection.sent * CONNECTIONS + crowd.index(connection)
            tenant, priority = f"x-tenant-id: {'ab'[number % 2]}", f"x-request-priority: {number % 9}"
            connection.send(raw.post(f"/predict/{'mn'[number % 3 == 0]}", ONE, tenant, priority))

        crowd = [await connect(server.http_port, again) for _ in range(CONNECTIONS)]
        for connection in crowd:
            send(connection)
        for changes in CHANGES:
            for model in "mn":
                before = statuses.total()
                status, state = await asyncio.to_thread(ask_control, server, f"/models/{model}", changes)
                assert status == 200, state
                assert changes.items() <= state["knobs"].items()
                wanted, enough = before + 40, asyncio.Event()
                await enough.wait()
        wanted, enough = inf, asyncio.Event()  # no more is sent, and what is under way is answered
        await enough.wait()
        assert server.stop() == 0
        assert "Traceback" not in server.errors()
    assert set(statuses) == {200}
    assert statuses.total() >= 2 * 40 * len(CHANGES)
    for model in "mn":
        check_log(tmp_path / "log" / f"{model}-1.dlog")


def check_log(path: Path) -> None:
    outcome = replay(path)
    assert outcome.first_difference is None
    events = [entry.event for entry in read(path)[1]]
    changed = [event.knobs for event in events if isinstance(event, KnobsChanged)]
    under_load, at_the_end = changed[: 1 + len(CHANGES)], changed[1 + len(CHANGES) :]
    assert len(under_load) == 1 + len(CHANGES), "the first makes it arbitrated"
    assert all(knobs.arbitrated for knobs in under_load)
    assert len(at_the_end) <= 1, "the model that is stopped last has nobody to take turns with"
    assert not any(knobs.arbitrated for knobs in at_the_end)
    granted = sum(isinstance(event, TurnGranted) for event in events)
    ended = sum(isinstance(event, BatchDone) for event in events)
    started = sum(isinstance(command, Dispatch) for entry in read(path)[1] for command in entry.commands)
    assert granted >= started == ended > 20
