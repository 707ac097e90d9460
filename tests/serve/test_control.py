"""Knobs that are changed while a model runs: they hold at once, or the change is refused whole."""

import asyncio
import itertools
from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.config.table import live_knobs
from dlproxy.fleet.roster import Roster
from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, FailureKind, InferenceError, Tensor
from dlproxy.policy.balancing import BALANCERS
from dlproxy.policy.queueing import DISCIPLINES
from dlproxy.serve.assemble import LoadedModel, load_model, unload_model
from dlproxy.serve.control import LaneControl
from dlproxy.service import FutureReply
from dlproxy.wire.endpoint import Endpoint
from dlproxy.wire.oip.describe import config
from dlproxy.wire.terms import NO_TERMS, Terms
from tests import models
from tests.serve.rig import KNOBS, Rig, pass_time, turns

IDS = itertools.count(1)

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)  # whoever waits for ever fails, and does not hang


class Rented:
    """As much of a fleet as a control uses; `problem`: why it cannot scale."""

    run = "process"

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.problem: Exception | None = None

    async def scale(self, count: int) -> None:
        self.counts.append(count)
        if self.problem is not None:
            raise self.problem


class Controlled(Rig):
    """A rig whose lane has a control; `settings` as in [models.m]."""

    def __init__(self, *, most_batch: int = 64, instances: int = 1, service_s: float = 0.01, **settings: Any) -> None:
        knobs = replace(KNOBS, max_batch=most_batch)
        super().__init__(instances=0, service_s=service_s, knobs=knobs)
        config = ModelConfig(path="m.onnx", **{"max_batch": 64, "max_queue_rows": 1000, **settings})
        self.roster = Roster(self.driver, self.stats, self.now)
        self.fleet = Rented()
        self.control = LaneControl(config, self.lane, self.driver, knobs, self.fleet, self.roster, most_batch)
        self.fakes = [self.fake(f"m-{number}") for number in range(instances)]
        for fake in self.fakes:
            self.roster.add_instance(fake)

    @property
    def knobs(self) -> dict[str, Any]:
        shown: dict[str, Any] = self.control.state()["knobs"]
        return shown


async def test_the_state_says_what_holds_waits_and_runs() -> None:
    rig = Controlled(instances=2, service_s=1.0)
    replies = [rig.send(rows=64), rig.send(rows=64), rig.send(rows=2), rig.send(rows=1)]
    await turns()
    state = rig.control.state()
    assert set(state["knobs"]) == set(live_knobs())
    assert state["knobs"]["discipline"] == "edf"
    assert (state["running_batches"], state["queued_requests"], state["queued_rows"]) == (2, 2, 3)
    for number, instance in enumerate(state["instances"]):
        now = {"name": f"m-{number}", "state": "up", "circuit": "closed", "in_flight": 1, "capacity": 1}
        assert now.items() <= instance.items()
    assert len(state["instances"]) == 2
    assert state["run"] == "process"
    assert state["arbitrated"] is False
    for reply in replies:
        await reply.wait()


async def test_an_instance_that_is_down_is_shown_beside_those_that_are_up() -> None:
    rig = Controlled(instances=2)
    rig.roster.lose_instance("m-0", "killed by SIGKILL")
    rig.roster.instance_waits("m-0", 5.0)
    await pass_time(2.0)
    down, up = rig.control.state()["instances"]
    assert down == {
        "name": "m-0",
        "state": "waiting",
        "for_s": 2.0,
        "again_in_s": 3.0,
        "restarts": 0,
        "last_problem": "killed by SIGKILL",
        "pid": None,
        "address": None,
        "circuit": None,
        "in_flight": 0,
        "capacity": 0,
    }
    assert {"name": "m-1", "state": "up", "again_in_s": None, "circuit": "closed", "capacity": 1}.items() <= up.items()
    assert up.keys() == down.keys()


async def test_scaling_takes_counts_that_make_sense_and_says_why_it_failed() -> None:
    rig = Controlled()
    for many in (0, 256):
        await rig.control.scale(many)
    for many in (-1, 257):
        with pytest.raises(ConfigError, match=f"instances {many} is out of range; give 0 to 256"):
            await rig.control.scale(many)
    rig.fleet.problem = ModelError("no memory for a third")
    with pytest.raises(ConfigError, match="no memory for a third"):
        await rig.control.scale(3)
    assert rig.fleet.counts == [0, 256, 3]


