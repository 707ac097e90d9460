"""Which groups stay in floats: errors that add up, so that what is right can be said beforehand."""

from collections.abc import Sequence

import pytest

from dlproxy.compress.recipes.sensitivity import ENOUGH, MOST_GROUPS, groups_of, leave_out


def left_of(errors: Sequence[float]) -> list[str]:
    """Each of one operator, whose error is there while it is quantised."""
    costs = {f"n{number}": error for number, error in enumerate(errors)}

    def alone(group: Sequence[str]) -> float:
        return sum(costs[name] for name in group)

    def without(names: Sequence[str]) -> float:
        return sum(error for name, error in costs.items() if name not in names)

    found = leave_out(groups_of(list(costs)), alone=alone, without=without)
    assert found.error == pytest.approx(without(found.names))
    assert found.at_first == pytest.approx(sum(errors))
    return found.names


@pytest.mark.parametrize(
    ("errors", "left"),
    [
        ([0.001, 0.5, 0.001], ["n1"]),  # the one that costs
        ([0.2, 0.004, 0.3, 0.004], ["n2", "n0"]),  # the worst first
        ([0.04] * 10, []),  # all alike: each takes too little away
        ([ENOUGH / 4] * 3, []),  # near enough as it is
        ([0.3], []),  # nothing would be left of it
        ([], []),
        ([0.9, 0.05], ["n0"]),  # never all of them
        ([0.4, 0.3], []),  # of two alike, half would be floats
    ],
)
def test_leaves_out_what_costs(errors: list[float], left: list[str]) -> None:
    assert left_of(errors) == left


@pytest.mark.parametrize("count", [1, MOST_GROUPS, MOST_GROUPS + 1, 100])
def test_groups_are_few_and_hold_everything_in_order(count: int) -> None:
    names = [str(number) for number in range(count)]
    groups = groups_of(names)
    assert [name for group in groups for name in group] == names
    assert len(groups) <= MOST_GROUPS


def test_gives_up_after_two_that_do_not_help() -> None:
    """They seemed bad alone, and are not."""
    asked: list[list[str]] = []

    def without(names: Sequence[str]) -> float:
        asked.append(list(names))
        return 0.5

    found = leave_out(groups_of([str(number) for number in range(9)]), alone=lambda group: 1.0, without=without)
    assert found.names == []
    assert len(asked) == 3
