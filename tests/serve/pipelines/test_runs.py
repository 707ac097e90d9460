"""What a pipeline answers, and what of it fails in which words; every request once, and nothing is left of it."""

import gc
import re
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from dlproxy.instance.thread import ThreadInstance
from dlproxy.message import DType, FailureKind, Request, TensorSpec
from dlproxy.serve.pipelines import code
from dlproxy.serve.pipelines.calls import MOST_ITEMS, WINDOW
from dlproxy.serve.pipelines.instance import CAPACITY
from dlproxy.serve.pipelines.run import Run
from dlproxy.service import ReplyTo, Service, next_part
from dlproxy.tensors import to_values
from tests.serve.pipelines.rig import HERE, TWO, Floor, Pipeline, rows, step, times, total
from tests.serve.rig import KNOBS, POISON, SIGNATURE, double, double_unless_poisoned, pass_time, turns

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)

CHAIN = {"a": step("m", x="x"), "b": step("n", x="a.y")}


def chain(floor: Floor, **settings: Any) -> Pipeline:
    floor.model("m", **settings)
    floor.model("n", service_s=0.020)
    return floor.pipeline(CHAIN, {"y": "b.y"})


async def test_a_chain_takes_as_long_as_its_stages_and_hands_tensors_on() -> None:
    floor = Floor()
    pipeline = chain(floor)
    answer = await pipeline.send({"x": rows(1, 2, 3)}).wait()
    assert np.array_equal(answer.outputs["y"], rows(4, 8, 12))
    assert answer.at == pytest.approx(0.030, abs=1e-6)
    assert answer.response is not None
    assert answer.response.timing.compute_s == pytest.approx(0.030, abs=1e-6)
    assert answer.response.timing.queue_s == pytest.approx(0.0, abs=1e-6)
    await floor.rest()


async def test_requests_of_a_pipeline_share_batches_at_every_stage() -> None:
    floor = Floor()
    pipeline = chain(floor)
    answers = [pipeline.send({"x": rows(value)}) for value in range(40)]
    for value, answer in enumerate(answers):
        assert np.array_equal((await answer.wait()).outputs["y"], rows(4 * value))
    assert [[len(batch) for batch in stage.fakes[0].batches] for stage in floor.stages.values()] == [[32, 8]] * 2
    await floor.rest()


async def test_waiting_is_not_computing() -> None:
    floor = Floor()
    pipeline = chain(floor, knobs=replace(KNOBS, max_batch=1))
    answers = [pipeline.send({"x": rows(1)}) for _ in range(3)]
    for answer in answers:
        await answer.wait()
    assert answers[-1].response is not None
    assert answers[-1].response.timing.compute_s == pytest.approx(0.030, abs=1e-6)
    counts = pipeline.fleet.counts["a"]
    assert (counts.requests, counts.computed_s, counts.waited_s) == (3, pytest.approx(0.030), pytest.approx(0.030))


async def test_steps_that_need_nothing_of_each_other_run_side_by_side() -> None:
    floor = Floor()
    floor.model("m", service_s=0.010)
    floor.model("n", service_s=0.030)
    floor.model("sum", total, signature=TWO, service_s=0.001)
    steps = {"a": step("m", x="x"), "b": step("n", x="x"), "c": step("sum", a="a.y", b="b.y")}
    answer = await floor.pipeline(steps, {"y": "c.y"}).send({"x": rows(1)}).wait()
    assert np.array_equal(answer.outputs["y"], rows(4))
    assert answer.at == pytest.approx(0.031, abs=1e-6)
    assert answer.response is not None
    assert answer.response.timing.compute_s == pytest.approx(0.031, abs=1e-6), "the longer way counts"


