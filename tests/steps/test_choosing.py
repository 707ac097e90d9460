"""Which case holds: the first, if one does."""

from typing import Any

import numpy as np
import pytest

from dlproxy.config import ConfigError
from tests.steps.running import made, run, texts


@pytest.mark.parametrize(
    ("case", "holds"),
    [
        ({"value": "dog"}, True),
        ({"value": "cat"}, False),
        ({"value": "cat", "test": "!="}, True),
        ({"value": "cow", "test": ">"}, True),
        ({"value": 1}, False),
        ({"at": [1], "value": "dog"}, False),
        ({"at": [7], "value": "dog"}, False),
        ({"at": [7], "value": "dog", "test": "!="}, False),
        ({"input": "scores", "at": [0, 1], "value": 0.5, "test": ">="}, True),
        ({"input": "scores", "at": [0, 1], "value": 0.5, "test": "<"}, False),
        ({"input": "scores", "at": [0, 1], "value": "0.5"}, False),
        ({"input": "sure", "value": True}, True),
        ({"input": "sure", "value": False}, False),
    ],
)
def test_one_element_is_compared(case: dict[str, Any], holds: bool) -> None:
    case = {"input": "label", "at": [0] if case.get("input", "label") == "label" else [], **case}
    given = {"label": texts("dog", "bird"), "scores": np.array([[0.25, 0.5]], np.float32), "sure": np.array([True])}
    assert run(made("choose", cases={"it": case}), **given)["it"].tolist() == [holds]


def test_only_the_first_case_that_holds_is_chosen() -> None:
    cases = {name: {"input": "n", "test": "<", "value": value} for name, value in (("a", 1), ("b", 5), ("c", 9))}
    for number, chosen in ((0, "a"), (4, "b"), (8, "c"), (10, "")):
        found = run(made("choose", cases=cases), n=np.array(number))
        assert [name for name, truth in found.items() if truth] == [chosen] * bool(chosen)


def test_what_cannot_be_compared() -> None:
    step = made("choose", cases={"it": {"input": "x", "at": [0], "value": 1}})
    with pytest.raises(ValueError, match=r"x\[0\] is .*3.*, and a case is about one element"):
        step(x=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="there is no input 'x', which a case is about; there are: y"):
        step(y=np.zeros(1))
    for options, message in (({"cases": {}}, "give one"), ({"cases": {"a": {"input": "x", "is": 1}}}, "options")):
        with pytest.raises(ConfigError, match=message):
            made("choose", **options)
