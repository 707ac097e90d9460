"""Whatever a worker's model does to its process: this one lives, and says in plain words what happened to the other."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dlproxy.instance.process.instance import ProcessInstance, WorkerSettings
from dlproxy.instance.process.messages import NotLoaded
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.specs import PythonSpec
from tests.instance import process_models as m
from tests.instance.process_models import children, descriptors, model_at, moody, request, soon_as_before, wait_for_death
from tests.instance.running import run
from tests.instance.test_process import values

HANG_S = 30.0
LIMIT = 700 * 2**20


class Losses:
    """What `on_lost` was told; `first` waits for it."""

    def __init__(self, instance: ProcessInstance) -> None:
        self.reasons: list[str] = []
        self._event = asyncio.Event()
        instance.on_lost = self._lost

    def _lost(self, reason: str) -> None:
        self.reasons.append(reason)
        self._event.set()

    async def first(self) -> str:
        await asyncio.wait_for(self._event.wait(), HANG_S)
        return self.reasons[0]


async def watched(**settings: Any) -> tuple[ProcessInstance, Losses]:
    """A worker with a Moody model."""
    instance = moody(**settings)
    losses = Losses(instance)
    await instance.start()
    return instance, losses


@pytest.fixture(autouse=True)
async def no_leaks() -> AsyncIterator[None]:
    """No test leaves a descriptor or a child process behind."""
    before, children_before = descriptors(), children()
    yield
    assert soon_as_before(descriptors, before)
    assert soon_as_before(children, children_before)


@pytest.mark.parametrize(
    ("mood", "reason"),
    [
        (m.EXIT, "its process ended by itself with exit status 7 while it ran a batch"),
        (m.SYS_EXIT, "its process ended by itself with exit status 3 while it ran a batch"),
        (m.SEGFAULT, "its process was killed by SIGSEGV while it ran a batch"),
        (m.ABORT, "its process was killed by SIGABRT while it ran a batch"),
        (
            m.SIGKILL,
            "its process was killed by SIGKILL (not by dlproxy: perhaps by the kernel, short of memory) while it ran a batch",
        ),
    ],
)
async def test_a_crash_is_told_once_and_its_batch_never_ends(mood: int, reason: str) -> None:
    instance, losses = await watched()
    results: list[object] = []
    instance.run([request(mood)], results.append)
    assert await losses.first() == reason
    await instance.stop()
    assert losses.reasons == [reason]
    assert not results
    assert instance.pid is None


async def test_a_death_without_work_is_told_too() -> None:
    instance, losses = await watched()
    assert instance.pid is not None
    os.kill(instance.pid, signal.SIGKILL)
    assert (await losses.first()).startswith("its process was killed by SIGKILL")


async def test_a_batch_given_to_a_worker_that_has_just_died_is_lost_with_it() -> None:
    instance, losses = await watched()
    assert instance.pid is not None
    os.kill(instance.pid, signal.SIGKILL)
    wait_for_death(instance.pid)
    results: list[object] = []
    instance.run([request(1.0)], results.append)
    assert (await losses.first()).endswith("while it ran a batch")
    assert not results


async def test_an_exception_fails_its_batch_and_no_other() -> None:
    instance, losses = await watched()
    assert (await run(instance, request(1.0), request(m.RAISE))).error == "out of luck"
    assert values(await run(instance, request(1.0))) == [[2.0, 2.0]]
    await instance.stop()
    assert not losses.reasons


async def test_a_batch_that_hangs_costs_the_worker_its_life() -> None:
    instance, losses = await watched(batch_timeout_s=0.2)
    assert values(await run(instance, request(1.0))) == [[2.0, 2.0]]
    results: list[object] = []
    instance.run([request(m.HANG)], results.append)
    assert await losses.first() == "it did not finish a batch within 0.2 s (batch_timeout_s)"
    assert not results


async def test_each_batch_has_its_own_time() -> None:
    limit_s = 0.4
    instance, losses = await watched(batch_timeout_s=limit_s)
    loop = asyncio.get_running_loop()
    first_runs_out_at = loop.time() + limit_s
    while loop.time() < first_runs_out_at - 0.5 * limit_s:
        assert values(await run(instance, request(1.0))) == [[2.0, 2.0]]
    began_at = loop.time()
    instance.run([request(m.HANG)], lambda result: None)
    await losses.first()
    assert loop.time() - began_at > limit_s - 0.01  # event loops count in milliseconds


async def test_a_worker_that_closes_its_socket_is_lost() -> None:
    instance, losses = await watched()
    instance.run([request(m.CLOSE)], lambda result: None)
    assert "while it ran a batch" in await losses.first()


async def test_a_worker_lost_while_it_is_stopped_is_told_if_it_ran_a_batch(tmp_path: Path) -> None:
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    instance, losses = await watched(fifo=fifo)
    instance.run([request(m.GATE)], lambda result: None)
    gate = await asyncio.to_thread(fifo.open, "wb")
    stopping = asyncio.create_task(instance.stop())
    await asyncio.sleep(0)
    assert instance.pid is not None
    os.kill(instance.pid, signal.SIGKILL)
    await asyncio.wait_for(stopping, HANG_S)
    gate.close()
    assert len(losses.reasons) == 1


async def test_a_worker_that_does_not_want_to_end_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    instance, losses = await watched(stop_timeout_s=0.1)
    assert instance.pid is not None
    os.kill(instance.pid, signal.SIGSTOP)
    await asyncio.wait_for(instance.stop(), HANG_S)
    assert "m-0: did not end within 0.1 s, so it is killed" in caplog.text
    assert not losses.reasons


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_that_are_meant_for_the_server_do_not_end_it(number: signal.Signals) -> None:
    instance, losses = await watched()
    assert instance.pid is not None
    os.kill(instance.pid, number)
    assert values(await run(instance, request(1.0))) == [[2.0, 2.0]]
    await instance.stop()
    assert not losses.reasons


# Memory


async def test_a_memory_limit_fails_the_batch_that_meets_it() -> None:
    instance = moody(memory_limit_bytes=LIMIT)
    await instance.start()
    error = (await run(instance, request(m.ALLOCATE))).error
    assert error is not None
    assert "Unable to allocate 2.00 GiB" in error
    assert "(memory_limit_mb = 700; a worker without a model takes" in error
    assert values(await run(instance, request(1.0))) == [[2.0, 2.0]]
    await instance.stop()


async def test_a_model_too_large_for_the_limit_says_so() -> None:
    with pytest.raises(ModelError, match=r"no memory is left to load the model: Unable to allocate.*memory_limit_mb = 700;"):
        await _loads("allocates", memory_limit_bytes=LIMIT).start()


@pytest.mark.parametrize("mib", [1, 20])
async def test_a_limit_that_no_worker_can_live_with_is_refused_in_a_line(mib: int) -> None:
    with pytest.raises(
        ModelError, match=rf"^too little memory: memory_limit_mb = {mib}; a worker without a model takes \d+; give"
    ):
        await moody(memory_limit_bytes=mib * 2**20).start()


# Loading


def _loads(how: str, said: str = "", **settings: Any) -> ProcessInstance:
    spec = PythonSpec("tests.instance.process_models:loads", {"how": how, "said": said})
    return ProcessInstance("m-0", spec, WorkerSettings(**settings))


@pytest.mark.parametrize(
    ("instance", "error"),
    [
        (_loads("refuses"), "^weights.bin is not what it was$"),
        (_loads("raises"), "^RuntimeError: no such layer$"),
        (
            _loads("dies", "reading shard 3\n"),
            r"^m-0: .* killed by SIGSEGV while it loaded its model; the last that it printed: reading shard 3 / Fatal Python",
        ),
        (_loads("hangs", start_timeout_s=0.5), r"^m-0: did not load its model within 0.5 s \(load_timeout_s\)"),
        (_loads("a text"), "process_models:loads gave a str, which lacks a Signature or a run method"),
        (ProcessInstance("m-0", PythonSpec("tests.instance.process_models:Mody")), "process_models has no 'Mody'"),
        (ProcessInstance("m-0", PythonSpec("no_such_module:Model")), "no_such_module:Model: No module named 'no_such_module'"),
        (ProcessInstance("m-0", PythonSpec("Model")), "'Model' names no Python object; write it like package.module:Class"),
        (ProcessInstance("m-0", model_at("nowhere.onnx")), "nowhere.onnx"),
        (moody(cores=(4096,)), r"cannot run on cores \[4096\]: Invalid argument"),
        (moody(cores=(-1,)), r"cannot run on cores \[-1\]: negative CPU number"),
    ],
)
async def test_a_model_that_cannot_be_loaded_says_why(instance: ProcessInstance, error: str) -> None:
    losses = Losses(instance)
    with pytest.raises(ModelError, match=error):
        await instance.start()
    assert not losses.reasons, "who never was cannot be lost"
    await instance.stop()


async def test_an_interpreter_that_cannot_start_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/no/such/python")
    with pytest.raises(ModelError, match=r"m-0: cannot start a process: .*No such file"):
        await moody().start()


# What it prints


async def test_a_worker_that_ends_as_soon_as_it_has_said_why_it_cannot_load_is_not_lost() -> None:
    instance = moody()
    losses = Losses(instance)
    instance._loading = loading = asyncio.get_running_loop().create_future()
    instance._on_report(NotLoaded("no such layer"))
    instance._on_exit("its process ended by itself")
    with pytest.raises(ModelError, match="no such layer"):
        await loading
    assert not losses.reasons


async def test_what_a_worker_prints_is_logged_under_its_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    instance = moody()
    await instance.start()
    await run(instance, request(m.COMPLAIN))
    await instance.stop()
    assert "m-0: the model complains" in caplog.messages
    assert caplog.messages[-1] == "m-0: closed", "it may say good-bye"


async def test_a_worker_that_prints_without_end_is_neither_held_up_nor_logged_in_full(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    instance = moody()
    await instance.start()
    for _ in range(5):
        assert (await run(instance, request(m.PRINT))).error is None
    await instance.stop()
    assert 20 < len(caplog.messages) < 100
    assert any(message.endswith("lines left out)") for message in caplog.messages)
    assert caplog.messages[-1] == "m-0: closed", "the last words count"
