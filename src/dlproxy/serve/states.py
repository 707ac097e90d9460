"""Which tensors of a model are the state of a sequence, and which the server fills for it; what is left is what clients see.

Made by assemble.py, used by sequences.py. Not aware of: which sequences there are, how requests are run.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import zip_longest
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.config.values import nearest
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.declared import fits, parse_spec, written
from dlproxy.message import DType, InSequence, Signature, Tensor, TensorSpec
from dlproxy.serve.traffic import difference_between
from dlproxy.tensors import NUMPY, Array, filler, join_elements, to_bytes

CONTROLS = ("start", "end", "ready", "id")


class State(Struct):
    """Of one sequence, which has so many rows: the tensors in the order of the knob `state`, under the names of the inputs."""

    rows: int
    tensors: list[Tensor]


class _Kept(Struct, frozen=True):
    """`spec`: of the input, with the sizes that the output fixes. `begin`: what a sequence begins with, one row of it.
    `varies`: it may be larger or smaller after a request.
    """

    place: int
    output: int
    spec: TensorSpec
    begin: Array
    varies: bool


class StatePlan:
    """Of one model. `signature`: what is left for clients."""

    def __init__(self, name: str, config: ModelConfig, whole: Signature) -> None:
        """Raises ConfigError where the model has no such state."""
        self._name = name
        self._batched = whole.batched
        if whole.streams:
            raise ConfigError(
                f"sequences: model '{name}' answers in parts, of which none is known to hold the state", "sequences"
            )
        inputs = {spec.name: place for place, spec in enumerate(whole.inputs)}
        outputs = {spec.name: place for place, spec in enumerate(whole.outputs)}
        begin = dict(config.initial_state)
        self._kept = [
            self._pair(whole, _place("state", inputs, source, "input"), _place("state", outputs, result, "output"), begin)
            for source, result in config.state.items()
        ]
        if not self._kept and not whole.told_sequences:
            raise ConfigError(f"sequences: which inputs are the state of model '{name}'? {_EXAMPLE}", "sequences")
        for source in begin:
            raise ConfigError(f"initial_state: '{source}' is not among the inputs of `state`", "initial_state")
        self._controls: dict[str, int] = {}
        for control, source in config.sequence_controls.items():
            if control not in CONTROLS:
                raise ConfigError(f"sequence_controls: {control!r} is none; {nearest(control, CONTROLS)}", "sequence_controls")
            self._controls[control] = place = _place("sequence_controls", inputs, source, "input")
            if whole.inputs[place].dtype is DType.BYTES and control != "id":
                raise ConfigError(f"sequence_controls: '{source}' holds BYTES, which cannot say yes or no", "sequence_controls")
        taken = [*(one.place for one in self._kept), *self._controls.values()]
        results = [one.output for one in self._kept]
        if len({*taken}) < len(taken) or len({*results}) < len(results):
            raise ConfigError(f"state: an input or output of model '{name}' is named twice", "state")
        self._specs = whole.inputs
        self._given = [place for place in range(len(whole.inputs)) if place not in taken]
        self._told = [place for place in range(len(whole.outputs)) if place not in results]
        if not self._given or not self._told:
            raise ConfigError(
                f"state: it leaves no {'outputs' if self._given else 'inputs'} of model '{name}' to clients", "state"
            )
        self._alike = not any(one.varies or one.spec.rows is None for one in self._kept) and all(
            whole.inputs[place].rows is not None for place in self._controls.values()
        )
        self._states = [one.output for one in self._kept]
        self._single: State | None = None
        self._single = self.begin(1)
        self._flags: dict[tuple[int, int, bool], Tensor] = {}
        self.signature = msgspec.structs.replace(
            whole,
            inputs=tuple(whole.inputs[place] for place in self._given),
            outputs=tuple(whole.outputs[place] for place in self._told),
            sequences=config.sequences,
        )

    def begin(self, rows: int) -> State:
        """What a sequence of so many rows has before its first request."""
        if rows == 1 and self._single is not None:
            return self._single
        tensors = []
        for one in self._kept:
            array = one.begin
            if self._batched and one.spec.rows is not None:
                array = np.repeat(array, rows, axis=one.spec.rows)
            tensors.append(Tensor(one.spec.name, one.spec.dtype, array.shape, bytes(to_bytes(one.spec.dtype, array))))
        return State(rows, tensors)

    def inputs(self, given: Sequence[Tensor], of: InSequence, state: State) -> list[Tensor]:
        """All that the model takes, in its order."""
        whole: list[Any] = [None] * len(self._specs)
        for place, tensor in zip(self._given, given, strict=True):
            whole[place] = tensor
        for one, tensor in zip(self._kept, state.tensors, strict=True):
            whole[one.place] = tensor
        for control, place in self._controls.items():
            if control == "id":
                whole[place] = self._id(self._specs[place], of.id, state.rows)
            else:
                whole[place] = self._flag(place, state.rows, on=control == "ready" or getattr(of, control))
        return whole

    def key(self, state: State, of: InSequence) -> tuple[int, ...]:
        """What must be equal for requests to share a batch beside what clients send: the open sizes of their states, and all
        that has no rows.
        """
        if self._alike:
            return ()
        key: list[int] = []
        for one, tensor in zip(self._kept, state.tensors, strict=True):
            if one.varies:
                key += tensor.shape
            if one.spec.rows is None:
                key.append(_digest(bytes(tensor.data)))
        for control, place in self._controls.items():
            if self._specs[place].rows is None:
                key.append(_digest(repr(of.id).encode()) if control == "id" else control == "ready" or getattr(of, control))
        return tuple(key)

    def outputs(self, wanted: Sequence[int]) -> list[int]:
        """What is asked of the model for a client who wants these: first its outputs, then the state."""
        return [self._told[index] for index in wanted] + self._states

    def state_of(self, outputs: Sequence[Tensor], rows: int) -> State | str:
        """Copies of what stands behind the client's outputs, as an answer's own are views of its whole batch; or why the model
        could not take it.
        """
        tensors = []
        for one, tensor in zip(self._kept, outputs, strict=True):
            spec, shape = one.spec, tensor.shape
            counts = self._batched and spec.rows is not None
            if not fits(shape, spec.shape) or (counts and shape[spec.rows or 0] != rows):
                return f"the model gave '{tensor.name}' of shape {list(shape)}, and takes {written(spec)} as '{spec.name}'"
            tensors.append(Tensor(spec.name, spec.dtype, shape, bytes(tensor.data)))
        return State(rows, tensors)

    def why_not(self, sequence_id: int | str) -> str:
        """Why it cannot be a sequence's id, if the model is told ids; empty if it can."""
        if "id" not in self._controls:
            return ""
        spec = self._specs[self._controls["id"]]
        if spec.dtype is DType.BYTES:
            return ""
        if isinstance(sequence_id, str):
            return f"sequence_id is a text, but model '{self._name}' takes numbers ('{spec.name}' is {spec.dtype.value})"
        if NUMPY[spec.dtype].kind in "iu" and sequence_id >= 1 << (8 * spec.dtype.itemsize - (spec.dtype.value[0] == "I")):
            return f"sequence_id {sequence_id} does not fit '{spec.name}' of model '{self._name}', which is {spec.dtype.value}"
        return ""

    def difference(self, other: "StatePlan") -> str:
        """Why the other model cannot go on with a state of this one, and what clients ask of it; empty if it can."""
        why = difference_between(self.signature, other.signature)
        if why:
            return why
        if self.signature.told_sequences or other.signature.told_sequences:
            return "the model keeps their state itself"
        for one, two in zip_longest(self._kept, other._kept):
            if one is None or two is None:
                return f"only one of them has the state '{(one or two).spec.name}'"
            ours, theirs = one.spec, two.spec
            if (ours.name, written(ours), ours.rows) != (theirs.name, written(theirs), theirs.rows):
                return f"its state '{theirs.name}' is {written(theirs)} where '{ours.name}' was {written(ours)}"
        return ""

    def _pair(self, whole: Signature, place: int, output: int, begin: dict[str, str]) -> _Kept:
        spec, result = whole.inputs[place], whole.outputs[output]
        unlike = f"state: '{spec.name}' is {written(spec)}, but '{result.name}', its next value, is {written(result)}"
        if spec.dtype is not result.dtype or len(spec.shape) != len(result.shape):
            raise ConfigError(unlike, "state")
        if self._batched and spec.rows != result.rows and spec.rows is not None:
            raise ConfigError(f"{unlike}: their rows stand on axes {spec.rows} and {result.rows}", "state")
        sizes = []
        for axis, (size, after) in enumerate(zip(spec.shape, result.shape, strict=True)):
            counts = axis == spec.rows and (self._batched or size < 0)
            if -1 not in (size, after) and size != after and not counts:
                raise ConfigError(unlike, "state")
            sizes.append(size if counts or size >= 0 else after)
        known = msgspec.structs.replace(spec, shape=tuple(sizes))
        varies = any(size < 0 and axis != spec.rows for axis, size in enumerate(sizes))
        return _Kept(place, output, known, self._first(known, begin.pop(spec.name, "")), varies)

    def _first(self, spec: TensorSpec, said: str) -> Array:
        """One row of it. Raises ConfigError."""
        sizes = [1 if axis == spec.rows and size < 0 else size for axis, size in enumerate(spec.shape)]
        if said:
            try:
                given = parse_spec(spec.name, said)
            except ModelError as error:
                raise ConfigError(f"initial_state: {error}", "initial_state") from None
            if given.dtype is not spec.dtype or not fits(given.shape, sizes):
                raise ConfigError(
                    f"initial_state: '{spec.name}' is {said}, but the model takes {written(spec)}", "initial_state"
                )
            sizes = list(given.shape)
        if -1 in sizes:
            example = (
                f'initial_state = {{ {spec.name} = "{spec.dtype.value}[{",".join(str(max(size, 0)) for size in sizes)}]" }}'
            )
            raise ConfigError(
                f"state: '{spec.name}' is {written(spec)}: say how large it is when a sequence begins, as {example}", "state"
            )
        if spec.dtype is DType.BYTES:
            array = np.empty(sizes, object)
            array[...] = b""
            return array
        return np.zeros(sizes, NUMPY[spec.dtype])

    def _flag(self, place: int, rows: int, *, on: bool) -> Tensor:
        tensor = self._flags.get((place, rows, on))
        if tensor is None:
            spec = self._specs[place]
            array = np.full(self._shape(spec, rows), filler(spec.dtype, float(on)), NUMPY[spec.dtype])
            tensor = self._flags[place, rows, on] = Tensor(
                spec.name, spec.dtype, array.shape, bytes(to_bytes(spec.dtype, array))
            )
        return tensor

    def _id(self, spec: TensorSpec, sequence_id: int | str, rows: int) -> Tensor:
        shape = self._shape(spec, rows)
        if spec.dtype is DType.BYTES:
            data = join_elements([str(sequence_id)] * int(np.prod(shape, dtype=int)))
        else:
            data = bytes(to_bytes(spec.dtype, np.full(shape, sequence_id, NUMPY[spec.dtype])))
        return Tensor(spec.name, spec.dtype, shape, data)

    def _shape(self, spec: TensorSpec, rows: int) -> tuple[int, ...]:
        counted = spec.rows if self._batched else None
        return tuple(rows if axis == counted else max(size, 1) for axis, size in enumerate(spec.shape))


def _digest(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=16).digest(), "little")


_EXAMPLE = 'name each with the output that is its next value, as state = { state = "stateN" }'


def _place(knob: str, places: Mapping[str, int], name: str, kind: str) -> int:
    """Raises ConfigError for what the model does not have."""
    if name not in places:
        raise ConfigError(f"{knob}: the model has no {kind} '{name}'; {nearest(name, list(places))}", knob)
    return places[name]
