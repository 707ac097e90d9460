"""Variants answer in a model's place: real lanes and drivers in virtual time, on a core that they share or on one each."""

import asyncio
from collections import Counter
from math import inf
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest

from dlproxy.autopilot.flight import in_words
from dlproxy.config import CacheConfig, ConfigError, ModelConfig
from dlproxy.fleet.roster import Roster
from dlproxy.instance.trial import Way
from dlproxy.message import DType, FailureKind, Request, Signature, Tensor, TensorSpec, Ticket
from dlproxy.policy.arbiter import Arbiter
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.tuning.pilot import Decision
from dlproxy.serve.assemble import LoadedModel
from dlproxy.serve.caching.caches import Caches
from dlproxy.serve.control import LaneControl
from dlproxy.serve.degrading import Degrading
from dlproxy.serve.driver import Driver
from dlproxy.serve.turns import Turns
from dlproxy.serve.variants import VariantLayer, check_variants, difference
from dlproxy.telemetry.stats import ModelStats
from dlproxy.tensors import to_bytes
from dlproxy.testing import FakeInstance, FakeRuntime
from dlproxy.wire.catalog import ServedModel
from tests.serve.rig import SIGNATURE, Reply, pass_time, turns

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0, noop_cycles=4)  # time goes on by many small steps
SLO_S = 0.8


class Model:
    """One row takes `base_s` + `row_s`, and is multiplied by `factor`."""

    def __init__(self, name: str, base_s: float, row_s: float, factor: float, **settings: Any) -> None:
        config = ModelConfig(path=f"{name}.onnx", run="thread", max_batch=64, **{"slo": "p99=800ms", **settings})
        knobs = LaneKnobs(max_batch=64, max_queue_rows=config.max_queue_rows, slo_s=config.slo_s)
        points = tuple((rows, base_s + row_s * rows) for rows in (1, 8, 64))
        self.clock = asyncio.get_running_loop().time
        lane, stats = Lane(knobs, points), ModelStats()
        driver = Driver(
            model=name, version="1", signature=SIGNATURE, lane_on=lane.on, stats=stats, clock=self.clock, outage_wait_s=2.0
        )
        runtime = FakeRuntime(SIGNATURE, lambda inputs: [np.asarray(inputs[0], np.float32) * np.float32(factor)])
        self.instance = FakeInstance(name, runtime, service_s=lambda rows: base_s + row_s * rows)
        driver.add_instance(self.instance)
        way = Way(inline=False, instances=1, threads=1)
        fleet: Any = SimpleNamespace(way=way, calibration=SimpleNamespace(points=points), run="thread", signature=SIGNATURE)
        control = LaneControl(config, lane, driver, knobs, fleet, Roster(driver, stats, self.clock), 64)
        served = ServedModel(
            name=name,
            version="1",
            signature=SIGNATURE,
            service=driver,
            stats=stats,
            max_batch=64,
            slo_s=config.slo_s,
            view=lane.view,
        )
        self.loaded = LoadedModel(served, driver, driver, lane, fleet, None, control, control._roster)

    def take_turns(self, with_others: Turns) -> None:
        self.loaded.turn_needs = {"cores": 1.0}
        self.loaded.driver.take_turns(with_others, self.loaded.turn_needs)
        self.loaded.control.turn_knobs(arbitrated=True)


