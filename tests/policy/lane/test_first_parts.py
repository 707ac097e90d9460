"""Batches that answer in parts: the first part is the answer, the instance stays busy, nothing that was answered runs again."""

from dlproxy.policy.events import BatchDone, FirstPart, InstanceLost

from .fixtures import Script, knobs, remembered


def test_the_first_part_answers_and_the_end_frees_the_instance() -> None:
    lane = Script()
    assert lane.arrive(1, 2) == ["run #1 on a: 1 2"]
    assert lane.tell(FirstPart(1, 0.012), 0.012) == ["done #1: 1 2"]
    assert lane.arrive(3, at=0.020) == []
    assert lane.tell(BatchDone(1, 5.0), 5.0) == ["run #2 on a: 3"]


def test_only_the_first_part_tells_how_long_batches_take() -> None:
    lane = Script()
    for number in range(1, 41):
        at = 10.0 * number
        lane.arrive(2 * number, 2 * number + 1, at=at)
        lane.tell(FirstPart(number, 0.012), at + 0.012)
        lane.tell(BatchDone(number, 5.0), at + 5.0)
    assert lane.lane.model.mean(2) < 0.020, "it learned from the time of whoever read"


def test_an_error_or_a_loss_after_the_first_part_runs_nothing_again() -> None:
    for event in (BatchDone(1, 1.0, "bad step"), InstanceLost("a", "killed", crashed=True)):
        lane = Script(lane_knobs=knobs(retry_budget=1.0))
        lane.arrive(1, 2)
        lane.tell(FirstPart(1, 0.012), 0.012)
        assert lane.tell(event, 1.0) == []
        assert remembered(lane.lane) == 0
        assert lane.lane.view().running_batches == 0
