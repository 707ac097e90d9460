"""Shows by running a model whether rows of a batch are independent, and on which axis of every output they stand.

Rows of many kinds are run alone and together: an output is cut along an axis only if on it each row got what it got alone,
in every batch tried. Called by warmup.py. Not aware of: time, requests. Why: docs/adr/0015-the-batch-axis-is-evidence.md.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from time import perf_counter
from typing import Literal

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.instance.made_up import IMAGE_SIZES, KINDS, NORMAL, SIZES, WORDS, Kind, Known, joined, row_of
from dlproxy.instance.padding import Padding, PaddingTrial, PaddingTries, Same, with_padding
from dlproxy.instance.runtime import Runtime
from dlproxy.instance.runtime.declared import one_line
from dlproxy.instance.runtime.rows import conflict
from dlproxy.message import DType, Signature, TensorSpec
from dlproxy.tensors import bf16_to_fp32

Array = NDArray[np.generic]
Batching = Literal["auto", "on", "off"]

TOLERANCE = 1e-3  # relative; kernels for different batch sizes sum in different orders
ENOUGH_S = 2.0  # no further batch is tried after so much time; what was not tried is left to the re-checks in service
MANY_ROWS = 18
NO_MARK = "no input tells the model what is padding, and runs alone cannot show for all values that it makes no difference"
FIRST = (KINDS[0], KINDS[1], KINDS[3])  # normal, another, large: all that a slow model may have time for
MOST_WORDS = 4  # of the model's own, between others: as many rows have room for
CROSSED = (1, 4)  # by so many kinds the inputs of a row differ, so that no two are always hostile together
HIGHEST_IDS = (100_000, 30_000, 8_000, 1_000, 100, 10, 2)  # vocabularies are searched from above: to be refused is quick


class Findings(Struct):
    """`why`: why rows are run one by one, in words, empty if they are not, or if nothing was to be found out. `unpadded`: why
    requests of different lengths are not padded.
    """

    signature: Signature
    known: Known
    why: str = ""
    unpadded: str = ""


class Tries(Struct, frozen=True):
    """What is tried; a table, so that a test can leave out any of it and see what then goes unseen."""

    kinds: tuple[Kind, ...] = KINDS
    twice: bool = True
    crossed: bool = True
    more_lengths: bool = True
    many_rows: bool = True
    graph: bool = True
    ids: bool = True
    padding: bool = True
    padded_lengths: bool = True
    padded_marks: bool = True


class UnsuitableError(Exception):
    """The model takes no made-up input; the message is what it said to the last one."""


def examine(
    runtime: Runtime,
    *,
    batching: Batching = "auto",
    padding: Padding = "off",
    pad_value: float = 0.0,
    samples: Sequence[Mapping[str, Array]] = (),
    tries: Tries | None = None,
) -> Findings:
    """What the runtime's rows are. Takes about ENOUGH_S, or a dozen runs if that is longer, half as much again for padding.

    Raises UnsuitableError.
    """
    examination = _Examination(runtime, samples, tries or Tries())
    found = examination.findings(batching)
    if padding == "off" or not found.signature.batched:
        return found
    if padding == "auto" and not any(spec.is_mask or spec.is_length for spec in found.signature.inputs):
        return msgspec.structs.replace(found, unpadded=NO_MARK)
    signature, why = examination.padded(found, pad_value)
    return msgspec.structs.replace(found, signature=signature, unpadded=why)


def close(a: Array, b: Array, dtype: DType) -> bool:
    """Are both the same but for the order in which a kernel sums? Integers, flags and texts must be equal."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if dtype is DType.BF16:
        a, b = bf16_to_fp32(a), bf16_to_fp32(b)
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    scale = float(np.max(np.abs(a), initial=0.0, where=np.isfinite(a)))
    tolerance = 16 * TOLERANCE if dtype in (DType.FP16, DType.BF16) else TOLERANCE
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True))


class _Alone(Struct):
    """A row that the model took, and what it gave for it."""

    inputs: list[Array]
    outputs: list[Array]