async def test_beyond_its_capacity_requests_wait_in_its_own_lane() -> None:
    floor = Floor()
    pipeline = chain(floor)
    answers = [pipeline.send({"x": rows(1)}) for _ in range(CAPACITY + 10)]
    await turns()
    assert len(pipeline.fleet.runs) == CAPACITY
    assert pipeline.lane.view().queued_requests == 10
    for answer in answers:
        await answer.wait()
    await floor.rest()


# Items


@pytest.mark.parametrize("count", [0, 1, WINDOW, 10_000])
async def test_as_many_items_as_there_are_go_through_a_window(count: int) -> None:
    floor = Floor(work_s=0.0)
    model = floor.model("m", service_s=0.001)
    steps = {"many": step(":repeat", x="x"), "each": step("m", each=True, x="many.items")}
    pipeline = floor.pipeline(steps, {"y": "each.y"})
    outputs = await pipeline.ask({"x": rows(count)})
    assert outputs["y"].shape == (count, 2) if count else (0, 0)
    assert np.array_equal(outputs["y"][:, 0] if count else [], 2 * np.arange(count))
    assert sum(model.runtime.rows) == count
    assert max(model.runtime.rows, default=0) <= WINDOW
    assert pipeline.fleet.counts["each"].requests == 1
    await floor.rest()


async def test_too_many_items_are_refused() -> None:
    floor = Floor()
    floor.model("m")
    steps = {"many": step(":repeat", x="x"), "each": step("m", each=True, x="many.items")}
    answer = await floor.pipeline(steps, {"y": "each.y"}).send({"x": rows(MOST_ITEMS + 1)}).wait()
    assert answer.kind is FailureKind.MODEL_FAILED
    assert answer.why == "stage 'each' (model 'm'): each: 65537 items; at most 65536 are accepted"
    await floor.rest()


async def test_neighbours_of_one_shape_share_a_request() -> None:
    floor = Floor()
    model = floor.model("m")
    steps = {
        "many": step(":ragged", x="x"),
        "each": step("m", each=True, x="many.items"),
        "all": step(":lengths", items="each.y"),
    }
    outputs = await floor.pipeline(steps, {"n": "all.n"}).ask({"x": rows(1)})
    assert outputs["n"].tolist() == [1, 2, 2, 3, 3, 3]
    assert [len(batch) for batch in model.fakes[0].batches] == [1, 1, 1]
    assert model.runtime.rows == [1, 2, 3]
    await floor.rest()


async def test_what_all_items_share_is_repeated_for_them() -> None:
    floor = Floor()
    floor.model("sum", total, signature=TWO)
    steps = {"many": step(":repeat", x="x"), "each": step("sum", each=True, a="many.items", b="z")}
    pipeline = floor.pipeline(steps, {"y": "each.y"}, inputs={"x": "FP32[-1,-1]", "z": "FP32[-1,-1]"})
    outputs = await pipeline.ask({"x": rows(3), "z": rows(10)})
    assert outputs["y"][:, 0].tolist() == [10, 11, 12]


async def test_an_item_that_fails_is_named_and_the_others_are_cancelled() -> None:
    floor = Floor(work_s=0.0)
    model = floor.model("m", double_unless_poisoned, knobs=replace(KNOBS, retry_budget=0.0, max_batch=1))
    steps = {"many": step(":repeat", x="x"), "each": step("m", each=True, x="many.items")}
    pipeline = floor.pipeline(steps, {"y": "each.y"})
    answer = await pipeline.send({"x": rows(POISON + 100)}).wait()
    assert answer.why == f"stage 'each' (model 'm'), item {POISON:.0f}: bad index"
    await floor.rest()
    assert len(model.runtime.rows) <= POISON + WINDOW + 1
    assert pipeline.fleet.counts["each"].failures == 1


async def test_items_that_do_not_fit_together_are_a_failure_that_names_the_step() -> None:
    floor = Floor()
    floor.model("m")
    steps = {"many": step(":ragged", x="x"), "each": step("m", each=True, x="many.items")}
    answer = await floor.pipeline(steps, {"y": "each.y"}).send({"x": rows(1)}).wait()
    assert answer.why == (
        "output 'y' of stage 'each' (model 'm') cannot be put together, as its items have the shapes [1], [2], [3]"
    )


