"""Heads on a shared trunk: one computation of features, whichever tenant's head takes them."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from dlproxy import Proxy
from dlproxy.config import ConfigError, ModelConfig, ServerConfig, TenantConfig
from dlproxy.message import DType, FailureKind, InferenceError, Request, Tensor, Ticket, Timing
from dlproxy.policy.planner import Routes
from dlproxy.policy.wanted import Traffic
from dlproxy.serve.models import Models
from dlproxy.serve.trunk import TrunkLayer
from dlproxy.wire.endpoint import Endpoint
from dlproxy.wire.terms import Terms
from tests import models
from tests.serve.rig import Reply
from tests.wire.fixtures import EchoService, echo_signature, served

NO_TRAFFIC = Traffic()
ON_TRUNK = Traffic(tenants={"ann": "2", "bob": "3"}, trunk="trunk")


def multiplying(factor: int, name: str = "x", width: int = 2) -> models.Model:
    dims = ("N", width)
    return models.model(
        [helper.make_node("Mul", [name, "factor"], [f"{name}_out"])],
        [models.value(name, DType.FP32, dims)],
        [models.value(f"{name}_out", DType.FP32, dims)],
        [models.constant("factor", np.float32(factor))],
    )


class Site:
    """A trunk that multiplies by 10, and heads of which version N multiplies by N."""

    def __init__(self, proxy: Proxy, folder: Path) -> None:
        self.models, self.folder, self.proxy = proxy._models, folder, proxy

    def config(self, made: models.Model, version: int) -> ModelConfig:
        path = models.save(made, self.folder / f"{len(list(self.folder.iterdir()))}.onnx")
        return ModelConfig(path=str(path), version=str(version), run="inline", threads=1)

    def route(self, name: str, default: str, traffic: Traffic = NO_TRAFFIC) -> None:
        self.models.route(name, Routes(default, {}, traffic))

    async def load(self, name: str, made: models.Model, version: int = 1) -> None:
        await self.models.load(name, self.config(made, version))

    async def ask(self, tenant: str = "", **terms: float) -> float:
        answer = await self.proxy.infer("heads", {"image": np.ones((1, 2), np.float32)}, tenant=tenant, **terms)  # type: ignore[arg-type]
        return float(answer["x_out"][0, 0])

    def stats(self, name: str, version: str = "") -> tuple[int, int]:
        """Requests that were answered, and batches."""
        stats = self.models.catalog.get(name, version).stats
        stats.settle()
        return stats.request.count, stats.batches


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with Proxy() as proxy:
        site = Site(proxy, tmp_path)
        await site.load("trunk", multiplying(10, "image"))
        for version in (1, 2, 3):
            await site.load("heads", multiplying(version), version)
        site.route("heads", "1", ON_TRUNK)
        yield site


async def test_tenants_have_their_own_heads_and_share_the_trunks_batches(site: Site) -> None:
    tenants = ["ann", "bob", "eve"] * 4
    answers = await asyncio.gather(*(site.ask(tenant) for tenant in tenants))
    assert answers == [20.0, 30.0, 10.0] * 4
    requests, batches = site.stats("trunk")
    assert requests == 12
    assert batches <= 6
    assert [site.stats("heads", version)[0] for version in ("1", "2", "3")] == [4, 4, 4]


async def test_a_quota_is_charged_once(site: Site) -> None:
    some = Models(
        ServerConfig(calibration_folder=""), {"ann": TenantConfig(requests_per_s=2.0, burst_s=1.0)}, clock=lambda: 0.0
    )
    await some.load("trunk", site.config(multiplying(10, "image"), 1))
    await some.load("heads", site.config(multiplying(2), 1))
    some.route("heads", Routes("1", {}, Traffic(trunk="trunk")))
    endpoint = Endpoint(some.catalog.asked("heads"), some.catalog.ticket_ids, lambda: 0.0, "x-tenant-id")

    async def ask() -> None:
        tensor = Tensor("image", DType.FP32, (1, 2), bytes(8))
        await endpoint.infer(endpoint.request([tensor], [0]), Terms(tenant="ann"))

    try:
        await ask()
        await ask()
        with pytest.raises(InferenceError, match="Quota exceeded"):
            await ask()
    finally:
        await some.drain()


async def test_a_request_of_many_rows_is_split_by_both(site: Site) -> None:
    answer = await site.proxy.infer("heads", {"image": np.ones((600, 2), np.float32)}, tenant="ann")
    assert (answer["x_out"] == 20.0).all()
    for name, version in (("trunk", "1"), ("heads", "2")):
        assert site.stats(name, version)[0] == 1
        assert max(site.models.catalog.get(name, version).stats.batch_sizes) <= 256


async def test_a_head_that_is_named_takes_features(site: Site) -> None:
    answer = await site.proxy.infer("heads", {"x": np.ones((1, 2), np.float32)}, version="3")
    assert answer["x_out"][0, 0] == 3.0


async def test_the_signature_is_the_trunks_and_the_heads(site: Site) -> None:
    signature = site.models.catalog.asked("heads").signature
    assert [spec.name for spec in (*signature.inputs, *signature.outputs)] == ["image", "x_out"]
    with pytest.raises(InferenceError, match="unexpected inference input 'x'"):
        await site.proxy.infer("heads", {"x": np.ones((1, 2), np.float32)})


async def test_the_trunk_may_have_a_canary_of_its_own(site: Site) -> None:
    await site.load("trunk", multiplying(100, "image"), 2)
    site.route("trunk", "1", Traffic(shares={"2": 0.5}))
    answers = [await site.ask() for _ in range(20)]
    assert set(answers) == {10.0, 100.0}
    site.route("trunk", "2")
    assert await site.ask() == 100.0


async def test_a_trunk_that_goes_says_so_and_one_that_comes_is_taken(site: Site) -> None:
    await site.models.unload("trunk")
    with pytest.raises(InferenceError, match="'trunk' is being unloaded") as caught:
        await site.ask("ann")
    assert caught.value.failure.kind is FailureKind.UNAVAILABLE
    await site.load("trunk", multiplying(7, "image"))
    assert await site.ask("ann") == 14.0


class Halves:
    """A trunk and a head that answer when they are told to."""

    def __init__(self) -> None:
        self.trunk = EchoService(echo_signature(("image", DType.FP32, (-1, 2))), model="trunk")
        self.head = EchoService(echo_signature(("x", DType.FP32, (-1, 2))))
        self.layer = TrunkLayer(served(self.trunk), served(self.head), self.head, lambda: 5.0)
        ticket = Ticket(7, 1.0, 9.0, 1, 2, "ann", affinity="a", answer_by=10.0)
        tensor = Tensor("image", DType.FP32, (1, 2), bytes(8))
        self.request = Request(ticket, "heads", [tensor], (0,), "their id")
        self.reply = Reply(self.request)
        self.layer.submit(self.request, self.reply)


@pytest.mark.parametrize("half", ["trunk", "head"])
async def test_cancelling_ends_either_half(half: str) -> None:
    halves = Halves()
    if half == "head":
        halves.trunk.answer()
    service: EchoService = getattr(halves, half)
    assert len(service.waiting) == 1
    halves.layer.cancel(halves.request)
    assert halves.reply.kind is FailureKind.CANCELLED
    assert not service.waiting
    halves.layer.cancel(halves.request)
    assert len(service.cancelled) == 1, "afterwards there is nothing to cancel"
    assert not halves.layer._under_way


async def test_terms_hold_for_both_halves_and_times_add_up() -> None:
    halves = Halves()
    halves.trunk.answer()
    (asked,) = halves.head.requests
    ticket = asked.ticket
    assert (ticket.id, ticket.arrived_at, ticket.deadline_at, ticket.answer_by) == (7, 5.0, 9.0, 10.0)
    assert (ticket.priority, ticket.tenant, ticket.affinity, asked.id) == (2, "ann", "a", "their id")
    halves.head.answer()
    assert halves.reply.response is not None
    assert halves.reply.response.timing == Timing(0.002, 0.004, 0.006)
    assert not halves.layer._under_way


async def test_the_clients_terms_hold_for_both_halves(site: Site) -> None:
    with pytest.raises(InferenceError) as caught:
        await site.ask("ann", timeout_s=1e-9)
    assert caught.value.failure.kind is FailureKind.LATE
    assert site.models.catalog.asked("heads").service._under_way == {}  # type: ignore[attr-defined]


async def test_models_that_do_not_fit_are_refused(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    await site.load("flat", models.identity(DType.INT32, ("N", 2)))
    for trunk, said in (
        ("flat", r"model 'heads' takes 'x', FP32\[.*2\], but its trunk 'flat' gives 'y', INT32\[.*2\]"),
        ("heads", "a trunk has none itself"),
    ):
        with pytest.raises(ConfigError, match=said):
            site.route("heads", "1", Traffic(trunk=trunk))
    site.route("heads", "1", ON_TRUNK)
    with pytest.raises(ConfigError, match="model 'trunk' cannot have the trunk 'heads': a trunk has none itself"):
        site.route("trunk", "1", Traffic(trunk="heads"))
    site.route("trunk", "1")
    with pytest.raises(ConfigError, match=r"model 'heads' has no trunk: .* 'other' is not found"):
        site.route("heads", "1", Traffic(trunk="other"))
    site.route("heads", "1", ON_TRUNK)
    assert await site.ask("bob") == 30.0
    with caplog.at_level(logging.ERROR):
        await site.models.replace("trunk", "", site.config(models.identity(DType.INT32, ("N", 2)), 1))
    assert caplog.text.count("model 'heads' takes") == 1
    answer = await site.proxy.infer("heads", {"x": np.ones((1, 2), np.float32)})
    assert answer["x_out"][0, 0] == 1.0


async def test_features_that_no_head_takes_fail_the_request(site: Site) -> None:
    """The trunk says that its width is open, so only a request shows that it does not fit."""
    path = models.save(
        models.model(
            [helper.make_node("Concat", ["image", "image"], ["f"], axis=1)],
            [models.value("image", DType.FP32, ("N", "W"))],
            [models.value("f", DType.FP32, ("N", "V"))],
        ),
        site.folder / "open.onnx",
    )
    await site.models.replace("trunk", "", ModelConfig(path=str(path), run="inline", threads=1))
    with pytest.raises(InferenceError, match="what model 'trunk' gives is not what 'heads' takes: unexpected shape") as caught:
        await site.ask()
    assert caught.value.failure.kind is FailureKind.MODEL_FAILED
    assert (await site.proxy.infer("heads", {"image": np.ones((1, 1), np.float32)}))["x_out"].tolist() == [[1.0, 1.0]]


async def test_nothing_is_left_of_a_trunk_that_was_taken_away(site: Site) -> None:
    site.route("heads", "2")
    await site.models.unload("trunk")
    answer = await site.proxy.infer("heads", {"x": np.ones((1, 2), np.float32)})
    assert answer["x_out"][0, 0] == 2.0