async def test_every_choice_of_discipline_and_balancer_can_be_changed_to_while_requests_wait() -> None:
    rig = Controlled(instances=2, service_s=0.5)
    replies = []
    for changes in (
        *({"discipline": discipline} for discipline in (*DISCIPLINES, "edf")),
        *({"balancer": balancer} for balancer in (*BALANCERS, "peak-ewma")),
        {"starvation_s": 1, "ageing_s": 0, "hedge": True, "eject_after": 0, "codel_target_s": 1.5, "adaptive_limit": True},
    ):
        replies += [rig.send(float(len(replies) + more)) for more in range(2)]
        await turns()
        rig.control.change(changes)
        assert {name: rig.knobs[name] for name in changes} == changes
    for number, reply in enumerate(replies):
        assert (await reply.wait()).values == [2.0 * number]
    await pass_time(1.0)  # a second run of the last batch may still be under way
    assert rig.is_at_rest()


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"disciplin": "edf"}, ["'disciplin'", "did you mean 'discipline'?"]),
    (
        {"zzz": 1},
        ["'zzz' cannot be changed", "these can: slo, slo_by_priority, variants, accuracy, variant, autopilot, weight, pinned"],
    ),
    ({"instances": 2}, ["'instances' cannot be changed while the model runs"]),
    ({"path": "other.onnx"}, ["'path' cannot be changed"]),
    ({"sticky": "tenant"}, ["'sticky' cannot be changed"]),
    ({"discipline": "edff"}, ["discipline: 'edff' is not one of its values", "did you mean 'edf'?"]),
    ({"balancer": "zzz"}, ["balancer: 'zzz' is not one of its values", "it takes peak-ewma, round-robin"]),
    ({"discipline": 3}, ["discipline: ", "str", "int"]),
    ({"discipline": None}, ["discipline: ", "str", "null"]),
    ({"max_batch": 0}, ["max_batch: ", ">= 1"]),
    ({"max_batch": "8"}, ["max_batch: ", "int", "str"]),
    ({"max_batch": 2.5}, ["max_batch: ", "int"]),
    ({"max_batch": True}, ["max_batch: ", "int", "bool"]),
    ({"max_batch": 65}, ["max_batch 65 is above 64", "loaded with"]),
    ({"max_wait_s": -1}, ["max_wait_s: ", ">= 0"]),
    ({"starvation_s": 0}, ["starvation_s: ", "> 0"]),
    ({"retry_budget": 2}, ["retry_budget: ", "<= 1"]),
    ({"hedge": "yes"}, ["hedge: ", "bool", "str"]),
    ({"hedge": {"a": [1]}}, ["hedge: ", "bool", "object"]),
    ({"slo": "fast"}, ["slo 'fast' is not understood", "p99=20ms"]),
    ({"slo": 20}, ["slo: ", "str", "int"]),
]


@pytest.mark.parametrize(("changes", "clues"), REFUSED)
async def test_a_change_that_is_refused_changes_nothing(changes: dict[str, Any], clues: list[str]) -> None:
    rig = Controlled()
    before = rig.control.state()
    for asked in (changes, {"discipline": "sjf", "slo": "p99=1s", **changes}, {**changes, "max_queue_rows": 5}):
        with pytest.raises(ConfigError) as caught:
            rig.control.change(asked)
        assert not [clue for clue in clues if clue not in str(caught.value)], str(caught.value)
        assert "\n" not in str(caught.value)
    assert rig.control.state() == before
    assert rig.control.slo_s is None
    rig.control.change({"max_wait_s": 0.0})
    assert rig.control.state() == before, "nor does it come back with the next change"


async def test_a_refused_queue_length_would_have_shown() -> None:
    """The counterpart: an accepted one refuses requests at once."""
    rig = Controlled(service_s=1.0)
    rig.control.change({"max_queue_rows": 2, "retry_budget": 0})
    running = rig.send()
    await turns()
    kinds = [rig.send().kind for _ in range(2)]
    await turns()
    refused = await rig.send().wait()
    assert (kinds, refused.kind) == ([None, None], FailureKind.QUEUE_FULL)
    await running.wait()