async def test_code_runs_for_each_item_on_several_threads() -> None:
    floor = Floor(threads=4, work_s=0.010)
    steps = {"many": step(":repeat", x="x"), "each": step(":plus_one", each=True, x="many.items")}
    answer = await floor.pipeline(steps, {"y": "each.y"}).send({"x": rows(100)}).wait()
    assert answer.outputs["y"][:, 0].tolist() == list(range(1, 101))
    assert answer.at == pytest.approx(0.020, abs=1e-6), "jobs of 25 items, side by side"
    await floor.rest()


@pytest.mark.parametrize(
    ("second", "third", "seconds"),
    [
        (step(":plus_one", x="a.y"), step(":plus_one", x="b.y"), 0.001),
        (step(":plus_one", x="a.y", each=True), step(":gather", items="b.y"), 0.003),
        (step("m", x="a.y"), step(":plus_one", x="b.y"), 0.012),
    ],
)
async def test_code_that_needs_nothing_else_runs_behind_the_code_before_it(
    second: dict[str, Any], third: dict[str, Any], seconds: float
) -> None:
    floor = Floor()
    floor.model("m")
    pipeline = floor.pipeline({"a": step(":plus_one", x="x"), "b": second, "c": third}, {"y": "c.y"})
    answer = await pipeline.send({"x": rows(1)}, timeout_s=1.0).wait()
    assert answer.at == pytest.approx(seconds, abs=1e-4)
    counts = pipeline.fleet.counts.values()
    assert [each.requests for each in counts] == [1, 1, 1]
    assert all(each.computed_s > 0.0 for each in counts)
    await floor.rest()


async def test_what_fails_behind_other_code_is_named_and_what_gives_nothing_ends_there() -> None:
    floor = Floor()
    for call, why in ((":fail", "stage 'b' (tests.serve.pipelines.code:fail): "), (":nothing", "plus_one) was skipped")):
        steps = {"a": step(":plus_one", x="x"), "b": step(call, x="a.y"), "c": step(":plus_one", x="b.y")}
        pipeline = floor.pipeline(steps, {"y": "c.y"}, name=call[1:])
        assert why in (await pipeline.send({"x": rows(1)}).wait()).why
        assert pipeline.fleet.counts["c"].requests == 0
    await floor.rest()


# Conditions


async def test_a_skipped_output_is_a_failure_that_names_the_step() -> None:
    floor = Floor()
    floor.model("m")
    steps = {"large": step(":is_large", x="x"), "a": step("m", when="large.yes", x="x")}
    pipeline = floor.pipeline(steps, {"y": "a.y"})
    assert (await pipeline.ask({"x": rows(5)}))["y"].tolist() == rows(10).tolist()
    answer = await pipeline.send({"x": rows(1)}).wait()
    assert (answer.kind, answer.why) == (
        FailureKind.MODEL_FAILED,
        "there is no output 'y': stage 'a' (model 'm') was skipped",
    )
    assert pipeline.fleet.counts["a"].skipped == 1


async def test_a_switch_takes_the_branch_that_there_is() -> None:
    floor = Floor()
    floor.model("m")
    steps = {
        "large": step(":is_large", x="x"),
        "a": step("m", when="large.yes", x="x"),
        "b": step(":plus_one", when="not large.yes", x="x"),
    }
    pipeline = floor.pipeline(steps, {"y": "a.y | b.y"})
    assert [(await pipeline.ask({"x": rows(value)}))["y"][0, 0] for value in (1, 5)] == [2, 10]
    assert floor.stages["m"].runtime.rows == [1]


