"""Shows by running a model whether requests of different lengths can be padded to one length without changing an answer.

Rows of many kinds and lengths are run alone and padded together; what each got is cut back to its own length. Called by
evidence.py, once rows were seen to be independent. Not aware of: requests. Why: docs/adr/0016-padding-by-evidence-and-cost.md.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from time import perf_counter
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.instance.batch import stacked
from dlproxy.instance.made_up import Kind, Known, row_of
from dlproxy.instance.runtime import Runtime
from dlproxy.message import DType, Signature, Tensor, TensorSpec
from dlproxy.tensors import NUMPY, to_bytes

Array = NDArray[np.generic]
Padding = Literal["auto", "on", "off"]
Same = Callable[[Array, Array, DType], bool]

ENOUGH_S = 1.0  # no further batch is tried after so much time; what was not tried is left to the re-checks in service
NO_AXIS = "no open axis beside the rows is one that all inputs with such an axis share"


class PaddingTries(Struct, frozen=True):
    """What is tried. `lengths`: others than the first batch's three; `marks`: masks and lengths that hide some of a row."""

    kinds: tuple[Kind, ...]
    first: tuple[Kind, ...]
    lengths: bool = True
    marks: bool = True


def without_padding(signature: Signature) -> Signature:
    """The same model, whose requests share a batch only if they are equally long."""
    plain = [
        tuple(msgspec.structs.replace(spec, padded=None, pad=0.0) for spec in specs)
        for specs in (signature.inputs, signature.outputs)
    ]
    return msgspec.structs.replace(signature, inputs=plain[0], outputs=plain[1])


def with_padding(signature: Signature, pad_value: float) -> tuple[Signature, str]:
    """Its inputs with the axis along which they may be padded, as names and open axes have it; else why there is none."""
    axes = _shared_axis(signature.inputs)
    if not axes:
        return signature, NO_AXIS
    inputs = []
    for index, spec in enumerate(signature.inputs):
        if index not in axes:
            inputs.append(spec)
            continue
        value = 0.0 if spec.is_mask or spec.dtype is DType.BOOL else pad_value
        why = _unfit(spec, value)
        if why:
            return signature, why
        inputs.append(msgspec.structs.replace(spec, padded=axes[index], pad=value))
    return msgspec.structs.replace(signature, inputs=tuple(inputs)), ""


def _shared_axis(inputs: Sequence[TensorSpec]) -> dict[int, int]:
    """By input: the one axis beside its rows that has the name most of them share, or that is the only open one of each."""
    found = {
        index: [
            (axis, spec.axes[axis] if spec.axes else "")
            for axis, size in enumerate(spec.shape)
            if size < 0 and axis != spec.rows
        ]
        for index, spec in enumerate(inputs)
        if spec.rows is not None
    }
    open_axes = {index: axes for index, axes in found.items() if axes}
    names = [name for axes in open_axes.values() for _, name in axes]
    if len(set(names)) == 1:
        chosen = names[0]
    elif not names or not all(names):  # named here, unnamed there: nobody knows whether they are one
        return {}
    else:
        chosen = max(dict.fromkeys(names), key=names.count)
        if names.count(chosen) < 2:
            return {}
    shared = {index: [axis for axis, name in axes if name == chosen] for index, axes in open_axes.items()}
    if any(len(axes) > 1 for axes in shared.values()):  # [batch, length, length]: two axes cannot be padded as one
        return {}
    return {index: axes[0] for index, axes in shared.items() if axes}


def _unfit(spec: TensorSpec, value: float) -> str:
    """Why the input cannot be filled up with this number."""
    if spec.dtype is DType.BYTES:
        return f"input '{spec.name}' holds texts, which no number can fill up"
    kind = NUMPY[spec.dtype].kind
    if kind in "iu" and spec.dtype is not DType.BF16:
        most = 2 ** (8 * spec.dtype.itemsize - (kind == "i")) - 1
        if not isfinite(value) or value != int(value) or not (-most - 1 if kind == "i" else 0) <= value <= most:
            return f"pad_value = {value:g} is no {spec.dtype.value}, as input '{spec.name}' takes"
    return ""


class _Row(Struct):
    """A row that the model took, and what it gave for it."""

    inputs: list[Array]
    outputs: list[Array]
    length: int