async def test_batches_shrink_and_grow_back_to_what_the_model_was_loaded_with() -> None:
    rig = Controlled()
    for most, batches in ((2, [2, 2, 2, 2]), (64, [8])):
        rig.control.change({"max_batch": most})
        replies = [rig.send() for _ in range(8)]
        for reply in replies:
            await reply.wait()
        assert [len(batch) for batch in rig.batches] == batches
        rig.batches.clear()


async def test_an_objective_changes_how_large_batches_may_be_and_the_deadline_of_requests() -> None:
    rig = Controlled()  # a row takes 10 ms, 64 take 11
    tight, wide = "p99=22ms", "p99=100ms"  # of which 0.46 are for a batch: 10.1 and 46 ms
    rig.control.change({"slo": wide})
    assert (rig.control.state()["batch_limit_rows"], rig.control.slo_s) == (64, 0.1)
    rig.control.change({"slo": tight})
    assert rig.control.state()["batch_limit_rows"] < 64
    assert rig.control.slo_s == pytest.approx(0.022)
    rig.control.change({"slo": ""})
    assert rig.control.slo_s is None


async def test_a_model_without_a_batch_axis_stays_at_one_row() -> None:
    rig = Controlled(most_batch=1, max_batch=256)
    assert rig.knobs["max_batch"] == 1, "what holds, not what the file says"
    rig.control.change({"discipline": "fcfs", "slo": "p99=10s"})
    assert (rig.knobs["max_batch"], rig.control.state()["batch_limit_rows"]) == (1, 1)
    with pytest.raises(ConfigError, match="max_batch 8 is above 1"):
        rig.control.change({"max_batch": 8})
    rig.control.change({"max_batch": 1})
    replies = [rig.send() for _ in range(3)]
    for reply in replies:
        await reply.wait()
    assert rig.batches == [[1], [2], [3]]


async def test_a_sticky_model_keeps_the_balancer_that_it_needs() -> None:
    rig = Controlled(sticky="tenant", balancer="consistent-hash")
    with pytest.raises(ConfigError, match="needs balancer = 'consistent-hash', not 'round-robin'"):
        rig.control.change({"balancer": "round-robin"})
    rig.control.change({"balancer": "consistent-hash", "discipline": "sjf"})
    assert (rig.knobs["balancer"], rig.knobs["discipline"]) == ("consistent-hash", "sjf")


async def test_a_change_leaves_alone_what_the_arbiter_has_set() -> None:
    rig = Controlled()
    rig.control.turn_knobs(arbitrated=True)
    rig.control.change({"max_batch": 4})
    assert rig.control.state()["arbitrated"] is True
    rig.control.turn_knobs(arbitrated=False)
    assert rig.knobs["max_batch"] == 4


async def test_what_is_tuned_holds_beside_what_is_declared_until_somebody_states_it() -> None:
    rig = Controlled()
    told: list[str] = []
    rig.control.on_changing, rig.control.on_changed = partial(told.append, "changing"), partial(told.append, "changed")
    rig.control.tune({"max_batch": 4, "hedge": True, "discipline": "edf"})
    state = rig.control.state()
    assert (state["knobs"]["max_batch"], state["knobs"]["hedge"]) == (4, True)
    assert state["tuned"] == {"max_batch": {"value": 4, "declared": 64}, "hedge": {"value": True, "declared": False}}
    assert (rig.control.config.max_batch, rig.lane.view().knobs.max_batch, told) == (64, 4, [])
    with pytest.raises(ConfigError):
        rig.control.change({"max_batch": 0})
    assert told == [], "what is refused ends no trial"
    rig.control.change({"max_batch": 32})
    assert told == ["changing", "changed"]
    assert (rig.control.tuned, rig.lane.view().knobs.max_batch) == ({"hedge": True}, 32)
    rig.control.tune({"max_batch": 8})
    rig.control.stop_batching("rows depend on each other")
    assert (rig.control.tuned, rig.lane.view().knobs.max_batch, rig.lane.view().knobs.hedge) == ({}, 1, False)


