"""Steps that are Python code: found, made and asked whether they take what the step gives them; and one call of them.

Made by fleet.py. Not aware of: threads, requests, other steps.
"""

import difflib
import inspect
import re
from collections import deque
from collections.abc import Callable, Collection, Mapping
from time import perf_counter
from typing import Any

import numpy as np
from msgspec import Struct

from dlproxy.config import ConfigError
from dlproxy.config.pipelines import StepConfig
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.classes import imported, located
from dlproxy.instance.runtime.declared import parse_spec
from dlproxy.message import TensorSpec
from dlproxy.serve.pipelines.values import MISSING, Value, as_argument, checked
from dlproxy.steps import STEPS

CONTEXT = "context"
CHEAP_S = 50e-6  # code that takes less runs on the loop: a hand-over to a thread costs as much
SEEN = 32  # runs by which that is told
TOO_LONG_S = 1e-3  # a run on the loop that takes so long is one too many
_TARGET = re.compile(r"(?P<place>.+):(?P<name>[A-Za-z_]\w*)")


class Context(Struct, frozen=True):
    """What code may know of the request beside its inputs. `headers`: those that the step names, in lower case, as far as the
    client sent them. `deadline_at`: by time.monotonic(), +inf for none. `cancelled`: whether nobody waits any more.
    """

    parameters: Mapping[str, Any]
    headers: Mapping[str, str]
    deadline_at: float
    cancelled: Callable[[], bool]


class OutputError(ValueError):
    """Code gave what it should not."""


class Pace:
    """How long code takes, as far as it decides where it runs."""

    def __init__(self) -> None:
        self._cheap: deque[bool] = deque(maxlen=SEEN)

    @property
    def inline(self) -> bool:
        """Whether it may run on the event loop: most of the last SEEN runs were cheap."""
        return len(self._cheap) == SEEN and sum(self._cheap) > SEEN // 2

    def took(self, seconds: float, *, inline: bool) -> None:
        if inline and seconds > TOO_LONG_S:
            self._cheap.clear()
        self._cheap.append(seconds < CHEAP_S)


class CodeStage:
    """`outputs`: what it declares to give; empty if it says nothing. `names`: of the outputs that are taken. `ours`: it comes
    with dlproxy.
    """

    def __init__(self, name: str, config: StepConfig, names: Collection[str], *, trusted: bool) -> None:
        """Raises ModelError. `trusted`: code of one's own may be run."""
        self.name = name
        self.config = config
        self.ours = config.call in STEPS
        self.pace = Pace()
        self.call, self._file = _made(name, config, trusted=trusted)
        self.outputs = _declared(name, config, self.call)
        self.names = tuple(names)
        parameters = _parameters(self.call)
        self.takes_context = CONTEXT in parameters and CONTEXT not in config.inputs
        self._takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        self._required = _required(parameters)
        self._check_inputs(parameters)
        self._only = self.names[0] if len(self.outputs or self.names) == 1 else ""

    def __str__(self) -> str:
        return self.config.call

    def run(self, values: Mapping[str, Value], context: Context | None) -> list[Value]:
        """The values of `names`. Raises what the code raises, and OutputError."""
        arguments = {key: as_argument(value) for key, value in values.items() if value is not MISSING or key in self._required}
        if context is not None:
            arguments[CONTEXT] = context
        given = self.call(**arguments)
        if isinstance(given, Mapping):
            lacking = [name for name in self.names if name not in given]
            if lacking:
                raise OutputError(f"it gave {', '.join(map(str, given)) or 'nothing'}, and {', '.join(lacking)} is wanted")
            return [self._value(name, given[name]) for name in self.names]
        if not self._only:
            raise OutputError(f"it gave a {type(given).__name__}, and is to give a dict of {', '.join(self.names)}")
        return [self._value(self._only, given)]

    def why(self, error: BaseException) -> str:
        """The error, with where in the code it was."""
        return located(error, self._file)

    def close(self) -> None:
        close = getattr(self.call, "close", None)
        if close is not None:
            close()

    def _value(self, name: str, value: Any) -> Value:
        if value is None:
            return MISSING
        if isinstance(value, list):
            return [None if item is None else self._array(name, item) for item in value]
        return self._array(name, value)

    def _array(self, name: str, value: Any) -> Value:
        spec = self.outputs.get(name)
        array = value if isinstance(value, np.ndarray) else _array_of(value)
        if spec is None:
            return array
        try:
            if array.ndim == len(spec.shape) - 1:  # an item without the axis of the rows
                spec = TensorSpec(spec.name, spec.dtype, spec.shape[1:], spec.text)
            return checked(array, spec)
        except ValueError as error:
            raise OutputError(f"output '{name}' {error}") from None

    def _check_inputs(self, parameters: Mapping[str, inspect.Parameter]) -> None:
        known = [key for key, one in parameters.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
        for key in self.config.inputs:
            if key not in known and not self._takes_any:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(known) or 'nothing'}"
                raise ModelError(f"stage '{self.name}' ({self}): it takes no '{key}'; {hint}")
        lacking = [key for key in self._required if key not in {*self.config.inputs, CONTEXT}]
        if lacking:
            raise ModelError(
                f"stage '{self.name}' ({self}): it takes {', '.join(lacking)}, and the step does not say from where"
            )