async def test_each_item_takes_its_own_branch_and_what_took_none_is_missing() -> None:
    floor = Floor()
    model = floor.model("m")
    steps = {
        "many": step(":repeat", x="x"),
        "large": step(":are_large", items="many.items"),
        "a": step("m", each=True, when="large.yes", x="many.items"),
        "b": step(":plus_one", each=True, when="not large.yes", x="many.items"),
        "all": step(":gather", items="a.y | b.y"),
        "some": step(":gather", items="a.y"),
    }
    pipeline = floor.pipeline(steps, {"all": "all.y", "some": "some.y", "y": "a.y"})
    outputs = await pipeline.ask({"x": rows(7)}, outputs=(0, 1))
    assert outputs["all"][:, 0].tolist() == [1, 2, 3, 4, 5, 10, 12]
    assert outputs["some"][:, 0].tolist() == [0, 0, 0, 0, 0, 10, 12]
    assert model.runtime.rows == [2]
    answer = await pipeline.send({"x": rows(7)}, outputs=(2,)).wait()
    assert answer.why == "output 'y' of stage 'a' (model 'm') has no item 0 of 7: a step was skipped for it"


async def test_a_condition_of_several_truths_is_for_items() -> None:
    floor = Floor()
    floor.model("m")
    steps = {
        "many": step(":repeat", x="x"),
        "large": step(":are_large", items="many.items"),
        "a": step("m", when="large.yes", x="x"),
    }
    answer = await floor.pipeline(steps, {"y": "a.y"}).send({"x": rows(3)}).wait()
    assert answer.why == "stage 'a' (model 'm'): when: 3 truths, where one is wanted, or each = true"


# Failures


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (":fail", FailureKind.MODEL_FAILED, r"ValueError: bad index \(code.py, line \d+\)"),
        (":refuse", FailureKind.INVALID_ARGUMENT, "no picture"),
        (":same", FailureKind.MODEL_FAILED, "output 'y' is float32, which is not a kind of INT64; .*"),
    ],
)
async def test_code_that_fails_is_named(call: str, kind: FailureKind, text: str, caplog: pytest.LogCaptureFixture) -> None:
    floor = Floor()
    pipeline = floor.pipeline({"a": {**step(call, x="x"), "outputs": {"y": "INT64[-1,-1]"}}}, {"y": "a.y"})
    answer = await pipeline.send({"x": rows(1)}).wait()
    assert answer.kind is kind
    assert re.fullmatch(rf"stage 'a' \({HERE}{call}\): {text}", answer.why), answer.why
    await floor.rest()
    assert ("a batch failed" in caplog.text, "Traceback" in caplog.text) == (call != ":refuse", call == ":fail")


async def test_a_value_error_of_a_step_of_ours_is_the_clients_if_that_sent_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "STEPS", {"picture": f"{HERE}:fail"})
    floor = Floor()
    first = {"call": "picture", "inputs": {"x": "x"}, "outputs": {"y": "FP32[-1,-1]"}}
    answer = await floor.pipeline({"a": first}, {"y": "a.y"}).send({"x": rows(1)}).wait()
    assert (answer.kind, answer.why) == (FailureKind.INVALID_ARGUMENT, "stage 'a' (picture): bad index")
    steps = {"b": step(":plus_one", x="x"), "a": {**first, "inputs": {"x": "b.y"}}}
    answer = await floor.pipeline(steps, {"y": "a.y"}, name="q").send({"x": rows(1)}).wait()
    assert (answer.kind, answer.why) == (FailureKind.MODEL_FAILED, "stage 'a' (picture): bad index")


async def test_a_stage_that_fails_is_named_and_its_model_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    floor = Floor()
    pipeline = chain(floor, function=double_unless_poisoned, knobs=replace(KNOBS, retry_budget=0.0))
    bad, good = pipeline.send({"x": rows(POISON)}), pipeline.send({"x": rows(1)})
    assert (await bad.wait()).kind is FailureKind.MODEL_FAILED
    assert bad.why.startswith("stage 'a' (model 'm'): ")
    await good.wait()
    await floor.rest()
    assert caplog.text.count("a batch failed") == 1
    assert pipeline.stats.failures[FailureKind.MODEL_FAILED] >= 1