class Site:
    """m takes 96 ms a row and answers about 46 rows a second in time; q is twice as quick. m times 2, q times 3."""

    def __init__(
        self, *, shared: bool = True, variants: bool = True, cache: Literal["off", "auto", "on"] = "off", **settings: Any
    ) -> None:
        names = ["q"] if variants else []
        self.m = Model("m", 0.080, 0.016, 2.0, accuracy=0.99, variants=names, **settings)
        self.q = Model("q", 0.040, 0.008, 3.0, accuracy=0.97)
        self.up: dict[str, LoadedModel] = {"q": self.q.loaded}
        self.stats, self.config = self.m.loaded.served.stats, self.m.loaded.control.config
        self.clock = self.m.clock
        if shared:
            arbitrated = Turns(Arbiter({"cores": 1}), self.clock)
            for model in (self.m, self.q):
                model.take_turns(arbitrated)
        driver = self.m.loaded.driver
        self.layer = VariantLayer(driver, "m", self.config, self.stats, driver, self.clock)
        self.degrading = Degrading(self.layer, self.m.loaded)
        self.degrading.cores = 1.0 if shared else 2.0
        self.degrading.tell = lambda decision, before: self.told.append((decision, before))
        self.degrading.follow(self.up.get)
        self.front: Any = self.layer
        if cache != "off":
            made = Caches(CacheConfig(memory_mb=1), self.clock).before(
                self.layer, "m", ModelConfig(path="m", cache=cache), SIGNATURE, self.stats
            )
            assert made is not None
            self.front = made
        self.told: list[tuple[Decision, Decision | None]] = []
        self.replies: list[Reply] = []

    def request(self, value: float = 1.0, *, priority: int = 0, rows: int = 1, timeout_s: float = SLO_S) -> Request:
        array = np.full((rows, 1), value, np.float32)
        now = self.clock()
        ticket = Ticket(len(self.replies) + 1, now, now + timeout_s, rows, priority, "ann", shape_key=(1,))
        return Request(ticket, "m", [Tensor("x", DType.FP32, array.shape, to_bytes(DType.FP32, array))], (0,), id="r")

    def send(self, value: float = 1.0, **terms: Any) -> Reply:
        reply = Reply(self.request(value, **terms))
        self.replies.append(reply)
        self.front.submit(reply.request, reply)
        return reply

    async def load(self, seconds: float, rate: float, priorities: tuple[int, ...] = (0,), value: float = 1.0) -> list[Reply]:
        """At equal intervals; the replies."""
        before = len(self.replies)
        for number in range(round(seconds * rate)):
            self.send(value, priority=priorities[number % len(priorities)])
            await pass_time(1.0 / rate)
        await pass_time(SLO_S + 0.1)
        return self.replies[before:]

    async def until_degraded(self) -> "Site":
        """Under overload, which ends with it."""
        for _ in range(300):
            if self.layer.standing[4] is not None:
                break
            self.send()
            await pass_time(1.0 / 150.0)
        assert self.kinds == ["degrades"]
        await pass_time(1.0)
        return self

    async def end(self) -> None:
        """Everything is answered, and counted once."""
        await pass_time(4.0)
        assert all(reply.answered for reply in self.replies)
        assert not self.layer.under_way
        self.stats.settle()
        counted = self.stats.request.count + sum(self.stats.failures.values())
        assert counted == len(self.replies)
        self.degrading.close()
        assert self.stats.readers == []
        for model in (self.m, self.q):
            await model.loaded.driver.stop(1.0)

    @property
    def kinds(self) -> list[str]:
        return [decision.kind for decision, before in self.told if before is None]


def by(replies: list[Reply]) -> Counter[str]:
    """Who answered, or why nobody did."""
    return Counter(
        (reply.response.variant or "m") if reply.response else str(reply.kind and reply.kind.name) for reply in replies
    )


async def answered(reply: Reply) -> Reply:
    """It never takes longer than a moment, and what looks at the model now and then would go on for ever."""
    return await asyncio.wait_for(reply.wait(), 5.0)


def good(replies: list[Reply]) -> float:
    """The share that was answered in time."""
    in_time = [reply for reply in replies if reply.response and reply.at <= reply.request.ticket.deadline_at + 1e-9]
    return len(in_time) / len(replies)


# Under load