class PaddingTrial:
    """Tries a signature that with_padding made. `same`: whether two answers are one."""

    def __init__(
        self,
        runtime: Runtime,
        signature: Signature,
        known: Known,
        samples: Sequence[Mapping[str, Array]],
        tries: PaddingTries,
        same: Same,
    ) -> None:
        self._runtime = runtime
        self._signature = signature
        self._known = known
        self._samples = samples
        self._tries = tries
        self._same = same
        self._axes = {index: spec.padded for index, spec in enumerate(signature.inputs) if spec.padded is not None}
        self._lengths = [index for index, spec in enumerate(signature.inputs) if spec.is_length]
        self._masks = [index for index in self._axes if signature.inputs[index].is_mask]
        self._places: list[set[int | None]] = []  # of each output: the axes to cut it along, None for not at all

    def found(self) -> tuple[Signature, str]:
        """With the axes along which outputs are cut back; else why answers are not what they are alone."""
        if any(spec.counts for spec in self._signature.outputs):
            return self._signature, "outputs hold different numbers of elements for each row"
        started_at, differed = perf_counter(), False
        for rows in self._batches():
            if len(rows) > 1:
                try:
                    rows, together = self._together(rows)
                except Exception as error:
                    return self._signature, f"the model cannot run rows of different lengths padded ({error})"
                why = self._difference(rows, together)
                if why:
                    return self._signature, why
                differed = differed or len({row.length for row in rows}) > 1
            if perf_counter() - started_at > ENOUGH_S:
                break
        if not differed:
            return self._signature, "the model took no two rows of different lengths to compare"
        outputs = tuple(
            msgspec.structs.replace(spec, padded=next(iter(places)))
            for spec, places in zip(self._signature.outputs, self._places, strict=True)
        )
        return msgspec.structs.replace(self._signature, outputs=outputs), ""

    # What is tried

    def _batches(self) -> Iterator[list[_Row]]:
        """Batches of rows that each ran alone before, the most telling first.

        Numbers are indices of _sizes: the lengths that follow one another in a batch, so that each kind is once much padded.
        """
        tries = self._tries
        yield self._rows(tries.first, (0, 1, 2))
        if tries.lengths:
            yield self._rows(tries.kinds, (1, 0, 3, 2))
            yield self._rows(tries.kinds[::-1], (2, 4, 1, 1, 0))
            yield self._rows(tries.kinds, (0, *[1] * (len(tries.kinds) - 1)))
        if tries.marks and (self._masks or self._lengths):
            yield self._rows(tries.kinds, (0, 1, 3, 0, 1), marked=True)
            yield self._rows(tries.kinds, (4, 0, 0, 3), marked=True)
        if tries.lengths:
            yield self._rows(tries.kinds, (4, 1, 2))
            yield self._rows(tries.kinds, (4, 0, 5))
            yield self._rows(tries.kinds, (0, 0, 6))

    def _rows(self, kinds: Sequence[Kind], lengths: Sequence[int], *, marked: bool = False) -> list[_Row]:
        """One row of each kind that the model takes."""
        rows = []
        for number, kind in enumerate(kinds):
            sample = self._samples[number % len(self._samples)] if self._samples else None
            row = self._alone(kind, sample, lengths[number % len(lengths)], number if marked else 0)
            rows += [row] if row is not None else []
        return rows

    def _alone(self, kind: Kind, sample: Mapping[str, Array] | None, size: int, marks: int) -> _Row | None:
        inputs = row_of(self._signature.inputs, kind, self._known, sample)
        whole = next(inputs[index].shape[axis] for index, axis in self._axes.items())
        if not whole:
            return None
        length = _sizes(whole)[size]
        for index, axis in self._axes.items():
            inputs[index] = np.take(inputs[index], range(length), axis=axis, mode="wrap")
        for index in self._masks:
            _hide(np.moveaxis(inputs[index], self._axes[index], -1), marks)
        for index in self._lengths:
            inputs[index] = np.full_like(inputs[index], max(length - marks % 3, 1))
        try:
            outputs = self._runtime.run(inputs)
        except Exception:  # what the model does not take alone, nobody will send it
            return None
        return _Row(inputs, outputs, length) if len(outputs) == len(self._signature.outputs) else None

    def _together(self, rows: list[_Row]) -> tuple[list[_Row], list[Array]]:
        """The rows in one batch, or as many as the model takes; in service, too large a batch is halved. Raises its error."""
        while True:
            try:
                return rows, self._runtime.run(self._padded(rows))
            except Exception:
                if len(rows) <= 2:
                    raise
                rows = rows[: max(len(rows) // 2, 2)]

    def _padded(self, rows: Sequence[_Row]) -> list[Array]:
        arrays = []
        for index, spec in enumerate(self._signature.inputs):
            given = [row.inputs[index] for row in rows]
            if spec.rows is None:
                arrays.append(given[0])
            else:
                arrays.append(
                    stacked(spec, [Tensor(spec.name, spec.dtype, one.shape, to_bytes(spec.dtype, one)) for one in given])
                )
        return arrays

    # What comes of it

    def _difference(self, rows: Sequence[_Row], together: Sequence[Array]) -> str:
        """Why these rows did not get in the batch what they got alone, in words; empty if they did."""
        if not self._places:
            specs = self._signature.outputs
            self._places = [{None, *range(array.ndim)} - {spec.rows} for spec, array in zip(specs, together, strict=True)]
        longest = max(row.length for row in rows)
        for index, (spec, whole) in enumerate(zip(self._signature.outputs, together, strict=True)):
            at = spec.rows or 0
            if at >= whole.ndim or whole.shape[at] != len(rows):
                return f"output '{spec.name}' does not hold one element for each padded row"
            parts = [(row, whole[(slice(None),) * at + (slice(number, number + 1),)]) for number, row in enumerate(rows)]
            self._places[index] = {
                place
                for place in self._places[index]
                if all(self._stands(spec, row.outputs[index], part, place, row.length, longest) for row, part in parts)
            }
            if not self._places[index]:
                return f"output '{spec.name}': a padded row's answer is not what it is alone"
        return ""

    def _stands(self, spec: TensorSpec, alone: Array, part: Array, place: int | None, length: int, longest: int) -> bool:
        """Is this the row's answer, once cut back along the axis?"""
        if place is not None:
            if place >= part.ndim or place >= alone.ndim or part.shape[place] != longest or alone.shape[place] != length:
                return False
            part = part[(slice(None),) * place + (slice(length),)]
        return self._same(alone, part, spec.dtype)


def _sizes(whole: int) -> tuple[int, ...]:
    """Lengths to try where rows of one length were taken."""
    return whole, max(whole // 10, 1), 1, max(whole // 2, 1), 2, max(whole - 1, 1), 2 * whole


def _hide(mask: NDArray[Any], marks: int) -> None:
    """Mark some places of the last axis as not counting: those at the end, at the begin, or some between; never all."""
    before, length = mask.copy(), mask.shape[-1]
    if marks % 4 == 1:
        mask[..., (length + 1) // 2 :] = 0
    elif marks % 4 == 2:
        mask[..., : length // 2] = 0
    elif marks % 4 == 3:
        mask[..., 1::2] = 0
    if not mask.any():
        mask[...] = before
