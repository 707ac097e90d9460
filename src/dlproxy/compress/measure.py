"""What models answer, how quick they are and what they take, loaded as dlproxy serves them; whether one can stand for another.

Called by search.py, through child.py. Not aware of: recipes, metrics, the gate's bar.
"""

import gc
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from msgspec import Struct

from dlproxy.compress import CompressError
from dlproxy.compress.data import Array
from dlproxy.compress.gate import Footprint, Speed
from dlproxy.compress.statistics import LEAST_ROUNDS, speed
from dlproxy.instance import evidence
from dlproxy.instance.runtime.content import model_files
from dlproxy.instance.runtime.declared import described, written
from dlproxy.instance.runtime.formats import open_runtime
from dlproxy.message import Signature, TensorSpec
from dlproxy.tensors import to_array

Batch = Mapping[str, Array]

WANTED_ROUNDS = 11
MOST_ROUNDS = 300
ROUNDS_AT_ONCE = 10  # before it is looked whether they are enough
NARROW = 0.05  # of the ratio: a twentieth decides nothing
BLOCK_S = 0.01  # a turn lasts so long: a millisecond alone may be what an interrupt makes of it
MOST_IN_BLOCK = 64
LONG_S = 0.1
BATCHES = 8  # that differ
LOADS = 5
MEMORY_RUNS = 3
MOST_SAMPLES = 16  # examples by which it is found out whether rows meet
SAME = 1e-4  # of the largest value: what another order of sums does to float32


class Answers(Struct, frozen=True):
    """Of a model to the examples, all in one array for each output. `odd`: how many elements of each are no finite number."""

    signature: Signature
    outputs: dict[str, Array]
    odd: dict[str, int]


class Task(Struct, frozen=True, kw_only=True):
    """How models are examined: with these examples, by batches of `rows`. `race_s`: about, for each batch size."""

    inputs: dict[str, Array]
    rows: int = 32
    threads: int = 1
    race_s: float = 4.0
    seed: int = 0


class Original(Struct, frozen=True):
    """With what a candidate is compared where it is examined: no values, which would take long on the way there.

    `together`: whether its rows share batches.
    """

    path: Path
    signature: Signature
    together: bool
    shapes: dict[str, tuple[int, ...]]
    odd: dict[str, int]

    @staticmethod
    def of(path: Path, found: "Examined") -> "Original":
        answers = found.answers
        shapes = {name: array.shape for name, array in answers.outputs.items()}
        return Original(path, answers.signature, not found.apart, shapes, answers.odd)


class Examined(Struct, frozen=True):
    """What was found. `apart`: why dlproxy runs its rows one by one, empty if it does not; a batch then takes as long as its
    rows do. `speeds`: beside the original, of batch 1 and, if it takes more than one row, of the larger batch.
    """

    footprint: Footprint
    answers: Answers
    apart: str = ""
    speeds: tuple[Speed, ...] = ()


class Unfit(Struct, frozen=True):
    """It cannot stand for the original, however quick it is; `why`, in words."""

    why: str


class Served:
    """A model loaded as dlproxy serves it: where rows of a batch were found to depend on one another, they run one by one."""

    def __init__(self, path: Path, task: Task) -> None:
        """Raises ModelError."""
        self._runtime = open_runtime(str(path), threads=task.threads, max_batch=task.rows)
        self.signature = self._runtime.signature
        self.apart = ""

    def look(self, task: Task) -> None:
        """Find out whether rows may share a batch, from examples and what dlproxy itself tries."""
        rows = range(min(MOST_SAMPLES, _examples(task.inputs)))
        samples = [{name: array[row : row + 1] for name, array in task.inputs.items()} for row in rows]
        try:
            found = evidence.examine(self._runtime, samples=samples)
        except evidence.UnsuitableError as error:
            self.apart = str(error)
            return
        if not found.signature.batched:
            self.apart = found.why or "it takes one row at a time"

    def ask(self, batch: Batch) -> list[Array]:
        """Answers in the signature's order. Raises CompressError in the runtime's words."""
        rows = _examples(batch)
        try:
            if not self.apart or rows == 1:
                return self._run(batch)
            singles = [self._run({name: array[row : row + 1] for name, array in batch.items()}) for row in range(rows)]
            return [np.concatenate(arrays) for arrays in zip(*singles, strict=True)]
        except Exception as error:
            raise CompressError(f"does not answer a batch of {rows}: {error}") from error

    def _run(self, batch: Batch) -> list[Array]:
        """Inputs that the examples leave out have their defaults."""
        return self._runtime.run(
            [
                batch[spec.name]
                if spec.default is None or spec.name in batch
                else to_array(spec.dtype, spec.shape, spec.default)
                for spec in self.signature.inputs
            ]
        )