async def test_three_times_what_it_can_is_answered_by_a_variant_and_then_by_itself_again() -> None:
    alone, site = Site(variants=False), Site()
    assert good(await alone.load(2.0, 20.0)) == 1.0
    without = good(await alone.load(12.0, 140.0))
    assert good(await site.load(2.0, 20.0)) == 1.0
    began_at = site.clock()
    overload = await site.load(12.0, 140.0)
    ended_at = site.clock() - SLO_S
    calm = await site.load(6.0, 20.0)
    ratio = good(overload) / without
    assert ratio >= 0.85 * 2.0, f"{ratio:.2f}; the variant is twice as quick"
    assert by(overload)["q"] >= 0.95 * (by(overload)["q"] + by(overload)["m"])
    assert good(calm) == 1.0
    assert by(calm[-40:]) == {"m": 40}
    assert site.kinds == ["degrades", "restores"]
    degrades, restores = (decision for decision, before in site.told if before is None)
    assert degrades.at - began_at <= 0.75
    assert 2.0 <= restores.at - ended_at < 5.0
    measured = next(decision for decision, before in site.told if before is degrades)
    assert in_words(measured).startswith("degrades to priority 4 to 8 = q instead of m: the load is ")
    assert "miss the objective" in measured.measured
    counts = site.stats.variants
    assert counts is not None
    assert counts.answers == {"q": by(site.replies)["q"]}
    assert (counts.switches, counts.assignment) == (2, dict.fromkeys(range(1, 9), "m"))
    await site.end()
    await alone.end()


async def test_the_least_urgent_are_degraded_first() -> None:
    site = Site()
    await site.load(1.0, 20.0, (1, 8))
    replies = await site.load(8.0, 62.0, (1, 4, 8, 8, 8))
    for priority, answered in ((1, "m"), (8, "q")):
        of_class = [reply for reply in replies[62:] if reply.request.ticket.priority == priority]
        assert by(of_class)[answered] >= 0.9 * len(of_class), priority
    assert good(replies) > 0.9
    await site.end()


async def test_a_variant_on_cores_of_its_own_gets_what_the_model_has_no_time_for() -> None:
    site, alone = Site(shared=False), Site(shared=False, variants=False)
    without = good(await alone.load(6.0, 140.0))
    replies = await site.load(6.0, 140.0)
    assert site.kinds == []
    assert good(replies) > 2.4 * without
    assert site.layer.counts.spilled >= by(replies)["q"] > by(replies)["m"] > 0.9 * without * len(replies)
    await site.end()
    await alone.end()


async def test_a_full_queue_is_overload_without_an_objective() -> None:
    site = Site(slo="", max_queue_rows=50)
    for _ in range(10):
        for _ in range(100):
            site.send(timeout_s=inf)
        await pass_time(0.1)
    assert by(site.replies)["q"] > 0
    assert site.kinds == ["degrades"]
    await pass_time(10.0)
    await site.end()


async def test_below_the_accuracy_that_is_wanted_no_variant_answers() -> None:
    site = Site(slo="p99=800ms, accuracy>=0.98")
    assert set(by(await site.load(4.0, 140.0))) == {"m", "DEADLINE"}
    (problem,) = site.degrading.problems()
    assert problem == "variant 'q' is not used: its accuracy is 0.97, and accuracy>=0.98 holds"
    site.q.loaded.control.change({"accuracy": 0.0})
    assert "its accuracy is not known (set accuracy)" in site.degrading.problems()[0]
    site.q.loaded.control.change({"accuracy": 0.985})
    assert site.degrading.problems() == []
    assert by(await site.load(2.0, 140.0))["q"] > 0
    await site.end()


async def test_what_is_paused_is_not_decided() -> None:
    site = Site()
    site.degrading.held = lambda: True
    assert set(by(await site.load(4.0, 140.0))) == {"m", "DEADLINE"}
    await site.end()


async def test_a_pin_is_obeyed() -> None:
    site = Site()
    site.m.loaded.control.change({"variant": "q"})
    await pass_time(0.3)
    assert by(await site.load(1.0, 10.0)) == {"q": 10}
    site.m.loaded.control.change({"variant": "m"})
    await pass_time(0.3)
    assert set(by(await site.load(4.0, 140.0))) == {"m", "DEADLINE"}
    site.m.loaded.control.change({"variant": "auto"})
    assert by(await site.load(2.0, 140.0))["q"] > 0
    await site.end()


