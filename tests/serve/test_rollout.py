"""Versions of a model share its requests while they come, go and are moved: real models, asked as clients ask."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from math import isclose
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from onnx import helper

from dlproxy import Proxy
from dlproxy.config import Config, ConfigError, ModelConfig, ServerConfig
from dlproxy.message import DType, FailureKind, InferenceError, Signature, TensorSpec
from dlproxy.policy.planner import Routes
from dlproxy.policy.wanted import Traffic
from dlproxy.serve import rollout
from dlproxy.serve.server import Server
from dlproxy.serve.traffic import difference_between
from tests import models
from tests.serve.rig import turns
from tests.serve.test_models_come_and_go import connected

NO_LABELS: Mapping[str, str] = MappingProxyType({})
NO_TRAFFIC = Traffic()
ROUNDS = 4  # make prove-rollouts has more, on a real server
CLIENTS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version N of the model multiplies by N; "wide" has another shape."""
    folder = tmp_path_factory.mktemp("versions")
    for version in range(1, ROUNDS + 3):
        models.save(multiplying(version, 2), folder / f"{version}.onnx")
    models.save(multiplying(9, 3), folder / "wide.onnx")
    return folder


def multiplying(factor: int, width: int) -> models.Model:
    return models.model(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        [models.value("x", DType.FP32, ("N", width))],
        [models.value("y", DType.FP32, ("N", width))],
        [models.constant("factor", np.float32(factor))],
    )


def config(folder: Path, version: int, file: str = "", **knobs: str) -> ModelConfig:
    path = str(folder / f"{file or version}.onnx")
    return ModelConfig(path=path, version=str(version), run="inline", threads=1, **knobs)  # type: ignore[arg-type]


class Site:
    """A library's models, asked as its callers do."""

    def __init__(self, proxy: Proxy, folder: Path) -> None:
        self.proxy, self.models, self.folder = proxy, proxy._models, folder

    def route(self, default: str, labels: Mapping[str, str] = NO_LABELS, traffic: Traffic = NO_TRAFFIC) -> None:
        self.models.route("m", Routes(default, labels, traffic))

    async def load(self, version: int, file: str = "", **knobs: str) -> None:
        await self.models.load("m", config(self.folder, version, file, **knobs))

    async def ask(self, version: str = "", **terms: str) -> int:
        """The version that answered."""
        answer = await self.proxy.infer("m", {"x": np.ones((1, 2), np.float32)}, version=version, **terms)  # type: ignore[arg-type]
        return int(answer["y"][0, 0])

    async def asked(self, times: int) -> Counter[int]:
        return Counter([await self.ask() for _ in range(times)])

    @property
    def stats(self) -> dict[str, rollout.ModelStats]:
        return {model.served.version: model.served.stats for model in self.models}


@pytest.fixture
async def site(folder: Path) -> AsyncIterator[Site]:
    """Versions 1 and 2 of m, of which 1 is the default."""
    async with Proxy() as proxy:
        site = Site(proxy, folder)
        for version in (1, 2):
            await site.load(version)
        site.route("1")
        yield site


async def test_a_label_is_a_version(site: Site) -> None:
    site.route("1", {"stable": "1", "canary": "2"})
    assert [await site.ask(version) for version in ("", "stable", "canary", "2")] == [1, 1, 2, 2]
    site.route("1", {"stable": "2"})
    assert await site.ask("stable") == 2
    with pytest.raises(InferenceError, match="version canary is not found; the versions served are 1, 2, stable"):
        await site.ask("canary")
    with pytest.raises(InferenceError, match="version 7 is not found"):
        site.route("1", {"canary": "7"})
    assert await site.ask("stable") == 2, "what is refused changes nothing"


async def test_a_share_of_requests(site: Site) -> None:
    site.route("1", traffic=Traffic(shares={"2": 0.1}))
    assert (await site.asked(200))[2] == pytest.approx(20, abs=3)
    assert await site.ask("1") == 1, "a version that is named is never another"
    site.route("1")
    assert await site.asked(50) == {1: 50}


async def test_a_whole_share_of_many_is_exact(site: Site) -> None:
    site.route("1", traffic=Traffic(shares={"2": 0.1}))
    counts = sum(await asyncio.gather(*(site.asked(1_000) for _ in range(20))), Counter[int]())
    assert isclose(counts[2], 2_000, rel_tol=0.01)


