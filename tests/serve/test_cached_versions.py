"""Remembered answers where a model has versions: each keeps its own, and whatever changes of one forgets them."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from dlproxy import InferenceError, Model, Proxy
from dlproxy.policy.wanted import Traffic
from dlproxy.tensors import Answer
from tests.serve.rig import turns
from tests.serve.test_rollout import Site, config, folder  # noqa: F401 - a fixture

ONES = {"x": np.ones((1, 2), np.float32)}
CACHED = {"cache": "on"}


class Cached(Site):
    """Versions of m, each of which remembers."""

    async def answer(self, version: str = "", **terms: str) -> Answer:
        return await self.proxy.infer("m", ONES, version=version, **terms)  # type: ignore[arg-type]

    async def ask_twice(self, version: str = "") -> list[tuple[float, str]]:
        answers = [await self.answer(version) for _ in range(2)]
        return [(float(answer["y"][0, 0]), answer.cache) for answer in answers]


@pytest.fixture
async def site(folder: Path) -> AsyncIterator[Cached]:  # noqa: F811
    async with Proxy() as proxy:
        site = Cached(proxy, folder)
        for version in (1, 2):
            await site.load(version, **CACHED)
        site.route("1")
        yield site


async def test_versions_and_arms_share_no_answers(site: Cached) -> None:
    assert await site.ask_twice("1") == [(1.0, "miss"), (1.0, "hit")]
    assert await site.ask_twice("2") == [(2.0, "miss"), (2.0, "hit")]
    site.models.caches.clear()
    site.route("1", traffic=Traffic(shares={"2": 0.5}))
    answers = [await site.answer() for _ in range(40)]
    by_version = {number: [one.cache for one in answers if one["y"][0, 0] == number] for number in (1, 2)}
    assert [caches[0] for caches in by_version.values()] == ["miss", "miss"]
    assert {cache for caches in by_version.values() for cache in caches[1:]} == {"hit"}
    assert sum(map(len, by_version.values())) == 40


async def test_another_model_under_the_same_number_remembers_nothing_of_the_one_before(site: Cached) -> None:
    assert await site.ask_twice() == [(1.0, "miss"), (1.0, "hit")]
    await site.models.replace("m", "1", config(site.folder, 1, "3", **CACHED))
    assert await site.ask_twice("1") == [(3.0, "miss"), (3.0, "hit")]
    assert len(site.models.caches.states("m")) == 2, "what has gone keeps no memory"


async def test_a_label_that_is_moved_gives_what_the_other_version_answers(site: Cached) -> None:
    site.route("1", {"stable": "1"})
    assert await site.ask_twice("stable") == [(1.0, "miss"), (1.0, "hit")]
    site.route("1", {"stable": "2"})
    assert await site.ask_twice("stable") == [(2.0, "miss"), (2.0, "hit")]
    site.route("2", {"stable": "1"})
    assert await site.ask_twice() == [(2.0, "hit"), (2.0, "hit")], "the versions have not changed"


async def test_a_shadow_computes_whatever_is_remembered(site: Cached) -> None:
    await site.ask_twice("2")
    site.route("1", traffic=Traffic(shadow="2"))
    shadow = site.stats["2"]
    for cache in ("miss", "hit", "hit", "hit"):
        assert (await site.answer()).cache == cache
        await turns(5)
    assert shadow.shadows["different"] == sum(shadow.shadows.values()) == 4
    assert shadow.cache is not None
    assert (shadow.cache.hits, shadow.cache.misses) == (1, 1), "those of clients alone"


async def test_what_a_cache_answers_says_nothing_of_how_a_canary_does(site: Cached) -> None:
    """It would be rolled back for a cache that is colder than the other's."""
    site.route("1", traffic=Traffic(shares={"2": 0.1}, guarded=True))
    stable, canary = site.models._rollouts._rollouts["m"].meters.values()
    for _ in range(10):
        await site.answer("1")
    seen = stable.read()
    assert (seen.answered, len(seen.latencies_s)) == (1, 1)
    assert site.stats["1"].request.count == 10
    assert canary.read().answered == 0


async def test_a_trunk_computes_anew_for_those_who_ask_for_that(folder: Path) -> None:  # noqa: F811
    path = str(folder / "2.onnx")
    async with Proxy([Model(path, name="trunk", cache="on", run="inline"), Model(path, name="m", run="inline")]) as proxy:
        site = Cached(proxy, folder)
        site.route("1", traffic=Traffic(trunk="trunk"))
        assert [await site.ask() for _ in range(3)] == [4, 4, 4]
        (trunk,) = proxy._models.caches.states("trunk")
        assert (trunk["hits"], trunk["misses"]) == (2, 1)
        await site.answer(cache_control="no-store")
        await site.answer(cache_control="no-cache")
        (trunk,) = proxy._models.caches.states("trunk")
        assert (trunk["hits"], trunk["misses"], trunk["bypassed"]) == (2, 2, 1)


async def test_a_version_that_is_gone_answers_nobody_from_memory(site: Cached) -> None:
    await site.ask_twice("2")
    await site.proxy.unload("m", "2")
    with pytest.raises(InferenceError, match="version 2 is not found"):
        await site.answer("2")
    await site.load(2, "4", **CACHED)
    assert await site.ask_twice("2") == [(4.0, "miss"), (4.0, "hit")]
