"""What a model's tensors are and how long its nodes take, found out by running it on real shapes.

Called by search.py. Not aware of: where it is cut.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from dlproxy.compress import CompressError
from dlproxy.compress.data import Array
from dlproxy.compress.recipes.graphs import Model, library
from dlproxy.compress.split.graph import Carried
from dlproxy.instance.evidence import UnsuitableError, examine
from dlproxy.instance.made_up import NORMAL, Known, joined, row_of
from dlproxy.instance.runtime.onnx import OnnxRuntime
from dlproxy.message import Signature
from dlproxy.tensors import NUMPY

Feed = Mapping[str, Array]

AT_ONCE = 64  # tensors that are looked at in one run: all of them would take the memory of a whole training step
RUNS, LEAST_S = 5, 0.3  # of a measurement: so many at least, and so long
PROFILED = 5
_QUIET = 4

DENSE = {onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in NUMPY.values() if np.dtype(kind).kind != "O"}


class Examples:
    """Inputs of a model as it is served: its own examples, or made-up ones of the shapes that it takes."""

    def __init__(self, path: Path, samples: Sequence[Feed] = ()) -> None:
        """Raises CompressError for a model that takes no inputs that can be thought of, and ModelError."""
        runtime = OnnxRuntime(path, threads=1)
        try:
            found = examine(runtime, samples=samples)
        except UnsuitableError as error:
            raise CompressError(f"it takes no inputs that are made up ({error}): give some, --data FILE.npz") from None
        self.signature: Signature = found.signature
        self.why_alone = found.why
        self._known = found.known
        self._samples = samples
        self.stretches = self._is_open and self._takes(runtime, self.batch(1, free=self.other_size()))
        """Whether an axis beside that of the rows may vary, and does."""

    @property
    def batched(self) -> bool:
        return self.signature.batched

    @property
    def _is_open(self) -> bool:
        return any(
            size < 0 and not (self.batched and place == spec.rows)
            for spec in self.signature.inputs
            for place, size in enumerate(spec.shape)
        )

    def _takes(self, runtime: OnnxRuntime, feed: Feed) -> bool:
        """Some exporters declare sizes open that are not."""
        try:
            runtime.run([feed[spec.name] for spec in self.signature.inputs])
        except RuntimeError:
            return False
        return True

    def batch(self, rows: int, *, draw: int = 0, free: int = 0) -> dict[str, Array]:
        """Of so many rows, each another. `free`: a size of what may vary, beside what is usual for the model."""
        specs = self.signature.inputs
        known = Known(free, self._known.below, self._known.words) if free else self._known
        made = []
        for row in range(rows if self.batched else 1):
            number = draw * rows + row
            sample = self._samples[number % len(self._samples)] if self._samples and not free else None
            made.append(row_of(specs, NORMAL, known, sample, draw=number))
        return {spec.name: array for spec, array in zip(specs, joined(specs, made), strict=True)}

    def other_size(self) -> int:
        """For what may vary."""
        return max(self._known.free - 1, 1) if self._known.free != 2 else 3


def session_of(model: Model | bytes, *, plain: bool = False, profile: Path | None = None) -> Any:
    """On one thread. `plain`: nodes as they are, not fused."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    given = model if isinstance(model, bytes) else model.SerializeToString()
    with library("ONNX Runtime cannot load it"):
        return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def carried_by(model: Model, examples: Examples) -> dict[str, Carried]:
    """Tensors that can go from part to part: dense ones and, where rows share batches, those with the rows on axis 0."""
    rows = (2, 3) if examples.batched else (1,)
    feeds = [examples.batch(count) for count in rows]
    if examples.stretches:
        feeds.append(examples.batch(rows[0], free=examples.other_size()))
    names = [name for node in model.graph.node for name in node.output if name]
    inner = [name for name in names if name not in {one.name for one in model.graph.output}]
    found: dict[str, Carried] = {}
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        looked = onnx.ModelProto()
        looked.CopyFrom(model)
        looked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in some if name in inner)
        session = session_of(looked)
        with library("it cannot be run on such inputs"):
            answers = [session.run(some, dict(feed)) for feed in feeds]
        for name, *arrays in zip(some, *answers, strict=True):
            if (carried := _carried(arrays, rows)) is not None:
                found[name] = carried
    for spec in examples.signature.inputs:
        arrays = [feed[spec.name] for feed in feeds]
        kind = onnx.helper.np_dtype_to_tensor_dtype(arrays[0].dtype) if arrays[0].dtype != object else onnx.TensorProto.STRING
        found[spec.name] = Carried(kind, spec.shape, _row_bytes(arrays[0], rows[0]))
    return found


def _carried(arrays: Sequence[Any], rows: Sequence[int]) -> Carried | None:
    first = arrays[0]
    if any(not isinstance(array, np.ndarray) or array.dtype == object for array in arrays) or not first.size:
        return None
    if any(array.ndim != first.ndim or array.dtype != first.dtype for array in arrays):
        return None
    kind = onnx.helper.np_dtype_to_tensor_dtype(first.dtype)
    if kind not in DENSE:
        return None
    shape = [size if all(array.shape[place] == size for array in arrays) else -1 for place, size in enumerate(first.shape)]
    if len(rows) > 1:
        pairs = [array.shape for array in arrays[: len(rows)]]
        if not first.ndim or any(one[0] != count for one, count in zip(pairs, rows, strict=True)):
            return None
        if any(one[1:] != pairs[0][1:] for one in pairs):
            return None
        shape[0] = -1
    return Carried(kind, tuple(shape), _row_bytes(first, rows[0]))


def _row_bytes(array: Array, rows: int) -> int:
    size = sum(len(text) for text in array.ravel().tolist()) if array.dtype == object else array.nbytes
    return size // rows


def node_seconds(model: Model, feed: Feed, folder: Path) -> list[float]:
    """Of each node of the model, in order, one after the other as they are: ONNX Runtime's own profile, the median of runs."""
    session = session_of(model, plain=True, profile=folder / "profile")
    with library("it cannot be profiled"):
        for _ in range(PROFILED + 1):
            session.run(None, dict(feed))
        written = Path(session.end_profiling())
    try:
        events = json.loads(written.read_bytes())
    finally:
        written.unlink()
    found = defaultdict[str, list[float]](list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found[event["name"].removesuffix("_kernel_time")].append(event["dur"] / 1e6)
    if not found:
        raise CompressError("this build of ONNX Runtime does not profile nodes, and no cut is made without measured times")
    return [median(found[node.name][-PROFILED:]) if node.name in found else 0.0 for node in model.graph.node]


def seconds_of(session: Any, feed: Feed) -> float:
    """Of CPU time for one run, the least of several: what others do on the machine meanwhile does not count."""
    session.run(None, dict(feed))
    found: list[float] = []
    while len(found) < RUNS or sum(found) < LEAST_S:
        began_s = thread_time()
        session.run(None, dict(feed))
        found.append(thread_time() - began_s)
    return min(found)