async def test_a_share_is_met_while_labels_move_and_versions_come(site: Site) -> None:
    counts = Counter[int]()
    for number in range(60):
        site.route("1", {"canary": str(1 + number % 2)}, Traffic(shares={"2": 0.25}))
        counts[await site.ask()] += 1
    assert counts[2] == pytest.approx(15, abs=2)


async def test_sticky_by_header_and_by_tenant(site: Site) -> None:
    site.route("1", traffic=Traffic(shares={"2": 0.5}, by="header:x-user"))
    first = [await site.ask(affinity=str(user)) for user in range(20)]
    assert [await site.ask(affinity=str(user)) for user in range(20)] == first
    assert set(first) == {1, 2}
    site.route("1", traffic=Traffic(shares={"2": 0.5}, tenants={"ann": "1", "bob": "2"}, by="tenant"))
    assert [await site.ask(tenant=name) for name in ("ann", "bob", "ann", "bob")] == [1, 2, 1, 2]
    first = [await site.ask(tenant=str(tenant)) for tenant in range(20)]
    assert [await site.ask(tenant=str(tenant)) for tenant in range(20)] == first


async def test_a_version_that_goes_leaves_its_share_to_the_default_and_takes_it_again(site: Site) -> None:
    await site.load(3)
    site.route("1", traffic=Traffic(shares={"2": 0.5, "3": 0.25}))
    asked = [asyncio.ensure_future(site.ask()) for _ in range(40)]
    await turns(1)
    await site.models.unload("m", "2")
    assert 2 in await asyncio.gather(*asked), "what was under way was answered"
    counts = await site.asked(100)
    assert counts[1] == pytest.approx(75, abs=3)
    assert counts[3] == pytest.approx(25, abs=3)
    await site.load(2)
    assert (await site.asked(100))[2] == pytest.approx(50, abs=3)
    await site.models.unload("m", "1")
    assert set(await site.asked(50)) == {2, 3}, "the default is another then"
    await site.models.unload("m")
    with pytest.raises(InferenceError, match="'m' is not found"):
        await site.ask()
    await site.load(1)
    await site.load(2)
    assert await site.asked(10) == {2: 10}, "of a model that was gone nothing has stayed"


async def test_a_version_that_is_wanted_before_it_is_up_gets_its_share_then(site: Site) -> None:
    site.route("1", traffic=Traffic(shares={"3": 0.5}, tenants={"ann": "3"}))
    assert await site.asked(20) == {1: 20}
    assert await site.ask(tenant="ann") == 1
    await site.load(3)
    assert (await site.asked(100))[3] == pytest.approx(50, abs=3)
    assert await site.ask(tenant="ann") == 3


async def test_a_shadow_is_asked_in_parts_as_well(site: Site) -> None:
    site.route("1", traffic=Traffic(shadow="2"))
    answer = await site.proxy.infer("m", {"x": np.ones((600, 2), np.float32)})
    assert answer["y"].shape == (600, 2)
    while not sum(site.stats["2"].shadows.values()):
        await turns()
    assert site.stats["2"].shadows["different"] == 1
    assert (site.stats["1"].request.count, site.stats["2"].request.count) == (1, 0)
    assert (max(site.stats["1"].batch_sizes), site.stats["2"].batch_sizes) == (200, {})


async def test_a_shadow_changes_no_answer(site: Site) -> None:
    site.route("1", traffic=Traffic(shadow="2"))
    assert await site.asked(20) == {1: 20}
    site.route("1")
    assert await site.asked(5) == {1: 5}
    shadows = site.stats["2"].shadows
    assert (shadows["different"], shadows["same"], sum(shadows.values())) == (20 - shadows["dropped"], 0, 20)


async def test_what_changes_of_the_versions_holds_for_what_is_diverted(site: Site) -> None:
    site.route("1", traffic=Traffic(shares={"2": 0.5}))
    diverted = site.models.catalog.asked("m")
    default = site.models.catalog.get("m")
    assert diverted is not default
    assert default.control is not None
    default.control.change({"slo": "p99=20ms"})
    assert diverted.slo_s == 0.02
    other = site.models.catalog.get("m", "2").control
    assert other is not None
    other.change({"max_batch": 3, "max_queue_rows": 3})
    assert (default.max_batch, diverted.max_batch) == (8192, 3)