def examine(tell: Callable[[str], None], path: Path, task: Task, original: Original | None = None) -> Examined | Unfit:
    """Asks for a process that has loaded no model yet. Raises CompressError and ModelError for one that does not run."""
    tell("loading")
    weighed = _weighed(path, task, original)
    if isinstance(weighed, Unfit):
        return weighed
    footprint, served = weighed
    tell(f"answering {_examples(task.inputs):,} examples")
    found = answers(served, task)
    if original is None:
        return Examined(footprint, found, served.apart)
    if why := unlike(original, found):
        return Unfit(why)
    other = Served(original.path, task)
    other.apart = "" if original.together else "as was found before"
    speeds = []
    for rows in [1] if any(spec.shape[:1] == (1,) for spec in original.signature.inputs) else sorted({1, task.rows}):
        tell(f"racing the original, {rows} a batch")
        speeds.append(race(other, served, drawn_batches(task, rows), seconds=task.race_s, seed=task.seed))
    return Examined(footprint, found, served.apart, tuple(speeds))


def answers(served: Served, task: Task) -> Answers:
    """To all examples, by batches. Raises CompressError."""
    signature, inputs = served.signature, task.inputs
    examples = _examples(inputs)
    starts = range(0, examples, task.rows)
    parts = [served.ask({name: array[start : start + task.rows] for name, array in inputs.items()}) for start in starts]
    outputs = {}
    for number, spec in enumerate(signature.outputs):
        arrays = [part[number] for part in parts]
        if any(array.ndim == 0 for array in arrays) or sum(map(len, arrays)) != examples:
            raise CompressError(f"gives {described(arrays[0])} as '{spec.name}', which has not one row for each example")
        if len({array.shape[1:] for array in arrays}) > 1:
            raise CompressError(
                f"gives '{spec.name}' in shapes that differ from batch to batch: pad the examples to one length"
            )
        outputs[spec.name] = np.concatenate(arrays)
    return Answers(signature, outputs, {name: _odd(array) for name, array in outputs.items()})


def differs(original: Signature, candidate: Signature) -> str:
    """Why the candidate cannot be asked in the original's place; empty if it can."""
    for kind in ("inputs", "outputs"):
        theirs: tuple[TensorSpec, ...] = getattr(candidate, kind)
        ours: tuple[TensorSpec, ...] = getattr(original, kind)
        by_name = {spec.name: spec for spec in theirs}
        if {spec.name for spec in ours} != by_name.keys():
            return f"its {kind} are {', '.join(by_name)}; the original's are {', '.join(spec.name for spec in ours)}"
        for spec in ours:
            if not _stands_for(spec, by_name[spec.name], exactly=kind == "inputs"):
                return f"its '{spec.name}' is {written(by_name[spec.name])}; the original's is {written(spec)}"
    return ""


def unlike(original: Original, candidate: Answers) -> str:
    """Why its answers cannot stand for the original's, whatever their accuracy; empty if they can."""
    for name, shape in original.shapes.items():
        if candidate.outputs[name].shape != shape:
            return f"its '{name}' is of shape {candidate.outputs[name].shape} for the examples; the original's of {shape}"
        if candidate.odd[name] > original.odd[name]:
            return f"its '{name}' holds {candidate.odd[name]:,} values that are infinite or no number"
    return ""


def alike(original: Answers, candidate: Answers) -> bool:
    """Whether outputs differ by no more than rounding does: such a candidate can be gone on from as from the original."""
    for name, array in original.outputs.items():
        other = candidate.outputs[name]
        if array.dtype.kind != "f":
            same = bool(np.array_equal(array, other))
        else:
            finite = array[np.isfinite(array)]
            scale = float(np.abs(finite).max(initial=0.0))
            same = bool(np.allclose(array, other, rtol=0.0, atol=SAME * scale, equal_nan=True))
        if not same:
            return False
    return True


