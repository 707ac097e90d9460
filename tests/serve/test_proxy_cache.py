"""Remembered answers in the library: what callers say, what they see, and that no caller can change what another gets."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from dlproxy import ConfigError, InferenceError, Model, Proxy
from dlproxy.config.reading import from_environment
from tests import models

IMAGE = {"image": np.ones((1, 1, 8, 8), np.float32)}


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with Proxy([Model(models.DIGITS, threads=1, cache="on")], cache={"memory_mb": 3, "policy": "lru"}) as opened:
        yield opened


async def test_an_answer_says_what_the_cache_had(proxy: Proxy) -> None:
    answers = [await proxy.infer("digits", IMAGE) for _ in range(2)]
    assert [answer.cache for answer in answers] == ["miss", "hit"]
    assert np.array_equal(answers[0]["probabilities"], answers[1]["probabilities"])
    (state,) = proxy._models.caches.states()
    assert (state["entries"], state["budget_bytes"]) == (1, 3 * 2**20)
    parts = [part async for part in proxy.stream("digits", IMAGE)]
    assert [part.cache for part in parts] == ["hit"]
    assert (await asyncio.to_thread(proxy.infer_sync, "digits", IMAGE, cache_control="no-store")).cache == "bypass"


async def test_a_model_that_does_not_remember_says_nothing() -> None:
    async with Proxy([Model(models.DIGITS, threads=1)]) as proxy:
        assert (await proxy.infer("digits", IMAGE)).cache == ""


@pytest.mark.parametrize(
    ("control", "cache"), [("no-cache", "miss"), ("max-age=0", "miss"), ("max-age=60", "hit"), ("no-store", "bypass")]
)
async def test_a_call_says_what_of_remembered_answers_it_takes(proxy: Proxy, control: str, cache: str) -> None:
    await proxy.infer("digits", IMAGE)
    assert (await proxy.infer("digits", IMAGE, cache_control=control)).cache == cache


@pytest.mark.parametrize("control", ["nocache", "max-age", "max-age=soon", "private"])
async def test_a_slip_is_refused(proxy: Proxy, control: str) -> None:
    with pytest.raises(InferenceError, match=f"cache_control is '{control}'; it must be no-cache, no-store or max-age=SECONDS"):
        await proxy.infer("digits", IMAGE, cache_control=control)


async def test_callers_that_share_an_answer_cannot_change_it(proxy: Proxy) -> None:
    first, second = await asyncio.gather(proxy.infer("digits", IMAGE), proxy.infer("digits", IMAGE))
    assert (first.cache, second.cache) == ("miss", "joined")
    third = await proxy.infer("digits", IMAGE)
    for answer in (first, second, third):
        with pytest.raises(ValueError, match="read-only"):
            answer["probabilities"][:] = 0.0


@pytest.mark.parametrize(("by_tenant", "caches"), [(False, ["miss", "hit", "hit"]), (True, ["miss", "miss", "hit"])])
async def test_tenants_share_no_answers_where_that_is_wanted(by_tenant: bool, caches: list[str]) -> None:
    async with Proxy([Model(models.DIGITS, threads=1, cache="on", cache_by_tenant=by_tenant)]) as proxy:
        found = [(await proxy.infer("digits", IMAGE, tenant=tenant)).cache for tenant in ("shop", "bank", "shop")]
        assert found == caches
        one, other = await asyncio.gather(
            *[proxy.infer("digits", {"image": IMAGE["image"] * 2}, tenant=tenant) for tenant in ("shop", "bank")]
        )
        assert (one.cache, other.cache) == ("miss", "miss" if by_tenant else "joined")


def test_settings_of_the_cache_are_checked() -> None:
    with pytest.raises(ConfigError, match="cache: there is no setting 'memory_md'; did you mean 'memory_mb'"):
        Proxy(cache={"memory_md": 3})
    with pytest.raises(ConfigError, match=r"cache: memory_mb: .*>= 1"):
        Proxy(cache={"memory_mb": 0})
    with pytest.raises(ConfigError, match=r"cache: policy: 'lry'.*did you mean 'lru'"):
        Proxy(cache={"policy": "lry"})


def test_variables_of_the_environment_set_them() -> None:
    config, warnings = from_environment(None, {"DLPROXY_CACHE_MEMORY_MB": "7", "DLPROXY_CACHE_POLICY": "gdsf"})
    assert (config.cache.memory_mb, config.cache.policy, warnings) == (7, "gdsf", [])


async def test_a_model_that_answers_in_parts_remembers_nothing_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = 'class Parts:\n    inputs, outputs = {"x": "FP32[1]"}, {"y": "FP32[1]"}\n    streams = True\n'
    (tmp_path / "parts.py").write_text(f'{code}\n    def predict(self, batch):\n        yield {{"y": batch["x"]}}\n')
    caplog.set_level(logging.WARNING)
    async with Proxy([Model(f"{tmp_path / 'parts.py'}:Parts", run="thread", cache="on")]) as proxy:
        parts = [part async for part in proxy.stream("parts", {"x": np.ones(1, np.float32)})]
        assert [part.cache for part in parts] == [""]
        assert proxy._models.caches.states() == []
    assert "model parts: cache = 'on' has no effect: it answers in parts" in caplog.text