async def test_versions_that_take_other_inputs_share_no_requests(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    await site.load(3, "wide")
    for traffic in (Traffic(shares={"3": 0.1}), Traffic(shadow="3"), Traffic(tenants={"ann": "3"})):
        with pytest.raises(
            ConfigError, match=r"version 3 cannot answer what .* shape of input 'x' is \(-1, 2\) in one, \(-1, 3\) in"
        ):
            site.route("1", {"wide": "3"}, traffic)
        assert await site.ask(tenant="ann") == 1
    with pytest.raises(ConfigError):
        site.route("2", {"stable": "1"}, Traffic(shares={"3": 0.5, "1": 0.5}))
    assert set(await site.asked(20)) == {1, 2}, "all else holds"
    assert await site.ask("stable") == 1
    site.route("1", traffic=Traffic(shares={"2": 0.5}))
    with caplog.at_level(logging.ERROR):
        await site.models.replace("m", "2", config(site.folder, 2, "wide"))
    assert await site.asked(20) == {1: 20}
    assert caplog.text.count("version 2 cannot answer what is asked of version 1") == 1


async def test_requests_stick_to_versions_and_to_instances_by_one_header(site: Site) -> None:
    await site.load(3, balancer="consistent-hash", sticky="tenant")
    with pytest.raises(ConfigError, match="splitting by header:x-user needs the same 'sticky', which is tenant"):
        site.route("3", traffic=Traffic(shares={"2": 0.5}, by="header:x-user"))


SPEC = TensorSpec("x", DType.FP32, (-1, 2))
PLAIN = Signature((SPEC,), (SPEC,), batched=True, platform="a")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Signature((SPEC,), (SPEC,), batched=True, platform="b"), ""),
        (Signature((TensorSpec("x", DType.FP32, (-1, 2), axes=("a", "b")),), (SPEC,), batched=True, platform="b"), ""),
        (Signature((SPEC, SPEC), (SPEC,), batched=True, platform="a"), "only one of them has the input 'x'"),
        (Signature((SPEC,), (), batched=True, platform="a"), "only one of them has the output 'x'"),
        (Signature((SPEC,), (SPEC,), batched=False, platform="a"), "only one of them batches"),
        (Signature((SPEC,), (SPEC,), batched=True, platform="a", streams=True), "only one of them answers in parts"),
    ],
)
def test_what_differs_is_named(other: Signature, said: str) -> None:
    assert difference_between(PLAIN, other) == said


async def test_labels_canaries_and_rollbacks_under_load(site: Site) -> None:
    """Several rounds; every client checks that it was answered by a version that could be meant."""
    allowed: dict[str, set[int]] = {"": {1}, "stable": {1}, "canary": {1}}
    answered, failed = Counter[str](), list[str]()
    ending = False

    async def client(what: str) -> None:
        while not ending:
            before = allowed[what]
            try:
                version = await site.ask(what)
            except InferenceError as error:
                failed.append(f"{what}: {error}")
                continue
            answered[what] += 1
            if version not in before | allowed[what]:
                failed.append(f"{what or 'no version'}: {version} answered, {before | allowed[what]} may")

    site.route("1", {"stable": "1", "canary": "1"})
    clients = [asyncio.ensure_future(client(what)) for what in allowed for _ in range(CLIENTS)]
    try:
        stable = 1
        for new in range(3, 3 + ROUNDS):
            before = answered.total()
            await site.load(new)
            allowed |= {"": {stable, new}, "canary": {new}}
            site.route(str(stable), {"stable": str(stable), "canary": str(new)}, Traffic(shares={str(new): 0.3}, guarded=True))
            await turns(20)
            if new % 2:  # it stays
                allowed |= {"": {new}, "stable": {new}}
                site.route(str(new), {"stable": str(new), "canary": str(new)})
                await site.models.unload("m", str(stable))
                stable = new
            else:  # it is taken back
                allowed |= {"": {stable}, "canary": {stable}}
                site.route(str(stable), {"stable": str(stable), "canary": str(stable)})
                await site.models.unload("m", str(new))
            assert answered.total() > before
            assert not failed, f"round {new}: {failed[:3]}"
    finally:
        ending = True
        await asyncio.gather(*clients)
    assert not failed
    assert set(answered) == set(allowed)


