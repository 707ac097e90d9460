"""The rest of a pipeline's answer, which is that of its last step, in the driver's form. Made by run.py.

Not aware of: who reads it.
"""

from collections.abc import Callable, Sequence

from dlproxy.instance.batch import BatchResult
from dlproxy.message import Failure, Rest, Tensor
from dlproxy.tensors import to_array


class PipelineRest:
    """A BatchRest, and the PartTo of the step's own. `places`: of the pipeline's outputs among the step's."""

    def __init__(self, rest: Rest, places: Sequence[int], stage: str) -> None:
        self._rest = rest
        self._places = places
        self._stage = stage
        self._done: Callable[[BatchResult], None] | None = None

    def ask(self, done: Callable[[BatchResult], None]) -> None:
        self._done = done
        self._rest.ask(self)

    def stop(self) -> None:
        self._rest.stop()

    def part(self, outputs: list[Tensor]) -> None:
        taken = [outputs[place] for place in self._places]
        arrays = [to_array(tensor.dtype, tensor.shape, tensor.data) for tensor in taken]
        self._tell(BatchResult(arrays, 0.0, 0.0, rest=self))

    def ended(self) -> None:
        self._tell(BatchResult([], 0.0, 0.0))

    def failed(self, failure: Failure) -> None:
        failure = Failure(failure.kind, f"{self._stage}: {failure.message}", failure.retry_after_s)
        self._tell(BatchResult([], 0.0, 0.0, failure.message, failure=failure))

    def _tell(self, result: BatchResult) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(result)
