"""What the server and a worker process say to each other over their socket: small MessagePack frames, never tensors.

Called by child.py and worker.py. Not aware of: shared memory, processes, event loops.
"""

from struct import Struct as Layout
from typing import Any

import msgspec
from msgspec import Struct

from dlproxy.instance.integrity import Trust
from dlproxy.instance.runtime.content import Content, FileState
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.instance.warmup import Calibration, WarmUp
from dlproxy.message import InSequence, Signature

Part = tuple[tuple[int, ...], int]
"""One tensor in a slot: its shape and how many bytes it takes there."""

_LENGTH = Layout("<I")


class Load(Struct, tag="load", array_like=True):
    """The first order: become able to run batches; answered by Loaded or NotLoaded. `content`: load this and nothing else.

    `trust`: goes this way because others see a process's arguments and environment.
    """

    spec: PythonSpec
    warm_up: WarmUp | None
    cores: tuple[int, ...]
    memory_limit_bytes: int
    max_slot_bytes: int
    content: Content | None = None
    trust: Trust = Trust()


class Run(Struct, tag="run", array_like=True):
    """Run the batch in the input slot, write its outputs to slot `output`; answered by Done. Slots are so large by now.

    `sequences`: of each row, for a model that is told.
    """

    inputs: list[Part]
    input_bytes: int
    output: int
    output_bytes: int
    sequences: list[InSequence] = []


class Next(Struct, tag="next", array_like=True):
    """Compute the next part of the batch, whose last Done said that there may be more, into slot `output`; answered by Done."""

    output: int
    output_bytes: int


class Cease(Struct, tag="cease", array_like=True):
    """No more parts are wanted, which is not answered. One that comes after the end is ignored."""


class Stop(Struct, tag="stop", array_like=True):
    """End."""


class Loaded(Struct, tag="loaded", array_like=True):
    """The model is ready. `calibration`: what warm-up found, if it was asked for; `device`: where it computes, in words;
    `files`: what it was loaded from, if `content` was given.
    """

    signature: Signature
    calibration: Calibration | None
    device: str
    files: dict[str, FileState] = {}


class NotLoaded(Struct, tag="not_loaded", array_like=True):
    """The model cannot be loaded; the worker ends."""

    reason: str


class Done(Struct, tag="done", array_like=True):
    """The batch's outputs are in its slot, which is `output_bytes` large by now, or `error` says why not.

    `traceback`: the text of what BatchResult has as `origin`. `more`: the answers may go on; without `more` and outputs they
    have ended with the part before.
    """

    outputs: list[Part]
    output_bytes: int
    compute_s: float
    error: str | None = None
    traceback: str = ""
    more: bool = False


Order = Load | Run | Next | Cease | Stop
Report = Loaded | NotLoaded | Done

_encoder = msgspec.msgpack.Encoder()


def frame(message: Struct) -> bytes:
    """The message as it goes over the socket: a u32 length and MessagePack."""
    payload = _encoder.encode(message)
    return _LENGTH.pack(len(payload)) + payload


class Frames:
    """Puts messages together again from the pieces in which a stream delivers them. `kinds`: Order or Report."""

    def __init__(self, kinds: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(kinds)
        self._rest = b""

    def feed(self, data: bytes) -> list[Any]:
        """The messages that are complete with these bytes. Raises msgspec.DecodeError for what is none."""
        data = self._rest + data
        messages, at = [], 0
        while len(data) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, at)
            end = at + _LENGTH.size + length
            if end > len(data):
                break
            messages.append(self._decoder.decode(data[at + _LENGTH.size : end]))
            at = end
        self._rest = data[at:]
        return messages
