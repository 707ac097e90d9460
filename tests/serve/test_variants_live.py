"""Variants of a Proxy's models, in real time: what is overloaded spills, who goes or crashes is not asked."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from dlproxy import ConfigError, InferenceError, Model, Proxy
from dlproxy.message import DType, Response
from dlproxy.serve.assemble import LoadedModel
from dlproxy.tensors import from_values
from dlproxy.wire.terms import Terms
from tests import models
from tests.serve.rig import turns

SLOW, QUICK = "sleep:base=20ms,row=4ms", "sleep:base=10ms,row=2ms"
HANG_S = 60.0
SLO = "p99=200ms, accuracy>=0.9"
SETTINGS: dict[str, Any] = {"threads": 1, "instances": 1, "run": "thread"}


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    slow = Model(SLOW, name="m", slo=SLO, accuracy=0.99, variants=["q", "bad"], **SETTINGS)
    quick = Model(QUICK, name="q", slo=SLO, accuracy=0.95, **SETTINGS)
    async with Proxy([slow, quick, Model(QUICK, name="bad", accuracy=0.5, **SETTINGS)]) as opened:
        yield opened


def loaded(proxy: Proxy, name: str) -> LoadedModel:
    return next(model for model in proxy.models if model.served.name == name)


async def ask(proxy: Proxy, priority: int = 0) -> Response | InferenceError:
    endpoint = proxy._desk.find("m")
    request = endpoint.request([from_values("x", DType.FP32, np.ones((1, 1), np.float32))], [0])
    try:
        return await endpoint.infer(request, Terms(priority=priority))
    except InferenceError as error:
        return error


def by(answers: list[Response | InferenceError]) -> Counter[str]:
    return Counter(
        answer.failure.kind.name if isinstance(answer, InferenceError) else answer.variant or answer.model for answer in answers
    )


async def pinned(proxy: Proxy, name: str) -> None:
    """Until it holds."""
    model = loaded(proxy, "m")
    model.control.change({"variant": name})
    async with asyncio.timeout(HANG_S):
        while set(model.served.stats.variants.assignment.values()) != {name}:  # type: ignore[union-attr]
            await turns(1)


@pytest.mark.alone
async def test_what_one_has_no_time_for_the_other_answers(proxy: Proxy) -> None:
    await asyncio.gather(*(ask(proxy) for _ in range(20)))  # for half a second: the capacities are looked at meanwhile
    while not loaded(proxy, "m").degrading._governor._order:  # type: ignore[union-attr]
        await ask(proxy)
    answers = await asyncio.gather(*(ask(proxy) for _ in range(100)))
    counted = by(answers)
    assert counted["m"] > 0
    assert counted["q"] > 0
    assert counted["bad"] == 0, "it is not accurate enough"
    assert loaded(proxy, "m").degrading.problems() == [  # type: ignore[union-attr]
        "variant 'bad' is not used: its accuracy is 0.5, and accuracy>=0.9 holds"
    ]


async def test_a_variant_is_unloaded_and_loaded_again(proxy: Proxy) -> None:
    await pinned(proxy, "q")
    (shown,) = proxy._models.autopilot.states("m")
    assert shown["decisions"][-1]["text"] == "assigns priority 1 to 8 = q instead of m: its operator says so"
    asking = asyncio.gather(*(ask(proxy) for _ in range(30)))
    await turns(1)
    await proxy.unload("q")
    assert by(await asking) == {"q": 30}, "what it had it has answered"
    assert by([await ask(proxy) for _ in range(3)]) == {"m": 3}
    await proxy.load(Model(QUICK, name="q", slo=SLO, accuracy=0.95, **SETTINGS))
    async with asyncio.timeout(HANG_S):
        while by([await ask(proxy)]) != {"q": 1}:
            pass


@pytest.mark.parametrize("cache", ["off", "on"])
async def test_variants_are_named_while_it_serves(cache: Literal["off", "on"]) -> None:
    slow = Model("sleep:base=1ms,row=1ms", name="m", cache=cache, cache_rows=cache == "on", **SETTINGS)
    async with Proxy([slow, Model(QUICK, name="q", **SETTINGS)]) as proxy:
        assert by([await ask(proxy)]) == {"m": 1}
        control = loaded(proxy, "m").control
        for variants in (["q"], [], ["q"]):
            control.change({"variants": variants, "variant": "auto"})
        await pinned(proxy, "q")
        proxy._models.caches.clear()
        assert by([await ask(proxy)]) == {"q": 1}
        await pinned(proxy, "m")
        assert by([await ask(proxy)]) == {"m": 1}


async def test_knobs_that_make_no_sense_are_refused(proxy: Proxy) -> None:
    control = loaded(proxy, "m").control
    for changes, said in (({"variant": "p"}, "none of auto, m, q, bad"), ({"variants": ["m"]}, "the model itself")):
        with pytest.raises(ConfigError, match=said):
            control.change(changes)
    with pytest.raises(ConfigError, match="the model itself"):
        await proxy.load(Model(SLOW, name="n", variants=["n"], **SETTINGS))


async def test_a_variant_whose_process_is_killed_answers_again_once_it_is_up(tmp_path: Path) -> None:
    path = models.save(models.identity(DType.FP32, ("N", 1)), tmp_path / "q.onnx")
    slow = Model("sleep:base=1ms,row=1ms", name="m", variants=["q"], **SETTINGS)
    async with Proxy([slow, Model(path, name="q", run="process", inputs={}, threads=1, instances=1)]) as proxy:
        assert by([await ask(proxy)]) == {"m": 1}
        await pinned(proxy, "q")
        assert by(await asyncio.gather(*(ask(proxy) for _ in range(5)))) == {"q": 5}
        (pid,) = [place["pid"] for place in loaded(proxy, "q").control.state()["instances"]]
        os.kill(pid, signal.SIGKILL)
        answers: Counter[str] = Counter()
        async with asyncio.timeout(HANG_S):
            while answers["q"] < 3:
                answers += by([await ask(proxy)])
        assert set(answers) <= {"q", "m"}, "nobody fails for it"