async def test_a_stage_that_has_no_room_refuses_with_its_own_kind_and_hint() -> None:
    floor = Floor()
    pipeline = chain(floor, knobs=replace(KNOBS, max_queue_rows=1, max_batch=1))
    answers = [pipeline.send({"x": rows(value)}) for value in range(4)]
    for answer in answers:
        await answer.wait()
    assert [answer.kind for answer in answers] == [None, *[FailureKind.QUEUE_FULL] * 3]
    assert answers[2].why.startswith("stage 'a' (model 'm'): Exceeds maximum queue size")
    assert answers[2].failure is not None
    assert answers[2].failure.retry_after_s is not None
    await floor.rest()


async def test_a_stage_that_dies_in_mid_chain_fails_what_it_had() -> None:
    floor = Floor()
    pipeline = chain(floor)
    answer = pipeline.send({"x": rows(1)})
    await turns(6)
    floor.stages["m"].driver.lose_instance("m-0", "it died")
    assert (await answer.wait()).kind is FailureKind.UNAVAILABLE
    assert answer.why.startswith("stage 'a' (model 'm'): the model has no live instance: m-0 was lost (it died)")
    again = await pipeline.send({"x": rows(1)}).wait()
    assert again.kind is FailureKind.UNAVAILABLE, "its model is served, but no instance is up"


async def test_what_a_step_was_given_by_another_is_not_the_clients_fault() -> None:
    floor = Floor()
    floor.model("m", signature=replace(SIGNATURE, inputs=(TensorSpec("x", DType.FP32, (-1, 3)),)))
    pipeline = floor.pipeline({"a": step("m", x="x")}, {"y": "a.y"})
    answer = await pipeline.send({"x": rows(1)}).wait()
    assert answer.kind is FailureKind.INVALID_ARGUMENT
    assert "stage 'a' (model 'm'): unexpected shape for input 'x'" in answer.why
    inner = floor.pipeline({"b": step(":plus_one", x="x"), "a": step("m", x="b.y")}, {"y": "a.y"}, name="q")
    assert (await inner.send({"x": rows(1)}).wait()).kind is FailureKind.MODEL_FAILED
    await floor.rest()


async def test_values_that_nothing_can_be_made_of_fail_the_step_that_gets_them() -> None:
    floor = Floor()
    floor.model("m")
    steps = {"odd": step(":odd", x="x"), "a": step("m", x="odd.odd"), "b": step("m", when="odd.odd", x="x")}
    pipeline = floor.pipeline(steps, {"y": "a.y | b.y"})
    assert (await pipeline.send({"x": rows(1)}).wait()).kind is FailureKind.MODEL_FAILED
    steps = {"odd": step(":odd", x="x"), "a": step("m", each=True, x="odd.items")}
    answer = await floor.pipeline(steps, {"y": "a.y"}, name="q").send({"x": rows(1)}).wait()
    assert answer.why.startswith("stage 'a' (model 'm'), item 0: ")
    await floor.rest()


# Terms


class Watched:
    """A Service that keeps what it hands on."""

    def __init__(self, inner: Service, seen: list[Request]) -> None:
        self._inner = inner
        self._seen = seen
        self.cancel = inner.cancel

    def submit(self, request: Request, reply: ReplyTo) -> None:
        self._seen.append(request)
        self._inner.submit(request, reply)


async def test_priority_tenant_and_deadline_reach_every_stage() -> None:
    floor = Floor()
    pipeline = chain(floor)
    seen: list[Request] = []
    stage = floor.stages["n"]
    stage.served.service = Watched(stage.driver, seen)
    floor.catalog.add(stage.served)
    answer = pipeline.send({"x": rows(1)}, timeout_s=5.0, promised=True, priority=2, tenant="t", affinity="a")
    await answer.wait()
    ticket, own = seen[0].ticket, answer.request.ticket
    assert (ticket.priority, ticket.tenant, ticket.affinity) == (2, "t", "a")
    assert (ticket.answer_by, seen[0].charged) == (own.answer_by, True)
    assert ticket.deadline_at <= own.deadline_at
    assert ticket.id != own.id


