"""Sequences of a Python class that keeps their state itself: where they live, and what becomes of them with an instance."""

import asyncio
import os
import signal
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlproxy import ConfigError, FailureKind, InferenceError, Model, Proxy

COUNTS = """
import os
import numpy as np

class Counts:
    inputs = {"x": "FP32[-1]"}
    outputs = {"n": "INT64[-1]", "slot": "INT64[-1]", "pid": "INT64[-1]", "id": "BYTES[-1]"}

    def __init__(self):
        self.calls = {}

    def predict(self, batch, sequences):
        if (batch["x"] == 666).any():
            raise ValueError("bad index")
        for one in sequences:
            self.calls[one.id] = 1 if one.start else self.calls[one.id] + 1
        rows = {
            "n": np.array([self.calls[one.id] for one in sequences], np.int64),
            "slot": np.array([one.slot for one in sequences], np.int64),
            "pid": np.full(len(sequences), os.getpid(), np.int64),
            "id": np.array([str(one.id) for one in sequences], object),
        }
        for one in sequences:
            if one.end:
                del self.calls[one.id]
        return rows
"""


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Model]:
    (tmp_path / "counts.py").write_text(COUNTS)

    def made(**settings: Any) -> Model:
        base: dict[str, Any] = {"name": "m", "sequences": "oldest", "run": "process", "threads": 1, "batching": "on"}
        return Model(f"{tmp_path / 'counts.py'}:Counts", **{**base, **settings})

    return made


async def ask(proxy: Proxy, key: int | str = 1, x: float = 0.0, **flags: Any) -> dict[str, Any]:
    found = await proxy.infer("m", {"x": np.array([x], np.float32)}, sequence_id=key, **flags)
    return {name: array[0].decode() if array.dtype == object else array[0].item() for name, array in found.items()}


async def failure(asking: Any) -> Any:
    with pytest.raises(InferenceError) as caught:
        await asking
    return caught.value.failure


async def test_a_killed_worker_ends_its_sequences_and_no_others(model: Callable[..., Model]) -> None:
    keys = range(1, 31)
    async with Proxy([model(instances=3)]) as proxy:
        firsts = await asyncio.gather(*(ask(proxy, key, sequence_start=True) for key in keys))
        homes = {key: (first["pid"], first["slot"]) for key, first in zip(keys, firsts, strict=True)}
        pids = sorted({pid for pid, _ in homes.values()})
        assert [sum(pid == one for pid, _ in homes.values()) for one in pids] == [10, 10, 10]
        assert len({*homes.values()}) == 30
        assert max(slot for _, slot in homes.values()) == 9
        for step in (2, 3):
            answers = await asyncio.gather(*(ask(proxy, key) for key in keys))
            assert [answer["n"] for answer in answers] == [step] * 30
            assert {key: (one["pid"], one["slot"]) for key, one in zip(keys, answers, strict=True)} == homes
        gone = asyncio.Event()
        (served,) = proxy.models
        assert served.sequences is not None
        residence = served.sequences._residence
        assert residence is not None
        told = residence.on_gone

        def hear(lost: list[Hashable], why: str) -> None:
            told(lost, why)
            gone.set()

        residence.on_gone = hear
        os.kill(pids[0], signal.SIGKILL)
        await gone.wait()
        for key in keys:
            if homes[key][0] != pids[0]:
                assert (await ask(proxy, key))["n"] == 4
                continue
            first, second = await failure(ask(proxy, key)), await failure(ask(proxy, key))
            assert (first.kind, second.kind) == (FailureKind.UNAVAILABLE, FailureKind.INVALID_ARGUMENT)
            assert f"sequence {key} of model 'm' has ended, start it again: its state was on instance m-" in first.message
            assert (await ask(proxy, key, sequence_start=True))["n"] == 1
        assert (served.sequences.counts.broken, len(residence.places)) == (10, 30)


async def test_those_under_way_when_a_worker_dies_hear_which_sequence_it_was(model: Callable[..., Model]) -> None:
    async with Proxy([model(instances=1)]) as proxy:
        pid = (await ask(proxy, 7, sequence_start=True))["pid"]
        os.kill(pid, signal.SIGSTOP)
        running = asyncio.gather(ask(proxy, 7), ask(proxy, 7), return_exceptions=True)
        for _ in range(5):
            await asyncio.to_thread(lambda: None)
        os.kill(pid, signal.SIGKILL)
        errors = await running
        for error in errors:
            assert isinstance(error, InferenceError), error
            assert error.failure.kind is FailureKind.UNAVAILABLE
            assert "sequence 7 of model 'm'" in error.failure.message


