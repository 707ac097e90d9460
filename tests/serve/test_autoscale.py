"""A loaded model that scales, in real time: it falls asleep, is ready all the same, and a request has it up again."""

import asyncio
import logging
from itertools import count

import msgspec
import pytest

from dlproxy.config import ModelConfig, ServerConfig
from dlproxy.message import DType, Tensor
from dlproxy.serve.assemble import LoadedModel, load_model, unload_model
from dlproxy.serve.models import Models
from dlproxy.service import infer
from dlproxy.wire.endpoint import Endpoint
from tests import models


async def ask(model: LoadedModel, endpoint: Endpoint) -> None:
    request = endpoint.request([Tensor("x", DType.FP32, (1, 1), bytes(4))], endpoint.checker.all_outputs)
    await infer(model.served.service, request)


async def test_a_model_that_nobody_asks_falls_asleep_and_is_woken_by_the_next_request() -> None:
    config = ModelConfig(
        path="sleep:base=5ms", run="thread", slo="p99=50ms", autoscale="in-flight", max_instances=2, scale_to_zero_s=0.5
    )
    clock = asyncio.get_running_loop().time
    scaled = asyncio.Event()
    model = await load_model("m", config, ticket_ids=count(1), on_ways=scaled.set, clock=clock)
    endpoint = Endpoint(model.served, iter(range(1, 100)), clock, "")
    for _ in range(2):
        await asyncio.wait_for(scaled.wait(), 10.0)
        assert not model.lane.view().instances
        assert model.served.ready
        scaled.clear()
        await ask(model, endpoint)
        assert len(model.lane.view().instances) == 1
        scaled.clear()
    await unload_model(model, drain_s=1.0)


async def test_a_model_that_turns_out_to_run_on_the_event_loop_says_that_it_does_not_scale(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        model = await load_model("m", ModelConfig(path=str(models.DIGITS), autoscale="in-flight"), ticket_ids=count(1))
    await unload_model(model, drain_s=1.0)
    assert "autoscale has no effect: it is so quick" in caplog.text


async def test_a_version_that_takes_over_begins_with_as_many_instances_as_the_one_before() -> None:
    config = ModelConfig(path="sleep:base=5ms", run="thread", slo="p99=50ms", autoscale="in-flight", max_instances=4)
    some = Models(ServerConfig(calibration_folder=""))
    old = await some.load("m", config)
    assert old.autoscaler is not None
    old.autoscaler.moved(3)
    await old.control.set_instances(3)
    new = await some.load("m", msgspec.structs.replace(config, version="2"))
    assert len(new.lane.view().instances) == 3
    assert new.autoscaler is not None
    assert new.autoscaler.wanted == 3
    await some.drain()