async def test_urgent_requests_overtake_at_a_stage() -> None:
    floor = Floor()
    pipeline = chain(floor, knobs=replace(KNOBS, max_batch=1, discipline="priority"))
    slow = [pipeline.send({"x": rows(1)}, priority=5) for _ in range(5)]
    await turns(8)
    urgent = await pipeline.send({"x": rows(1)}, priority=1).wait()
    for answer in slow:
        await answer.wait()
    assert urgent.at < slow[2].at


@pytest.mark.parametrize("at", [0.0, 0.001, 0.0105, 0.015, 0.029])
async def test_a_client_may_leave_at_any_point(at: float) -> None:
    floor = Floor()
    pipeline = chain(floor)
    answer, other = pipeline.send({"x": rows(1)}), pipeline.send({"x": rows(2)})
    if at:
        await pass_time(at)
    pipeline.service.cancel(answer.request)
    assert answer.kind is FailureKind.CANCELLED
    await turns()
    assert len(pipeline.fleet.runs) <= 1
    assert np.array_equal((await other.wait()).outputs["y"], rows(8))
    await floor.rest()
    assert pipeline.stats.failures[FailureKind.CANCELLED] == 1


async def test_whoever_leaves_takes_what_waits_at_the_stages_along() -> None:
    floor = Floor(work_s=0.0)
    model = floor.model("m", knobs=replace(KNOBS, max_batch=1))
    steps = {"many": step(":ragged", x="x"), "each": step("m", each=True, x="many.items")}
    pipeline = floor.pipeline(steps, {"y": "each.y"})
    answer = pipeline.send({"x": rows(1)})
    await pass_time(0.005)
    assert model.driver.open_requests > 1
    pipeline.service.cancel(answer.request)
    await turns()
    assert model.driver.open_requests == 0
    await floor.rest()
    assert len(model.fakes[0].batches) == 1


@pytest.mark.parametrize("timeout_s", [0.0005, 0.005, 0.0101, 0.020, 0.0299])
@pytest.mark.parametrize("promised", [False, True])
async def test_a_deadline_may_pass_at_any_point(timeout_s: float, promised: bool) -> None:
    floor = Floor()
    pipeline = chain(floor)
    answer = await pipeline.send({"x": rows(1)}, timeout_s=timeout_s, promised=promised).wait()
    late = {FailureKind.LATE, FailureKind.DEADLINE}
    if promised:
        assert answer.kind in late
        assert answer.at <= timeout_s + 0.0011
    else:
        assert answer.kind in {*late, None}
    await floor.rest()


async def test_code_that_no_thread_has_time_for_is_not_run() -> None:
    floor = Floor(threads=1, work_s=0.010)
    pipeline = floor.pipeline({"a": step(":plus_one", x="x")}, {"y": "a.y"})
    first = pipeline.send({"x": rows(1)})
    await turns()
    second = pipeline.send({"x": rows(1)}, timeout_s=0.005)
    third = pipeline.send({"x": rows(1)}, timeout_s=0.100)
    for answer in (first, second, third):
        await answer.wait()
    assert (first.kind, second.kind, third.kind) == (None, FailureKind.DEADLINE, None)
    assert "no thread was free" in second.why
    await floor.rest()


# Enough of them


def members(need: int) -> dict[str, Any]:
    steps = {name: step(name, x="x") for name in ("m", "n", "o")}
    return {**steps, "mean": step(":mean", need=need, m="m.y", n="n.y", o="o.y")}


