"""A step that tells which of some cases holds, for the `when` of those that follow.

Named in the table of steps. Not aware of: what follows.
"""

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.config.traits import knob
from dlproxy.config.values import ConfigError
from dlproxy.steps.options import checked
from dlproxy.steps.values import array_of, shape

TESTS: Mapping[str, Callable[[Any, Any], bool]] = MappingProxyType(
    {
        "==": operator.eq,
        "!=": operator.ne,
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
    }
)


class Case(Struct, frozen=True, forbid_unknown_fields=True):
    """`at`: the place of one element of the input, which is compared with the value; one that is not there equals nothing."""

    input: str
    value: bool | float | str
    at: tuple[int, ...] = ()
    test: Literal["==", "!=", "<", "<=", ">", ">="] = "=="


class Choose:
    """Which case is the first that holds: a truth for each, of which one at most is true."""

    class Options(Struct, frozen=True):
        cases: Annotated[
            dict[str, Case],
            knob('by the name of the output that tells it: {dog = {input = "label", at = [0], test = "==", value = "dog"}}'),
        ]

    outputs: Mapping[str, str] = {}

    def __init__(self, **options: Any) -> None:
        self._cases = checked(self.Options, options).cases
        if not self._cases:
            raise ConfigError('options.cases: give one, such as {dog = {input = "label", value = "dog"}}', "steps")
        self.outputs = dict.fromkeys(self._cases, "BOOL[1]")

    def __call__(self, /, **inputs: Any) -> dict[str, NDArray[Any]]:
        """inputs: numbers, truths or texts, those that the cases name."""
        for case in self._cases.values():
            if case.input not in inputs:
                raise ValueError(f"there is no input '{case.input}', which a case is about; there are: {', '.join(inputs)}")
        chosen = next((name for name, case in self._cases.items() if _holds(case, inputs[case.input])), "")
        return {name: np.array([name == chosen]) for name in self._cases}


def _holds(case: Case, value: Any) -> bool:
    array = array_of(case.input, value)
    try:
        found = array[case.at]
    except IndexError:
        return False
    if np.size(found) != 1:
        where = "".join(f"[{index}]" for index in case.at)
        raise ValueError(f"{case.input}{where} is {shape(found)}, and a case is about one element")
    element = np.asarray(found).reshape(-1)[0]
    if isinstance(element, bytes):
        element = element.decode("utf-8", "replace")
    if isinstance(element, str) != isinstance(case.value, str):
        return False
    return bool(TESTS[case.test](element, case.value))