async def test_a_decision_that_fails_leaves_the_model_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    site = await Site().until_degraded()

    def broken() -> bool:
        raise ZeroDivisionError("of nothing")

    site.degrading.held = broken
    await pass_time(1.0)
    assert by(await site.load(1.0, 10.0)) == {"m": 10}
    assert caplog.text.count("it answers itself from now on") == 1
    await site.end()


# One request


async def test_an_answer_says_who_gave_it_and_is_the_models_all_the_same() -> None:
    site = await Site().until_degraded()
    before = site.stats.request.count
    urgent, reply = site.send(5.0, priority=1), site.send(5.0)
    assert (await answered(reply)).values == [15.0]
    assert (await answered(urgent)).values == [10.0]
    assert reply.response is not None
    assert urgent.response is not None
    assert (reply.response.model, reply.response.version, reply.response.variant, reply.response.id) == ("m", "1", "q", "r")
    assert urgent.response.variant == ""
    site.stats.settle()
    assert site.stats.request.count == before + 2
    await site.end()


async def test_who_leaves_leaves_the_variant() -> None:
    degraded = await Site().until_degraded()
    reply = degraded.send()
    await turns()
    assert degraded.q.loaded.driver.unanswered == 1
    degraded.layer.cancel(reply.request)
    assert reply.kind is FailureKind.CANCELLED
    assert not degraded.q.loaded.driver.unanswered
    await degraded.end()


async def test_who_leaves_between_two_lanes_is_asked_for_no_more() -> None:
    site = Site(shared=False)
    await pass_time(0.3)
    site.layer.room = 1
    for _ in range(100):
        site.send()
    spilling = [asked for asked in site.layer.under_way.values() if asked._sent is None]
    assert spilling
    request = spilling[0]._request
    site.layer.cancel(request)
    assert site.replies[request.ticket.id - 1].kind is FailureKind.CANCELLED
    await site.end()
    assert site.stats.failures[FailureKind.CANCELLED] == 1


async def test_a_variants_own_failure_is_told() -> None:
    degraded = await Site().until_degraded()
    degraded.q.instance.fail_next("no such index", "no such index")
    assert (await answered(degraded.send())).kind is FailureKind.MODEL_FAILED
    assert degraded.stats.failures[FailureKind.MODEL_FAILED] == 1
    await degraded.end()


async def test_a_variant_without_an_instance_answers_nobody() -> None:
    degraded = await Site().until_degraded()
    reply = degraded.send(5.0)
    await turns()
    degraded.q.loaded.driver.lose_instance("q", "killed")
    assert (await answered(reply)).values == [10.0], "what it had is asked of the model"
    assert by(await degraded.load(1.0, 10.0)) == {"m": 10}
    degraded.q.loaded.driver.add_instance(degraded.q.instance)
    assert by(await degraded.load(1.0, 10.0)) == {"q": 10}
    await degraded.end()


async def test_a_variant_that_goes_answers_what_it_has() -> None:
    degraded = await Site().until_degraded()
    reply = degraded.send(5.0)
    await turns()
    degraded.up.clear()
    degraded.degrading.follow(degraded.up.get)
    going = asyncio.create_task(degraded.q.loaded.driver.stop(1.0))
    assert by(await degraded.load(1.0, 10.0)) == {"m": 10}
    await going
    assert (await answered(reply)).values == [15.0]
    assert degraded.degrading.problems() == ["variant 'q' is not used: it is not served here"]
    assert degraded.kinds == ["degrades", "assigns"]
    await degraded.end()


async def test_a_request_that_is_too_large_for_it_stays() -> None:
    degraded = await Site().until_degraded()
    degraded.q.loaded.served.max_batch = 1
    assert len((await answered(degraded.send(5.0, rows=2))).values) == 2
    assert by(degraded.replies[-1:]) == {"m": 1}
    await degraded.end()


