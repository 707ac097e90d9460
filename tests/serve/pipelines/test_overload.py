"""More requests than the threads that code runs on can do: most of what they can is in time, and the urgent ones are."""

import pytest

from dlproxy.message import FailureKind
from dlproxy.serve.pipelines import code
from tests.serve.pipelines.rig import Floor, rows, step
from tests.serve.rig import pass_time

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)

WORK_S, TIMEOUT_S, SECONDS = 0.004, 0.05, 3.0
URGENT_EVERY = 16


@pytest.mark.parametrize("overload", [0.9, 2.0, 5.0])
async def test_threads_do_what_they_can_in_time_whatever_comes(overload: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "CHEAP_S", 0.0)  # virtual work takes no time: it would all run on the loop
    floor = Floor(threads=2, work_s=WORK_S)
    steps = {"a": step(":plus_one", x="x"), "b": step(":same", x="a.y", each=True), "c": step(":gather", items="b.y")}
    pipeline = floor.pipeline(steps, {"y": "c.y"})
    possible = floor.threads.most / (len(steps) * WORK_S)  # requests per second
    answers = []
    for number in range(int(overload * possible * SECONDS)):
        priority = 0 if number % URGENT_EVERY else 1
        answers.append(pipeline.send({"x": rows(1)}, timeout_s=TIMEOUT_S, priority=priority))
        await pass_time(1.0 / (overload * possible))
    for answer in answers:
        await answer.wait()
    assert {answer.kind for answer in answers} <= {None, FailureKind.DEADLINE}
    in_time = [answer.failure is None for answer in answers]
    assert sum(in_time) >= 0.7 * min(overload, 1.0) * possible * SECONDS
    assert sum(in_time[::URGENT_EVERY]) >= 0.95 * len(in_time[::URGENT_EVERY])
    await floor.rest()