def race(original: Served, candidate: Served, batches: Sequence[Batch], *, seconds: float, seed: int) -> Speed:
    """In turns, each round on the next batch, the first run of each turn not counted: threads of the other may still spin.

    At least 11 rounds, or 6 if those take three times `seconds`; then until the ratio is known to 5 %, or the time is up.
    """
    rows = _examples(batches[0])
    both = (original, candidate)
    repeats = [_repeats(served, batches[0]) for served in both]
    times: tuple[list[float], list[float]] = ([], [])
    began_at = perf_counter()
    while True:
        rounds, took = len(times[0]), perf_counter() - began_at
        if rounds >= (LEAST_ROUNDS if took > 3 * seconds else WANTED_ROUNDS):
            found = speed(rows, *times, seed=seed)
            if took > seconds or rounds >= MOST_ROUNDS or found.high - found.low <= NARROW * found.ratio:
                return found
        for _ in range(ROUNDS_AT_ONCE if rounds >= WANTED_ROUNDS and took < seconds else 1):
            batch = batches[len(times[0]) % len(batches)]
            for number in (0, 1) if len(times[0]) % 2 else (1, 0):
                times[number].append(_turn(both[number], batch, repeats[number]))


def file_bytes(path: Path) -> int:
    """On the disk, with the files that hold its weights."""
    return sum(os.path.getsize(file) for file in model_files(str(path)))


def resident_bytes() -> int:
    """Of this process: what it holds now where the system tells, else the most that it ever held."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def _weighed(path: Path, task: Task, original: Original | None) -> tuple[Footprint, Served] | Unfit:
    """What the framework takes is not counted; what it keeps for reuse is. Loaded from files that the system has in memory."""
    importlib.import_module("dlproxy.instance.runtime.onnx")
    gc.collect()
    before = resident_bytes()
    served, first_s = _loaded(path, task)
    if original is not None and (why := differs(original.signature, served.signature)):
        return Unfit(why)
    served.look(task)
    batch = drawn_batches(task, task.rows)[0]
    for _ in range(MEMORY_RUNS):
        served.ask(batch)
    taken = resident_bytes() - before
    times = [first_s, *(_loaded(path, task)[1] for _ in range(LOADS - 1))]
    return Footprint(file_bytes(path), median(times), max(taken, 0)), served


def _loaded(path: Path, task: Task) -> tuple[Served, float]:
    began_at = perf_counter()
    return Served(path, task), perf_counter() - began_at


def _examples(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def drawn_batches(task: Task, rows: int) -> list[Batch]:
    """To race with: drawn from the examples; where they are fewer, some twice."""
    examples = _examples(task.inputs)
    rng = np.random.default_rng(task.seed)
    drawn = [rng.choice(examples, rows, replace=rows > examples) for _ in range(BATCHES)]
    return [{name: array[chosen] for name, array in task.inputs.items()} for chosen in drawn]


def _stands_for(spec: TensorSpec, other: TensorSpec, *, exactly: bool) -> bool:
    """`exactly`: sizes count, too; what a file says of its outputs' is often vague."""
    same = spec.dtype is other.dtype and len(spec.shape) == len(other.shape)
    return same and (not exactly or all(theirs in (-1, size) for size, theirs in zip(spec.shape, other.shape, strict=True)))


def _repeats(served: Served, batch: Batch) -> int:
    """Runs of a turn; 0 where one is so long that what the other model left behind does not matter."""
    served.ask(batch)
    once_s = min(_turn(served, batch, 0) for _ in range(2))
    return 0 if once_s > LONG_S else min(max(round(BLOCK_S / once_s), 1), MOST_IN_BLOCK)


def _turn(served: Served, batch: Batch, repeats: int) -> float:
    """Median seconds of as many runs after a first one, of that one if there are no more. Rows that run one by one take as
    long as the median of them, times their number: what else the machine does meanwhile would stretch their sum alone.
    """
    rows = _examples(batch)
    if not served.apart or rows == 1:
        return median([_time(served, batch) for _ in range(1 + repeats)][bool(repeats) :])
    singles = [{name: array[row : row + 1] for name, array in batch.items()} for row in range(rows)]
    return rows * median([_time(served, single) for single in singles])


def _time(served: Served, batch: Batch) -> float:
    began_at = perf_counter()
    served.ask(batch)
    return perf_counter() - began_at


def _odd(array: Array) -> int:
    """Of text, none."""
    return int(array.size - np.isfinite(array).sum()) if array.dtype.kind in "fc" else 0