@pytest.mark.looptime(False)
async def test_a_loaded_model_is_under_control() -> None:
    clock = asyncio.get_running_loop().time
    model = await load_model(
        "digits", ModelConfig(path=str(models.DIGITS), threads=1, slo="p99=50ms"), ticket_ids=IDS, clock=clock
    )
    assert model.served.control is model.control
    assert _left_s(model) == pytest.approx(0.05)
    model.control.change({"slo": "p99=20ms", "max_batch": 3, "max_queue_rows": 3})
    assert model.served.slo_s == pytest.approx(0.02)
    assert _left_s(model) == pytest.approx(0.02), "requests get the new deadline"
    model.control.change({"slo_by_priority": {"1": "p99=5ms", "4": "p95=10ms"}})
    assert (_left_s(model, 1), _left_s(model, 2), _left_s(model)) == pytest.approx((0.005, 0.02, 0.01))
    model.control.change({"slo_by_priority": {}})
    assert _left_s(model, 1) == pytest.approx(0.02)
    assert model.served.view().batch_goal <= 3
    with pytest.raises(InferenceError, match="batch-size must be <= 3 for 'digits', got 4"):
        _left_s(model, rows=4)
    assert config(model.served)["max_batch_size"] == 3
    model.control.stop_batching("a test says so")
    assert model.served.max_batch == 3, "one request may still have several rows"
    assert model.lane.batching.goal == model.control.state()["batch_limit_rows"]
    await unload_model(model, drain_s=1.0)


@pytest.mark.looptime(False)
async def test_a_model_begins_with_the_first_values_and_takes_what_its_knobs_promise(caplog: pytest.LogCaptureFixture) -> None:
    clock = asyncio.get_running_loop().time
    start = {"max_batch": 1, "discipline": "sjf", "instances": 2, "run": "thread"}
    config = ModelConfig(path="sleep:base=1ms,row=0.01ms", slo="p95=0.5ms, rate>=1000", start=start, max_batch=16)
    model = await load_model("m", config, ticket_ids=IDS, clock=clock)
    state = model.control.state()
    assert (state["knobs"]["max_batch"], state["knobs"]["discipline"], state["batch_limit_rows"]) == (1, "sjf", 1)
    assert (state["run"], len(state["instances"]), state["batching"]) == ("thread", 2, "on")
    assert (model.served.max_batch, model.control.most_batch) == (8192, 16)
    assert [text.startswith("model m: p95=500us cannot be met: one row alone") for text in caplog.messages] == [True]
    assert model.control.partition is not None
    assert (model.control.partition.part_rows, model.control.partition.most_whole) == (1, 16), "a first value is no bound"
    model.control.change({"max_batch": 16})
    assert model.control.state()["knobs"]["max_batch"] == 16
    with pytest.raises(ConfigError, match="max_batch 17 is above 16"):
        model.control.change({"max_batch": 17})
    assert len(caplog.messages) == 1, "what was said of an objective is said once"
    model.control.change({"slo": "rate>=1000000"})
    assert "rate>=1000000 cannot be met: batches give at most" in caplog.messages[-1]
    await unload_model(model, drain_s=1.0)


def _left_s(model: LoadedModel, priority: int = 0, rows: int = 1) -> float:
    """How long a request that comes now may take."""
    endpoint = Endpoint(model.served, IDS, asyncio.get_running_loop().time, "")
    request = endpoint.request([Tensor("image", DType.FP32, (rows, 1, 8, 8), bytes(256 * rows))], endpoint.checker.all_outputs)
    endpoint.submit(request, FutureReply(), Terms(priority=priority) if priority else NO_TERMS)
    endpoint.cancel(request)
    return request.ticket.deadline_at - request.ticket.arrived_at


async def test_batches_are_made_for_what_pipelines_leave_where_there_is_no_objective() -> None:
    rig = Controlled()
    aims_s = []
    for who, share_s in [("p.one", 0.2), ("q.one", 0.1), ("q.one", 0.3), ("p.one", None), ("q.one", None), ("gone.one", None)]:
        rig.control.aim(who, share_s)
        aims_s.append(rig.lane.view().knobs.slo_s)
    assert aims_s == [0.2, 0.1, 0.2, 0.3, None, None]
    rig.control.aim("p.one", 0.2)
    rig.control.change({"slo": "p99=50ms"})
    assert rig.lane.view().knobs.slo_s == 0.05
    rig.control.aim("p.one", 0.01)
    assert rig.lane.view().knobs.slo_s == 0.05
    rig.control.change({"slo": ""})
    assert rig.lane.view().knobs.slo_s == 0.01
