"""Sequences of the library, whose models are replaced, killed and drained while they go on."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlproxy import ConfigError, FailureKind, InferenceError, Model, Proxy
from tests import models

X = np.array([[1.0, 10.0]], np.float32)
SETTINGS: dict[str, Any] = {"name": "m", "sequences": "oldest", "state": {"sum": "sumN"}, "threads": 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return models.running_sum(tmp_path / "sum.onnx")


async def ask(proxy: Proxy, key: int | str = 1, x: Any = X, **flags: Any) -> list[float]:
    found: list[float] = (await proxy.infer("m", {"x": x}, sequence_id=key, **flags))["y"][0].tolist()
    return found


async def test_calls_of_any_kind_go_on_with_a_sequence(path: Path) -> None:
    async with Proxy([Model(path, **SETTINGS)]) as proxy:
        assert await ask(proxy, "s", sequence_start=True) == [1.0, 10.0]
        assert [part["y"][0].tolist() async for part in proxy.stream("m", {"x": X}, sequence_id="s")] == [[2.0, 20.0]]
        answer = await asyncio.to_thread(proxy.infer_sync, "m", {"x": X}, sequence_id="s", sequence_end=True)
        assert answer["y"][0].tolist() == [3.0, 30.0]
        with pytest.raises(InferenceError, match="must specify the START flag"):
            await ask(proxy, "s")
        with pytest.raises(InferenceError, match="'sequence_start' is 1; it must be true or false"):
            await proxy.infer("m", {"x": X}, sequence_id=1, sequence_start=1)  # type: ignore[arg-type]


async def test_many_at_once_share_batches_and_no_state(path: Path) -> None:
    async with Proxy([Model(path, slo="p99=10s", **SETTINGS)]) as proxy:
        for step in range(1, 4):
            answers = await asyncio.gather(*(ask(proxy, key, X * key, sequence_start=step == 1) for key in range(1, 65)))
            assert answers == [[step * key * 1.0, step * key * 10.0] for key in range(1, 65)]
        (model,) = proxy.models
        model.served.stats.settle()
        assert max(model.served.stats.batch_sizes) > 8


async def test_a_model_that_is_replaced_takes_its_sequences_over(path: Path) -> None:
    async with Proxy([Model(path, **SETTINGS)]) as proxy:
        await ask(proxy, sequence_start=True)
        assert proxy._models.facts()["m", "1"].busy
        for version in ("1", "2"):
            asking = asyncio.gather(ask(proxy), ask(proxy))
            await proxy.replace(Model(path, version=version, **SETTINGS))
            await asking
        assert await ask(proxy) == [6.0, 60.0]
        await proxy.unload("m")
        assert not [store for store in proxy._models._sequences.values() if len(store.policy) or store.under_way]


async def test_a_killed_process_costs_no_sequence(path: Path) -> None:
    async with Proxy([Model(path, run="process", instances=2, slo="p99=10s", **SETTINGS)]) as proxy:
        (model,) = proxy.models
        await asyncio.gather(*(ask(proxy, key, sequence_start=True) for key in range(1, 33)))
        victim: Any = model.fleet._supervisor.instances[0]  # type: ignore[attr-defined]
        asking = asyncio.gather(*(ask(proxy, key) for key in range(1, 33)), return_exceptions=True)
        os.kill(victim.pid, signal.SIGKILL)
        answers = await asking
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        assert all(isinstance(error, InferenceError) and error.failure.kind is FailureKind.UNAVAILABLE for error in failed)
        sums = [[2.0, 20.0] if isinstance(answer, BaseException) else [3.0, 30.0] for answer in answers]
        assert await asyncio.gather(*(ask(proxy, key) for key in range(1, 33))) == sums


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cache": "on"}, "cache = 'on' has no effect: it needs sequences = 'off', not 'oldest'"),
        ({"variants": ["other"]}, "variants = .* has no effect: it needs sequences = 'off'"),
        ({"sequences": "off"}, "state has no effect: it needs another sequences than 'off'"),
        ({"state": {"sum": "total"}}, "the model has no output 'total'"),
    ],
)
async def test_what_does_not_go_with_sequences_is_refused(path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        async with Proxy([Model(path, **{**SETTINGS, **settings})]):
            pass