def timed(stage: CodeStage, values: Mapping[str, Value], context: Context | None) -> tuple[list[Value] | BaseException, float]:
    """One run: what it gave or raised, and the seconds that it took."""
    began_at = perf_counter()
    try:
        given: list[Value] | BaseException = stage.run(values, context)
    except (Exception, SystemExit) as error:
        given = error
    return given, perf_counter() - began_at


def _array_of(value: Any) -> np.ndarray[Any, Any]:
    """Of a number, a text, bytes, or a nested tuple of them."""
    if isinstance(value, str | bytes | bytearray | memoryview):
        array = np.empty((), object)
        array[()] = bytes(value) if isinstance(value, bytearray | memoryview) else value
        return array
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "SU" else array


def _made(name: str, config: StepConfig, *, trusted: bool) -> tuple[Callable[..., Any], str | None]:
    """What is called, and the file that it stands in. Raises ModelError."""
    begin = f"stage '{name}'"
    target = STEPS.get(config.call, config.call)
    match = _TARGET.fullmatch(target)
    if match is None:
        near = difflib.get_close_matches(config.call, STEPS, n=1)
        hint = f"did you mean {near[0]}?" if near else "write file.py:name, my_module:name, or the name of a step of dlproxy's"
        raise ModelError(f"{begin}: call = {config.call!r} names no code; {hint}")
    if config.call not in STEPS and not trusted:
        raise ModelError(
            f"{begin}: call = {config.call!r} is code that is not checked for signatures; where models must be signed, "
            "serve it as a model, or use the steps that come with dlproxy"
        )
    try:
        module = imported(match["place"])
    except ModelError as error:
        raise ModelError(f"{begin}: {error}") from None
    found = getattr(module, match["name"], None)
    if not callable(found):
        near = difflib.get_close_matches(match["name"], [key for key, one in vars(module).items() if callable(one)], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ModelError(f"{begin}: {match['place']} has no function or class {match['name']}{hint}")
    file = getattr(module, "__file__", None)
    if not inspect.isclass(found):
        if config.options:
            raise ModelError(f"{begin}: options are for classes, which are made with them; {config.call} is a function")
        return found, file
    try:
        made = found(**config.options)
    except ConfigError as error:
        raise ModelError(f"{begin} ({config.call}): {error}") from None
    except (Exception, SystemExit) as error:
        raise ModelError(f"{begin}: {config.call} could not be made: {located(error, file)}") from error
    if not callable(made):
        raise ModelError(f"{begin}: {config.call} has no method __call__")
    return made, file


def _parameters(call: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(call).parameters
    except ValueError:  # code in C may not say; calling it will
        anything = inspect.Parameter("inputs", inspect.Parameter.VAR_KEYWORD)
        return {"inputs": anything}


def _required(parameters: Mapping[str, inspect.Parameter]) -> set[str]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {key for key, one in parameters.items() if one.default is one.empty and one.kind not in variadic}


def _declared(name: str, config: StepConfig, call: Callable[..., Any]) -> dict[str, TensorSpec]:
    """Raises ModelError."""
    own = config.outputs or getattr(call, "outputs", None) or {}
    try:
        return {key: parse_spec(key, text) for key, text in own.items()}
    except (ModelError, AttributeError, TypeError) as error:
        raise ModelError(f"stage '{name}' ({config.call}): its outputs are {own!r}: {error}") from None