async def test_over_http_the_answer_names_the_version(folder: Path) -> None:
    versions = [config(folder, version) for version in (1, 2)]
    server = Server(Config(server=ServerConfig(http_port=0, control_port=0, calibration_folder=""), models={"m": versions}))
    await server.start()
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 1]}]}).encode()

    async def ask(path: str, header: str = "x-other: 1") -> tuple[str, float]:
        head = f"POST /v2/models/m{path}/infer HTTP/1.1\r\nhost: x\r\n{header}\r\ncontent-length: {len(body)}\r\n\r\n"
        async with connected(server.http_port) as connection:
            answer = json.loads((await connection.ask(head.encode() + body)).body)
        return answer["model_version"], answer["outputs"][0]["data"][0]

    try:
        server.models.route("m", Routes("1", {"canary": "2"}, Traffic(shares={"2": 0.5}, by="header:X-User")))
        assert await ask("/versions/canary") == ("2", 2.0)
        users = [[await ask("", f"x-user: {user}") for user in range(12)] for _ in range(2)]
        assert users[0] == users[1]
        assert set(users[0]) == {("1", 1.0), ("2", 2.0)}
    finally:
        await server.stop()


class Judged(Site):
    """Whose canary's statistics say what a test wants."""

    told: list[tuple[str, str, str]]

    async def seconds(self, number: int) -> None:
        for _ in range(number):
            timers = self.models._rollouts
            assert timers._timer is not None
            timers._timer.cancel()
            timers._look()


@pytest.fixture
async def judged(site: Site) -> Judged:
    judged = Judged(site.proxy, site.folder)
    judged.told = []
    judged.models.on_worse = lambda *what: judged.told.append(what)
    return judged


async def test_a_guarded_version_that_fails_is_told_of(judged: Judged) -> None:
    judged.route("1", traffic=Traffic(shares={"2": 0.1}, guarded=True))
    stats = judged.stats
    for _ in range(15):
        for _ in range(20):
            stats["1"].request.add(0.01)
            stats["2"].failed(FailureKind.MODEL_FAILED, 0.01)
        await judged.seconds(1)
    ((name, version, reason), *_) = judged.told
    assert (name, version) == ("m", "2")
    assert "100.00% of 200 requests failed" in reason


async def test_only_guarded_shares_cost_a_timer(judged: Judged) -> None:
    rollouts = judged.models._rollouts

    def watched() -> bool:
        kept = [len(stats.readers) == 1 for stats in judged.stats.values()]
        assert len(set(kept)) == 1
        return kept[0] and rollouts._timer is not None

    for traffic, expected in (
        (Traffic(shares={"2": 0.1}), False),
        (Traffic(shares={"2": 0.1}, guarded=True), True),
        (Traffic(shadow="2", guarded=True), False),
        (Traffic(shares={"2": 0.1}, guarded=True), True),
        (Traffic(), False),
    ):
        judged.route("1", traffic=traffic)
        assert watched() is expected
    judged.route("1", traffic=Traffic(shares={"2": 0.1}, guarded=True))
    await judged.models.unload("m", "2")
    assert rollouts._timer is None
    assert judged.stats["1"].readers == []


async def test_a_judge_goes_on_while_its_split_stays(judged: Judged) -> None:
    guarded = Traffic(shares={"2": 0.1}, guarded=True)
    judged.route("1", {}, guarded)
    (judge,) = judged.models._rollouts._rollouts["m"].judges.values()
    judged.route("1", {"stable": "1"}, guarded)
    await judged.load(3)
    assert list(judged.models._rollouts._rollouts["m"].judges.values()) == [judge]
    judged.route("1", {}, Traffic(shares={"2": 0.2}, guarded=True))
    assert list(judged.models._rollouts._rollouts["m"].judges.values()) != [judge]


async def test_it_looks_once_a_second(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "TICK_S", 0.01)
    looked = asyncio.Event()
    judged.route("1", traffic=Traffic(shares={"2": 0.1}, guarded=True))
    (key,) = judged.models._rollouts._rollouts["m"].judges

    class Watching:
        def look(self, stable: object, canary: object) -> str:
            looked.set()
            return ""

    judged.models._rollouts._rollouts["m"].judges[key] = Watching()  # type: ignore[assignment]
    await judged.seconds(1)
    looked.clear()
    await asyncio.wait_for(looked.wait(), 5.0)