async def test_of_instances_that_are_not_wanted_those_go_first_that_keep_the_fewest(model: Callable[..., Model]) -> None:
    async with Proxy([model(instances=3)]) as proxy:
        for key in (1, 2, 3):
            await ask(proxy, key, sequence_start=True)
        await ask(proxy, 1, sequence_end=True)
        (served,) = proxy.models
        await served.fleet.scale(2)
        assert [(await ask(proxy, key))["n"] for key in (2, 3)] == [2, 2]


async def test_with_an_instance_that_is_not_wanted_go_its_sequences(model: Callable[..., Model]) -> None:
    async with Proxy([model(instances=2, sequence_idle_s=900.0)]) as proxy:
        firsts = [await ask(proxy, key, sequence_start=True) for key in (1, 2)]
        assert firsts[0]["pid"] != firsts[1]["pid"]
        (served,) = proxy.models
        await served.fleet.scale(1)
        assert (await ask(proxy, 1))["n"] == 2
        lost = await failure(ask(proxy, 2))
        assert lost.message.endswith("its state was on instance m-1, which is gone (it was retired)")
        await proxy.replace(model(version="2"))
        assert "start it again" in (await failure(ask(proxy, 1))).message
        assert (await ask(proxy, 1, sequence_start=True))["n"] == 1


@pytest.mark.parametrize(("run", "instances", "room"), [("process", 2, 4), ("thread", 2, 2), ("inline", 1, 2)])
async def test_direct_is_full_until_one_ends_fails_or_is_idle(
    model: Callable[..., Model], run: str, instances: int, room: int
) -> None:
    settings: dict[str, Any] = {"run": run, "instances": instances, "max_batch": 2}
    async with Proxy([model(sequences="direct", **settings)]) as proxy:
        (served,) = proxy.models
        assert served.sequences is not None
        keys = range(1, room + 1)
        firsts = [await ask(proxy, key, sequence_start=True) for key in keys]
        assert len({(first["pid"], first["slot"]) for first in firsts}) == room
        full = await failure(ask(proxy, 99, sequence_start=True))
        assert (full.kind, served.sequences.counts.refused) == (FailureKind.QUEUE_FULL, 1)
        assert full.message == f"model 'm' has {room} sequences under way, and none of its instances has room for another"
        assert (await ask(proxy, 1, sequence_end=True))["n"] == 2
        taken = await ask(proxy, "s", sequence_start=True)
        assert (taken["pid"], taken["slot"], taken["id"]) == (firsts[0]["pid"], firsts[0]["slot"], "s")
        assert (await failure(ask(proxy, 2, 666.0))).kind is FailureKind.MODEL_FAILED
        spoilt = await failure(ask(proxy, 2))
        assert (spoilt.kind, served.sequences.counts.broken) == (FailureKind.UNAVAILABLE, 1)
        assert "a request of it failed, and may have changed its state: " in spoilt.message
        assert (await ask(proxy, 2, sequence_start=True))["n"] == 1


async def test_ids_of_other_clients_are_told_apart(model: Callable[..., Model]) -> None:
    async with Proxy([model(run="inline", instances=1)]) as proxy:
        first = await ask(proxy, 1, sequence_start=True)
        other = await ask(proxy, 1, sequence_start=True, tenant="t")
        third = await ask(proxy, "('', 't', 1)", sequence_start=True)
        assert [first["id"], other["id"]] == ["1", "('', 't', 1)"]
        assert third["id"] not in (first["id"], other["id"])
        assert [(await ask(proxy, 1))["n"], (await ask(proxy, 1, tenant="t"))["n"]] == [2, 2]


async def test_what_it_cannot_do_is_said(model: Callable[..., Model]) -> None:
    async with Proxy([model(sequences="off", run="inline")]) as proxy:
        refused = await failure(ask(proxy, 1, sequence_start=True))
        assert refused.kind is FailureKind.UNSUPPORTED
        assert refused.message.endswith('set sequences = "oldest" or "direct"')
        assert (await proxy.infer("m", {"x": np.zeros(2, np.float32)}))["n"].tolist() == [1, 1]
    with pytest.raises(ConfigError, match="scale_to_zero_s: the model keeps the state of sequences itself"):
        async with Proxy([model(autoscale="in-flight", max_instances=2, scale_to_zero_s=5.0)]):
            pass
