"""The library as people use it: from other threads and loops, entered twice, misspelt; and models that change at run time."""

import asyncio
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import numpy as np
import pytest

import dlproxy
from dlproxy import ConfigError, FailureKind, InferenceError, Model, ModelError, Proxy
from tests import models

IMAGE = np.zeros((1, 1, 8, 8), np.float32)
SLEEP = "sleep:base=20ms"
X = {"x": np.ones((1, 1), np.float32)}


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with Proxy([Model(models.DIGITS, threads=1)]) as opened:
        yield opened


def test_the_api_is_listed() -> None:
    assert dir(dlproxy) == sorted(dlproxy.__all__)
    assert all(getattr(dlproxy, name) is not None for name in dlproxy.__all__)
    assert issubclass(dlproxy.ConfigError, Exception)


# Loops and threads


async def test_another_loop_hears_what_to_do_and_does_not_hang(proxy: Proxy) -> None:
    def elsewhere() -> str:
        with pytest.raises(RuntimeError) as caught:
            asyncio.run(proxy.infer("digits", {"image": IMAGE}))
        return str(caught.value)

    said = await asyncio.to_thread(elsewhere)
    assert "another event loop" in said
    assert "infer_sync" in said


@pytest.mark.parametrize("change", ["load", "replace", "unload", "leave"])
async def test_models_are_changed_on_the_proxys_loop_only(proxy: Proxy, change: str) -> None:
    model = Model(models.DIGITS, name="more")
    calls = {
        "load": lambda: proxy.load(model),
        "replace": lambda: proxy.replace(model),
        "unload": lambda: proxy.unload("digits"),
        "leave": lambda: proxy.__aexit__(None, None, None),
    }

    def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(calls[change]())

    await asyncio.to_thread(elsewhere)
    assert await proxy.infer("digits", {"image": IMAGE})


async def test_any_thread_may_ask(proxy: Proxy) -> None:
    expected = (await proxy.infer("digits", {"image": IMAGE}))["probabilities"]
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(8) as pool:
        calls = [
            loop.run_in_executor(pool, lambda: proxy.infer_sync("digits", {"image": IMAGE}, outputs=["probabilities"]))
            for _ in range(64)
        ]
        for answer in await asyncio.gather(*calls):
            assert np.allclose(answer["probabilities"], expected)
        with pytest.raises(InferenceError, match="'nobody' is not found"):
            await loop.run_in_executor(pool, lambda: proxy.infer_sync("nobody", {"image": IMAGE}))


async def test_the_loops_own_thread_is_not_made_to_wait_for_itself(proxy: Proxy) -> None:
    with pytest.raises(RuntimeError, match=r"await proxy\.infer"):
        proxy.infer_sync("digits", {"image": IMAGE})


async def test_threads_that_wait_when_the_proxy_is_left_hear_of_it() -> None:
    asked = Event()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(4) as pool:
        async with Proxy([Model(SLEEP, name="slow", run="thread")]) as proxy:

            def ask() -> str:
                asked.set()
                try:
                    return str(float(proxy.infer_sync("slow", X)["y"][0, 0]))
                except InferenceError as error:
                    return error.failure.kind.value

            calls = [loop.run_in_executor(pool, ask) for _ in range(4)]
            await asyncio.to_thread(asked.wait)
        assert set(await asyncio.wait_for(asyncio.gather(*calls), 5.0)) <= {"1.0", "0.0", FailureKind.UNAVAILABLE.value}
        with pytest.raises(InferenceError, match="not open"):
            proxy.infer_sync("slow", X)


def test_a_loop_that_does_not_run_keeps_nobody_waiting() -> None:
    proxy = Proxy([Model(models.DIGITS, threads=1, run="inline")])
    asyncio.run(proxy.__aenter__())
    with pytest.raises(RuntimeError, match="does not run"):
        proxy.infer_sync("digits", {"image": IMAGE})

    async def again() -> None:
        async with proxy:
            assert await proxy.infer("digits", {"image": IMAGE})

    asyncio.run(again())


async def test_entering_twice_is_refused_and_harms_nobody(proxy: Proxy) -> None:
    with pytest.raises(RuntimeError, match="open already"):
        async with proxy:
            pass
    assert await proxy.infer("digits", {"image": IMAGE})


async def test_before_and_after_calls_are_refused_and_it_can_be_entered_again() -> None:
    proxy = Proxy([Model(models.DIGITS, threads=1)])
    for _ in range(2):
        with pytest.raises(InferenceError, match="not open: use it inside"):
            await proxy.infer("digits", {"image": IMAGE})
        async with proxy:
            assert await proxy.infer("digits", {"image": IMAGE})


# Models at run time


async def test_models_come_and_go_at_run_time() -> None:
    async with Proxy() as proxy:
        with pytest.raises(InferenceError, match="'digits' is not found; no model is served"):
            await proxy.infer("digits", {"image": IMAGE})
        first = await proxy.load(Model(models.DIGITS, threads=1))
        assert proxy.models == [first]
        second = await proxy.load(Model(models.DIGITS, threads=1, version="2"))
        await proxy.infer("digits", {"image": IMAGE})
        for model, batches in ((first, 0), (second, 1)):
            model.served.stats.settle()
            assert model.served.stats.batches == batches
        await proxy.unload("digits", "1")
        assert proxy.models == [second]
        third = await proxy.replace(Model(SLEEP, name="digits", version="3"))
        assert proxy.models == [third]
        assert list(await proxy.infer("digits", X)) == ["y"]
        with pytest.raises(ModelError, match="no_such"):
            await proxy.load(Model("no_such.onnx"))
        with pytest.raises(ConfigError, match="served already"):
            await proxy.load(Model(SLEEP, name="digits", version="3"))
        await proxy.unload("digits")
        assert proxy.models == []


# Misspelt


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_bach": 8}, "model 'digits': there is no setting 'max_bach'; did you mean 'max_batch'?"),
        ({"thread": 2}, "did you mean 'threads'?"),
        ({"colour": "red"}, "there is no setting 'colour'; these are: "),
        ({"run": "gpu"}, "model 'digits': "),
    ],
)
def test_a_setting_that_does_not_exist_is_told_from_its_nearest(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Model(models.DIGITS, **settings)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            {"inputs": {"image": IMAGE}, "outputs": "probabilities"},
            "outputs is a text; name them in a list: outputs=['probabilities']",
        ),
        ({"inputs": IMAGE}, "inputs is of type ndarray; give each input by its name: {'image': ...}"),
        ({"inputs": [IMAGE]}, "inputs is of type list"),
        ({"inputs": None}, "inputs is of type NoneType"),
    ],
)
async def test_what_is_given_in_another_shape_is_told(proxy: Proxy, call: dict[str, Any], said: str) -> None:
    with pytest.raises(InferenceError, match=re.escape(said)) as caught:
        await proxy.infer("digits", **call)
    assert caught.value.failure.kind is FailureKind.INVALID_ARGUMENT
