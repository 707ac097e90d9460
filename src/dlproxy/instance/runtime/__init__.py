"""How a batch runs: one file per framework. A runtime is synchronous and used by one batch at a time.

Called by instance/batch.py. What other packages add is made of the same parts. Not aware of: threads, batches, requests.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.message import InSequence, Signature, TensorSpec

if TYPE_CHECKING:
    from dlproxy.instance import Instance
    from dlproxy.instance.integrity.files import ModelFiles

TELEMETRY_OFF = ("ORT_DISABLE_TELEMETRY", "1")
"""For the environment, before anything imports ONNX Runtime, which else reports to its maker (since 1.29 on Linux too)
and keeps a device id and a store of events below the home folder. The operator's own setting stays."""


class ModelError(Exception):
    """A model that cannot be loaded; the message says which file, what is wrong with it and what would be right."""


class Runtime(Protocol):
    """A loaded model. It may say where it computes (`device: str`) and, where its path does not tell, what it was loaded from
    (`files: list[str]`), and have a `close()` to call at the end. If `signature.told_sequences`, `run` and `steps` also take
    `sequences`, an InSequence for each row; without, each row is one of its own.
    """

    signature: Signature

    def run(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Compute. Inputs and outputs in signature order; may raise anything, which fails this batch only."""
        ...


class StreamingRuntime(Runtime, Protocol):
    """A model whose answers may come in parts, as `signature.streams` says. Its `run` gives the whole answer, joined."""

    def steps(self, inputs: Sequence[NDArray[np.generic]]) -> Iterator[list[NDArray[np.generic]]]:
        """The answer part by part, each with all outputs, computed when it is asked for. Closed if no more is wanted."""
        ...


def alone(place: int) -> InSequence:
    """The sequence of a row that is of none: no other in its batch is the same, nor any client's."""
    return InSequence(-1 - place, start=True, end=True)


class Order(Struct, frozen=True, kw_only=True):
    """A model to load: the knobs of the same names, of several devices one. `inputs`, `outputs`: what the configuration
    declares. `files`: its contents, if they were checked or decrypted, to load in place of what lies at `path`; another
    package's format gets a `path` that leads to them. `pickle`: whether code may run when the model is read.
    `graphs`: a folder for what ONNX Runtime has made of the model, for the next start; empty: none.
    """

    path: str
    threads: int = 1
    device: str = "cpu"
    gpu_memory_limit_mb: int = 0
    max_batch: int = 256
    inputs: Sequence[TensorSpec] = ()
    outputs: Sequence[TensorSpec] = ()
    files: "ModelFiles | None" = None
    pickle: bool = False
    graphs: str = ""


class Format(Struct, frozen=True, kw_only=True):
    """A kind of models. `open` raises ModelError; what it needs is imported when it is called.

    `apart`: models run in processes of their own unless they are told otherwise, as their code is the user's, or holds the
    GIL, or sets the threads of the whole process. `threads_pay`: whether more threads may make a batch quicker, so that it is
    tried out. `finds_device`: in a process that sees but one, the model chooses it by itself.
    """

    name: str
    open: Callable[[Order], Runtime]
    apart: bool = True
    threads_pay: bool = False
    finds_device: bool = False


class DeviceKind(Struct, frozen=True, kw_only=True):
    """Devices that another package knows, in a configuration NAME or NAME:N. `count`: how many this process can use.

    `variable`: environment variable with the numbers of those that a process sees. `provider`, `options`: ONNX Runtime's, if
    ONNX models run there. `instance`: runs the batches of a model that is in this process, instead of a thread.
    """

    count: Callable[[], int]
    variable: str = ""
    provider: str = ""
    options: Callable[[int], Mapping[str, str]] = lambda number: {"device_id": str(number)}
    instance: "Callable[[str, Runtime], Instance] | None" = None
