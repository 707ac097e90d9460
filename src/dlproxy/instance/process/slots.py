"""Batches in memory that two processes share: anonymous files, mapped by both, that vanish with the last of the two.

Called by instance.py, which writes inputs and reads outputs, and by worker.py, which does the opposite.
Not aware of: sockets, event loops, when what is written.
"""

import os
import tempfile
from collections.abc import Sequence
from functools import partial
from mmap import MAP_SHARED, PAGESIZE, mmap
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from dlproxy import tensors
from dlproxy.instance.batch import differ_in_length, stacked
from dlproxy.instance.process.messages import Part
from dlproxy.message import DType, Request, Tensor, TensorSpec

Array = NDArray[np.generic]

ALIGNMENT = 64  # bytes: a cache line, and what ONNX Runtime's vector kernels like best
OUTPUT_SLOTS = 3  # one that is written, one whose replies are being sent, one for a slow client's
LEND_FROM_BYTES = 32 * 1024  # less is copied out: that costs less than to lend it


class SlotTooSmall(Exception):  # noqa: N818  (it is the slot that is too small, not an error in the program)
    """The batch takes more than a slot may hold."""


class Slot:
    """A shared file and this process's mapping of it, which never shrink: a mapping beyond a file's end is a fatal signal."""

    def __init__(self, fd: int, limit: int) -> None:
        self.fd = fd
        self.limit = limit
        self.size = 0
        self.memory: mmap | None = None

    @classmethod
    def create(cls, limit: int) -> "Slot":
        """A new one, still empty."""
        if not hasattr(os, "memfd_create"):
            with tempfile.TemporaryFile() as file:
                return cls(os.dup(file.fileno()), limit)
        from fcntl import F_ADD_SEALS, F_SEAL_SHRINK, fcntl

        slot = cls(os.memfd_create("dlproxy-slot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), limit)
        fcntl(slot.fd, F_ADD_SEALS, F_SEAL_SHRINK)
        return slot

    def reserve(self, needed: int, what: str) -> None:
        """Make it at least so large, to the next power of two. Raises SlotTooSmall, or OSError where memory is short."""
        if needed > self.limit:
            raise SlotTooSmall(f"{what} take {needed} bytes, a worker's slot holds at most {self.limit} (max_slot_bytes)")
        if needed > self.size or not self.size:
            size = min(max(1 << (needed - 1).bit_length(), PAGESIZE), max(self.limit, PAGESIZE))
            self._provide(size)
            self.follow(size)

    def _provide(self, size: int) -> None:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.fd, 0, size)  # now, or the first touch would be fatal where memory is short
        else:
            os.ftruncate(self.fd, size)

    def follow(self, size: int) -> None:
        """The other process may have made it larger: map all of it. Views of the old mapping stay valid."""
        if size != self.size:
            self.memory = mmap(self.fd, size, MAP_SHARED)
            self.size = size

    def close(self) -> None:
        """Let go of it; the memory itself lives as long as there are views of it."""
        self.memory = None
        os.close(self.fd)


def create_slots(limit: int) -> list[Slot]:
    """One worker's: the first for inputs, the others for outputs. Raises OSError if there are too many open files."""
    slots: list[Slot] = []
    try:
        slots.extend(Slot.create(limit) for _ in range(1 + OUTPUT_SLOTS))
    except OSError:
        for slot in slots:
            slot.close()
        raise
    return slots


def write_inputs(slot: Slot, specs: Sequence[TensorSpec], requests: Sequence[Request]) -> list[Part]:
    """The requests' rows, stacked input by input: the one copy of bytes that are not padded. Raises as Slot.reserve."""
    parts: list[Part] = []
    pieces = []
    for index, spec in enumerate(specs):
        given = [request.inputs[index] for request in (requests[:1] if spec.rows is None else requests)]
        shape = tuple(given[0].shape)
        data = [tensor.data for tensor in given]
        if len(given) > 1 and (spec.rows or differ_in_length(spec, given)):
            whole = stacked(spec, given)
            shape, data = whole.shape, [tensors.to_bytes(spec.dtype, whole)]
        elif len(given) > 1:
            shape = (sum([tensor.shape[0] for tensor in given]), *shape[1:])
        pieces.append(data)
        parts.append((shape, sum(map(len, data))))
    slot.reserve(end_of(parts), "its inputs")
    memory, at = slot.memory, 0
    assert memory is not None
    for data, (_, count) in zip(pieces, parts, strict=True):
        start = at
        for piece in data:
            memory[start : start + len(piece)] = piece
            start += len(piece)
        at += _aligned(count)
    return parts


def read_inputs(slot: Slot, specs: Sequence[TensorSpec], parts: Sequence[Part]) -> list[Tensor]:
    """The inputs as read-only views of the slot, which hold until the next batch."""
    assert slot.memory is not None
    memory, at, inputs = memoryview(slot.memory).toreadonly(), 0, []
    for spec, (shape, count) in zip(specs, parts, strict=True):
        inputs.append(Tensor(spec.name, spec.dtype, shape, memory[at : at + count]))
        at += _aligned(count)
    return inputs


def write_outputs(slot: Slot, specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> list[Part]:
    """The outputs of a batch, one after the other, BYTES in their wire form. Raises as Slot.reserve and tensors.to_bytes."""
    sources = [
        np.frombuffer(tensors.to_bytes(spec.dtype, array), np.uint8) if spec.dtype is DType.BYTES else array
        for spec, array in zip(specs, arrays, strict=True)
    ]
    parts = [(array.shape, source.nbytes) for array, source in zip(arrays, sources, strict=True)]
    slot.reserve(end_of(parts), "its outputs")
    at = 0
    for source in sources:
        np.copyto(np.ndarray(source.shape, source.dtype, slot.memory, at), source)
        at += _aligned(source.nbytes)
    return parts


class OutputSlots:
    """The slots that a worker writes outputs to, seen from the server, which sends replies straight from them.

    A slot whose outputs are still being read is lent: it is not written again before the last view of it has gone. One slot
    is always free, so where clients are so slow that all others are lent, outputs are copied out.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        self._free = list(range(len(slots)))
        self._lent: dict[int, ref[Array]] = {}

    @property
    def next(self) -> int:
        """The slot for the next batch."""
        return self._free[-1]

    def size(self, number: int) -> int:
        """Of slot `number`, in bytes."""
        return self.slots[number].size

    def read(self, number: int, size: int, specs: Sequence[TensorSpec], parts: Sequence[Part]) -> list[Array]:
        """The outputs in slot `number`, which is `size` bytes large; BYTES elements as bytes."""
        slot = self.slots[number]
        slot.follow(size)
        end = end_of(parts)
        whole: Array = np.frombuffer(slot.memory or b"", np.uint8, end) if end else np.empty(0, np.uint8)
        if end < LEND_FROM_BYTES or len(self._free) == 1:
            whole = whole.copy()
        else:
            self._free.remove(number)
            self._lent[number] = ref(whole, partial(self._returned, number))
        return cut_apart(whole, specs, parts)

    def _returned(self, number: int, view: ref[Array]) -> None:
        """From whichever thread drops the last view: a list's append and a dict's pop are atomic."""
        self._lent.pop(number, None)
        self._free.append(number)


def cut_apart(whole: Array, specs: Sequence[TensorSpec], parts: Sequence[Part]) -> list[Array]:
    """The outputs that stand in these bytes one after the other, as views of them; BYTES elements as bytes."""
    outputs, at = [], 0
    for spec, (shape, count) in zip(specs, parts, strict=True):
        if spec.dtype is DType.BYTES:
            elements = [bytes(element) for element in tensors.elements_of(whole[at : at + count].data)]
            array: Array = np.empty(len(elements), object)
            array[:] = elements
            outputs.append(array.reshape(shape))
        else:
            outputs.append(np.ndarray(shape, tensors.NUMPY[spec.dtype], whole, at))
        at += _aligned(count)
    return outputs


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def end_of(parts: Sequence[Part]) -> int:
    """Bytes that these take, one after the other."""
    return sum([_aligned(count) for _, count in parts])
