"""A request of many rows cut into parts that are at several steps at a time: its answer, its time, its failures."""

import numpy as np
import pytest
from msgspec.structs import replace

from dlproxy.serve.pipelines.micro_batches import MicroBatchLayer
from tests.serve.pipelines.rig import Floor, Pipeline, rows, step
from tests.serve.rig import KNOBS, POISON, double_unless_poisoned

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)

CHAIN = {"a": step("m", x="x"), "b": step("n", x="a.y")}
PARTS = replace(KNOBS, part_rows=4)


def chain(floor: Floor) -> Pipeline:
    """Two stages that take four rows at a time, ten milliseconds each."""
    floor.model("m", double_unless_poisoned, knobs=replace(KNOBS, max_batch=4))
    floor.model("n", knobs=replace(KNOBS, max_batch=4))
    return floor.pipeline(CHAIN, {"y": "b.y"}, knobs=PARTS)


@pytest.mark.parametrize(("count", "parts"), [(4, 1), (5, 2), (16, 4)])
async def test_parts_overlap_and_the_answer_is_whole(count: int, parts: int) -> None:
    floor = Floor()
    answer = await chain(floor).send({"x": rows(*range(count))}).wait()
    assert np.array_equal(answer.outputs["y"], rows(*range(0, 4 * count, 4)))
    assert answer.at == pytest.approx(0.010 * (parts + 1), abs=1e-6)
    await floor.rest()


async def test_how_large_parts_are_can_be_changed_while_it_serves() -> None:
    floor = Floor()
    pipeline = chain(floor)
    assert isinstance(pipeline.service, MicroBatchLayer)
    pipeline.service.configure(replace(PARTS, part_rows=0))
    answer = pipeline.send({"x": rows(*range(4))})
    assert not pipeline.service.under_way
    await answer.wait()
    pipeline.service.configure(replace(PARTS, part_rows=1))
    answer = pipeline.send({"x": rows(*range(4))})
    assert len(pipeline.service.under_way) == 1
    assert np.array_equal((await answer.wait()).outputs["y"], rows(0, 4, 8, 12))
    await floor.rest()


async def test_the_first_part_that_fails_fails_the_request_and_ends_the_others() -> None:
    floor = Floor()
    pipeline = chain(floor)
    answer = await pipeline.send({"x": rows(1, 2, 3, 4, 5, POISON, 7, 8, *range(9, 41))}).wait()
    assert "stage 'a' (model 'm')" in answer.why
    await floor.rest()
    assert sum(len(batch) for batch in floor.stages["m"].fakes[0].batches) < 10, "parts that nobody waits for ran"


async def test_a_client_that_leaves_ends_all_parts() -> None:
    floor = Floor()
    pipeline = chain(floor)
    answer = pipeline.send({"x": rows(*range(40))})
    pipeline.service.cancel(answer.request)
    await answer.wait()
    assert answer.failure is not None
    await floor.rest()


async def test_what_cannot_be_told_to_have_rows_of_its_own_stays_whole() -> None:
    floor = Floor()
    floor.model("m")
    pipeline = floor.pipeline({"a": step("m", x="x"), "b": step(":plus_one", x="a.y")}, {"y": "b.y"}, knobs=PARTS)
    assert isinstance(pipeline.service, MicroBatchLayer)
    pipeline.send({"x": rows(*range(16))})
    assert not pipeline.service.under_way
    await floor.rest()