async def test_other_variants_can_be_named_while_it_serves() -> None:
    degraded = await Site().until_degraded()
    degraded.m.loaded.control.change({"variants": []})
    await pass_time(0.3)
    assert by(await degraded.load(1.0, 10.0)) == {"m": 10}
    await degraded.end()


async def test_a_comparison_of_our_own_is_the_models() -> None:
    degraded = await Site().until_degraded()
    request = degraded.request(5.0)
    request.ticket.id = -1
    reply = Reply(request)
    degraded.layer.submit(request, reply)
    assert (await answered(reply)).values == [10.0]
    await degraded.end()


# What is remembered


async def test_a_variants_answer_is_shared_and_not_remembered() -> None:
    site = Site(cache="on")
    site.m.loaded.control.change({"variant": "q"})
    await pass_time(0.3)
    first, joined = site.send(5.0), site.send(5.0)
    await answered(first)
    await answered(joined)
    assert [(reply.response.cache, reply.response.variant) for reply in (first, joined) if reply.response] == [
        ("miss", "q"),
        ("joined", "q"),
    ]
    site.m.loaded.control.change({"variant": "m"})
    await pass_time(0.3)
    again, known = await answered(site.send(5.0)), await answered(site.send(5.0))
    assert [reply.response.cache for reply in (again, known) if reply.response] == ["miss", "hit"]
    assert (first.values, again.values, known.values) == ([15.0], [10.0], [10.0])
    await site.end()


async def test_a_variants_answer_does_not_say_that_the_model_is_fickle() -> None:
    site = Site(cache="auto")
    await site.load(60.0, 10.0, value=7.0)
    assert site.front.watch.auto.on
    site.m.loaded.control.change({"variant": "q"})
    await pass_time(0.3)
    for value in range(8):
        await site.load(1.0, 10.0, value=value)
    assert site.front.watch.auto.stable
    await site.end()


# Which models may


def spec(name: str = "x", dtype: DType = DType.FP32, shape: tuple[int, ...] = (-1, 8)) -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def signature(*inputs: TensorSpec, batched: bool = True, streams: bool = False) -> Signature:
    return Signature(inputs or (spec(),), (spec("y"),), batched, "fake", streams=streams)


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        (signature(), ""),
        (signature(batched=False), ""),  # its own affair
        (signature(spec(shape=(-1, -1))), ""),  # it takes more
        (signature(spec(shape=(1, 8))), "its input is 'x', FP32[1,8] where the model has 'x', FP32[N,8]"),
        (signature(spec("image")), "its input is 'image', FP32[N,8]"),
        (signature(spec(dtype=DType.UINT8)), "its input is 'x', UINT8[N,8]"),
        (signature(spec(shape=(-1, 8, 1))), "its input is 'x'"),
        (signature(spec(), spec("mask")), "only one of them has the input 'mask'"),
        (signature(streams=True), "it answers in parts"),
    ],
)
def test_who_takes_other_requests_is_no_variant(theirs: Signature, said: str) -> None:
    found = difference(signature(), theirs)
    assert found.startswith(said) if said else found == ""


@pytest.mark.parametrize(
    ("settings", "streams", "said"),
    [
        ({"variants": ["m"]}, False, "'m' is the model itself"),
        ({"variants": ["q"]}, True, "answers in parts"),
        ({"variants": ["q"], "variant": "p"}, False, "variant = 'p' is none of auto, m, q"),
        ({"variant": "q"}, False, "none of auto, m"),
    ],
)
def test_variants_that_make_no_sense_are_refused(settings: dict[str, Any], streams: bool, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_variants("m", ModelConfig(path="m.onnx", **settings), signature(streams=streams))
    check_variants("m", ModelConfig(path="m.onnx", variants=["q"], variant="m"), signature())