class _Examination:
    def __init__(self, runtime: Runtime, samples: Sequence[Mapping[str, Array]], tries: Tries) -> None:
        self._runtime = runtime
        self._signature = runtime.signature
        self._samples = samples
        self._tries = tries
        self._started_at = perf_counter()
        self._below: dict[str, int] = {}
        own = getattr(runtime, "words", ())
        self._words = [word for pair in zip_longest(own[:MOST_WORDS], WORDS) for word in pair if word is not None]
        self._places: list[set[int]] | None = None  # of each output: the axes that rows may stand on, none seen yet

    def findings(self, batching: Batching) -> Findings:
        free = self._working_size()
        why = self._why_not(batching, free)
        signature = self._signature
        if why:
            signature = msgspec.structs.replace(signature, batched=False)
        elif signature.batched and self._places is not None:
            outputs = tuple(_placed(spec, places) for spec, places in zip(signature.outputs, self._places, strict=True))
            signature = msgspec.structs.replace(signature, outputs=outputs)
        return Findings(signature, self._known(free), why)

    def padded(self, found: Findings, pad_value: float) -> tuple[Signature, str]:
        """The signature with what is padded and cut back, or as it is and why nothing is."""
        tries = self._tries
        signature, why = with_padding(found.signature, pad_value)
        if why:
            return found.signature, why
        first = tuple(kind for kind in FIRST if kind in tries.kinds)
        kinds = PaddingTries(tries.kinds, first, tries.padded_lengths, tries.padded_marks)
        same: Same = close if tries.padding else lambda a, b, _: a.shape == b.shape
        signature, why = PaddingTrial(self._runtime, signature, found.known, self._samples, kinds, same).found()
        return (found.signature, why) if why else (signature, "")

    def _why_not(self, batching: Batching, free: int) -> str:
        signature, tries = self._signature, self._tries
        if batching == "off":
            return "batching = 'off'" if signature.batched else ""
        if not signature.batched:
            return conflict(signature.inputs)
        if batching == "on":
            return conflict(signature.inputs) or self._first_difference([self._rows(KINDS[:2], free)], values=False)
        look: Callable[[], str] | None = getattr(self._runtime, "why_rows_meet", None)
        why = look() if look is not None and tries.graph else ""
        return why or self._first_difference(self._batches(free))

    # What is tried

    def _batches(self, free: int) -> Iterator[list[_Alone]]:
        """Batches of rows that each ran alone before, the most telling first."""
        tries = self._tries
        if tries.ids and getattr(self._runtime, "checks_indices", False):
            self._search_ids(free)
        yield self._rows([kind for kind in FIRST if kind in tries.kinds], free)
        yield self._rows(tries.kinds, free)
        if tries.crossed and sum(spec.rows is not None for spec in self._signature.inputs) > 1:
            for crossed in CROSSED:
                yield self._rows(tries.kinds, free, crossed=crossed)
        if tries.more_lengths and self._samples:
            for sample in self._samples[1:4]:
                yield self._rows(tries.kinds, free, sample)
        elif tries.more_lengths and any(-1 in _without_rows(spec) for spec in self._signature.inputs):
            for size in (free // 2, free * 2, 3):
                if size > 0:
                    yield self._rows(tries.kinds, size)
        if tries.many_rows and perf_counter() - self._started_at < ENOUGH_S / 4:
            yield [row for draw in range(MANY_ROWS) for row in self._rows(KINDS[:1], free, draw=draw)]

    def _rows(
        self,
        kinds: Sequence[Kind],
        free: int,
        sample: Mapping[str, Array] | None = None,
        *,
        crossed: int = 0,
        draw: int = 0,
    ) -> list[_Alone]:
        """One row of each kind that the model takes."""
        sample = sample or (self._samples[0] if self._samples else None)
        rows = [self._alone(kind, free, sample, crossed, draw) for kind in kinds]
        return [row for row in rows if row is not None]

    def _known(self, free: int) -> Known:
        return Known(free, self._below, self._words)

    def _alone(
        self, kind: Kind, free: int, sample: Mapping[str, Array] | None, crossed: int = 0, draw: int = 0
    ) -> _Alone | None:
        inputs = row_of(self._signature.inputs, kind, self._known(free), sample, crossed=crossed, draw=draw)
        try:
            outputs = self._runtime.run(inputs)
        except Exception:  # what the model does not take alone, nobody will send it
            return None
        return _Alone(inputs, outputs) if len(outputs) == len(self._signature.outputs) else None

    # What comes of it

    def _first_difference(self, batches: Iterable[list[_Alone]], *, values: bool = True) -> str:
        """Why rows are not independent, in words; empty if in all batches each row got what it got alone.

        Not `values`: if only the sizes are as if they were.
        """
        first = True
        for rows in batches:
            if first and rows and values and self._tries.twice and not self._repeats(rows[0]):
                return "the same input twice gave two answers: the model keeps a state or draws random numbers"
            first = False
            if len(rows) > 1:
                try:
                    rows, together = self._together(rows)
                except Exception as error:
                    return f"the model cannot run two rows together ({one_line(error)})"
                why = self._difference(rows, together, values=values)
                if why:
                    return why
            if perf_counter() - self._started_at > ENOUGH_S:
                break
        return "" if self._places is not None else "the model took no two rows to compare"

    def _together(self, rows: list[_Alone]) -> tuple[list[_Alone], list[Array]]:
        """The rows in one batch, or as many as the model takes; in service, too large a batch is halved. Raises its error."""
        while True:
            try:
                return rows, self._runtime.run(joined(self._signature.inputs, [row.inputs for row in rows]))
            except Exception:
                if len(rows) <= 2:
                    raise
                rows = rows[: max(len(rows) // 2, 2)]

    def _repeats(self, row: _Alone) -> bool:
        again = self._runtime.run(row.inputs)
        return all(close(a, b, spec.dtype) for a, b, spec in zip(row.outputs, again, self._signature.outputs, strict=True))

    def _difference(self, rows: Sequence[_Alone], together: Sequence[Array], *, values: bool) -> str:
        specs = self._signature.outputs
        if self._places is None:
            self._places = [set(range(max(array.ndim, 1))) for array in together]
        for index, (spec, whole) in enumerate(zip(specs, together, strict=True)):
            alone = [row.outputs[index] for row in rows]
            cuts = list(range(1, len(rows)))
            if spec.counts:
                counts = next((array for other, array in zip(specs, together, strict=True) if other.name == spec.counts), None)
                cuts = [] if counts is None else np.cumsum(counts.ravel())[:-1].astype(int).tolist()
            self._places[index] = {axis for axis in self._places[index] if _stands(spec, whole, alone, axis, cuts, values)}
            if not self._places[index]:
                uncounted = whole.ndim == 0 or len(rows) not in whole.shape
                how = "it does not hold one element for each row" if uncounted else "a row's answer depends on its neighbours"
                return f"output '{spec.name}': {how}"
        return ""

    # Sizes and ranges

    def _working_size(self) -> int:
        last: Exception | None = None
        if self._samples and self._alone(NORMAL, SIZES[0], self._samples[0]) is not None:
            return SIZES[0]
        image = any(len(spec.shape) == 4 and spec.shape[2:] == (-1, -1) for spec in self._signature.inputs)
        for free in IMAGE_SIZES if image else SIZES:
            try:
                self._runtime.run(row_of(self._signature.inputs, NORMAL, self._known(free)))
            except Exception as error:  # whatever the model raises, the next size may suit it
                last = error
                continue
            return free
        raise UnsuitableError(one_line(last) if last is not None else "it has no inputs")

    def _search_ids(self, free: int) -> None:
        """How high the integers of each matrix of them may be: as high as the rows of a vocabulary, if they are ids."""
        for index, spec in enumerate(self._signature.inputs):
            rows = len(spec.shape) > 1 or spec.rows == 0  # no single number, which may be a size
            if spec.dtype in (DType.INT32, DType.INT64) and rows and not (spec.is_mask or spec.is_length):
                self._below[spec.name] = self._highest(index, free)

    def _highest(self, index: int, free: int) -> int:
        refused = 0
        for taken in HIGHEST_IDS:
            if self._takes_ids(index, free, taken):
                while refused - taken > max(taken // 50, 1) and perf_counter() - self._started_at < ENOUGH_S / 4:
                    middle = (taken + refused) // 2
                    if self._takes_ids(index, free, middle):
                        taken = middle
                    else:
                        refused = middle
                return taken
            refused = taken
        return HIGHEST_IDS[-1]

    def _takes_ids(self, index: int, free: int, below: int) -> bool:
        """Integers just under this in one input, small ones in the others."""
        specs = self._signature.inputs
        inputs = row_of(specs, NORMAL, Known(free), self._samples[0] if self._samples else None)
        inputs[index] = np.full_like(inputs[index], below - 1)
        try:
            self._runtime.run(inputs)
        except Exception:
            return False
        return True


def _stands(spec: TensorSpec, whole: Array, alone: Sequence[Array], axis: int, cuts: Sequence[int], values: bool) -> bool:
    """Do the rows stand on this axis, each with what it got alone, or not `values`: with as much as it got alone?"""
    if axis >= whole.ndim or (not spec.counts and whole.shape[axis] != len(alone)):
        return False
    parts = np.split(whole, cuts, axis=axis)
    return len(parts) == len(alone) and all(
        close(mine, part, spec.dtype) if values else mine.shape == part.shape for mine, part in zip(alone, parts, strict=True)
    )


def _placed(spec: TensorSpec, places: set[int]) -> TensorSpec:
    """The declared axis if rows were seen to stand on it, else the first; its size is open, whatever the file says."""
    rows = spec.rows if spec.rows in places else min(places)
    shape = tuple(-1 if axis == rows else size for axis, size in enumerate(spec.shape))
    return msgspec.structs.replace(spec, rows=rows, shape=shape)


def _without_rows(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size for axis, size in enumerate(spec.shape) if axis != spec.rows)