async def test_without_a_deadline_all_are_waited_for() -> None:
    floor = Floor(work_s=0.0)
    for name, service_s in (("m", 0.010), ("n", 0.020), ("o", 0.500)):
        floor.model(name, service_s=service_s)
    answer = await floor.pipeline(members(2), {"y": "mean.y"}).send({"x": rows(1)}).wait()
    assert answer.at == pytest.approx(0.5, abs=1e-3)


async def test_so_many_as_are_needed_are_enough_when_time_runs_out() -> None:
    floor = Floor(work_s=0.0)
    floor.model("m", service_s=0.010)
    floor.model("n", service_s=0.020)
    floor.model("o", times(100), service_s=0.500, known=False)
    pipeline = floor.pipeline(members(2), {"y": "mean.y"})
    answer = await pipeline.send({"x": rows(1)}, timeout_s=0.100).wait()
    assert np.array_equal(answer.outputs["y"], rows(2)), "the mean of two"
    assert answer.at <= 0.100
    await floor.rest()


async def test_members_that_fail_are_done_without_as_long_as_enough_are_left() -> None:
    floor = Floor(work_s=0.0)
    for name in "mno":
        floor.model(name, function=double_unless_poisoned if name != "o" else double, knobs=replace(KNOBS, retry_budget=0.0))
    one, two = floor.pipeline(members(1), {"y": "mean.y"}), floor.pipeline(members(2), {"y": "mean.y"}, name="q")
    assert np.array_equal((await one.ask({"x": rows(POISON)}))["y"], rows(2 * POISON))
    answer = await two.send({"x": rows(POISON)}).wait()
    assert answer.why == "stage 'm' (model 'm'): bad index"
    await floor.rest()


# Parts


def counting(inputs: Any) -> Any:
    for number in range(3):
        yield [np.asarray(inputs[0] + number, np.float32)]


async def test_a_last_step_that_answers_in_parts_is_passed_on() -> None:
    floor = Floor()
    floor.model("m")
    last = floor.model("s", counting, signature=replace(SIGNATURE, streams=True), service_s=None, instances=0)
    last.driver.add_instance(ThreadInstance("s-0", last.runtime))
    steps = {"a": step("m", x="x"), "b": step("s", x="a.y")}
    pipeline = floor.pipeline(steps, {"y": "b.y"})
    assert pipeline.fleet.signature.streams
    for read in (3, 1):
        answer = await pipeline.send({"x": rows(1)}).wait()
        assert answer.response is not None
        assert answer.response.rest is not None
        parts = [answer.outputs["y"][0, 0]]
        for _ in range(read - 1):
            part = await next_part(answer.response.rest)
            assert part is not None
            parts.append(to_values(part[0], text=False)[0, 0])
        assert parts == [2, 3, 4][:read]
        if read == 3:
            assert await next_part(answer.response.rest) is None
        else:
            pipeline.service.cancel(answer.request)
    await floor.rest()
    await last.driver.stop(1.0)


async def test_nothing_of_a_run_waits_for_the_garbage_collection() -> None:
    """Requests may hold megabytes, and the server collects rarely."""
    floor = Floor()
    floor.model("m")
    steps = {
        "code": step(":plus_one", x="x"),
        "items": step(":split", x="code.y"),
        "some": step(":plus_one", x="items.items", each=True),
        "asked": step("m", x="some.y", each=True),
        "all": step(":gather", items="asked.y"),
    }
    pipeline = floor.pipeline(steps, {"y": "all.y"})
    gc.collect()
    gc.disable()
    try:
        for late_s in (1.0, 0.0005, 0.0015, 0.0035):  # the last three are given up within one step or another
            asked = pipeline.send({"x": rows(1, 2, 3)})
            await pass_time(late_s)
            pipeline.service.cancel(asked.request)
        await floor.rest()
        del asked
        assert not [one for one in gc.get_objects() if isinstance(one, Run)]
    finally:
        gc.enable()
