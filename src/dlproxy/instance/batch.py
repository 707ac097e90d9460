"""A batch on its way through a runtime: gather the rows of several requests, run them, cut the rows apart again.

Called by every instance kind, and by serve/driver.py to cut. Not aware of: threads, processes, who asked.
"""

from collections.abc import Sequence
from time import perf_counter

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy import tensors
from dlproxy.instance.runtime import Runtime
from dlproxy.message import Failure, Request, Signature, Tensor, text_of

Array = NDArray[np.generic]


class BatchResult(Struct):
    """Outputs in signature order, or the reason why there are none. Times in seconds.

    `failure`: the error with its kind, where another server said so; None is the model's own failure.
    """

    outputs: list[Array]
    compute_s: float
    batch_s: float
    error: str | None = None
    failure: Failure | None = None


def run_batch(runtime: Runtime, requests: Sequence[Request]) -> BatchResult:
    """Gather, compute, check the outputs. Errors of the model become `error`: only the instance's own death raises."""
    started_at = perf_counter()
    try:
        inputs = gather(runtime.signature, requests)
        compute_at = perf_counter()
        outputs = runtime.run(inputs)
        finished_at = perf_counter()
        _check_outputs(runtime.signature, outputs, inputs)
    except Exception as error:
        return BatchResult([], 0.0, perf_counter() - started_at, text_of(error))
    return BatchResult(outputs, finished_at - compute_at, compute_at - started_at)


def raised(error: BaseException) -> BatchResult:
    """The result where `run_batch` itself has raised, as by sys.exit() in a model's own code: whoever waits must hear of it."""
    return BatchResult([], 0.0, 0.0, f"the model raised {type(error).__name__}: {text_of(error)}")


def gather(signature: Signature, requests: Sequence[Request]) -> list[Array]:
    """The inputs of all requests, stacked along axis 0: one array per input, one copy of the bytes (none if alone)."""
    arrays = []
    for index, spec in enumerate(signature.inputs):
        first = requests[0].inputs[index]
        if len(requests) == 1:
            arrays.append(tensors.to_array(spec.dtype, first.shape, first.data))
            continue
        rows = sum([request.inputs[index].shape[0] for request in requests])
        data = b"".join([request.inputs[index].data for request in requests])
        arrays.append(tensors.to_array(spec.dtype, (rows, *first.shape[1:]), data))
    return arrays


class Cutter:
    """Cuts each request's rows out of a finished batch, in the order in which they were gathered, without copying."""

    def __init__(self, signature: Signature, outputs: Sequence[Array]) -> None:
        self._batched = signature.batched
        self._parts = [
            (spec, array.shape[1:], array, *tensors.bytes_per_row(spec.dtype, array))
            for spec, array in zip(signature.outputs, outputs, strict=True)
        ]

    def cut(self, start: int, rows: int, wanted: Sequence[int]) -> list[Tensor]:
        """The wanted outputs (by index) of `rows` rows from row `start`; all of it if the model does not batch."""
        cut = []
        for index in wanted:
            spec, row_shape, array, data, row_bytes = self._parts[index]
            if not self._batched:
                cut.append(Tensor(spec.name, spec.dtype, array.shape, tensors.to_bytes(spec.dtype, array)))
            elif data is None:  # BYTES: rows differ in length
                part = array[start : start + rows]
                cut.append(Tensor(spec.name, spec.dtype, part.shape, tensors.to_bytes(spec.dtype, part)))
            else:
                view = data[start * row_bytes : (start + rows) * row_bytes]
                cut.append(Tensor(spec.name, spec.dtype, (rows, *row_shape), view))
        return cut


def _check_outputs(signature: Signature, outputs: Sequence[Array], inputs: Sequence[Array]) -> None:
    """What passes here can be cut apart. Raises ValueError."""
    if len(outputs) != len(signature.outputs):
        raise ValueError(f"the model gave {len(outputs)} outputs where it declares {len(signature.outputs)}")
    for spec, array in zip(signature.outputs, outputs, strict=True):
        if array.dtype != tensors.NUMPY[spec.dtype]:
            raise ValueError(f"output '{spec.name}' is {array.dtype} where the model declares {spec.dtype.value}")
        if signature.batched and (not array.shape or array.shape[0] != inputs[0].shape[0]):
            rows = inputs[0].shape[0]
            raise ValueError(f"output '{spec.name}' has shape {list(array.shape)} for a batch of {rows} rows")
