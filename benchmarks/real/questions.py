"""The requests for one model, with ONNX Runtime's own answers, as bytes for a load and as a check before it.

Not aware of: how they are sent in a load.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.harness.processes import BenchmarkError
from benchmarks.harness.sample import Sample, connect, sample_of
from benchmarks.ort_loop import Feed, open_session, read_feeds
from benchmarks.real.fetch import Made
from dlproxy.lab.load.payload import whole_request

HOST = "127.0.0.1"
TOLERANCE = 1e-3  # of an output's largest value: kernels for other batch sizes and more threads sum in other orders


def samples_for(made: Made) -> list[Sample]:
    """In an order that mixes sizes. Outputs that are no tensors, such as sequences of maps, are not asked for."""
    session = open_session(made.model)
    names = [output.name for output in session.get_outputs() if output.type.startswith("tensor(")]
    feeds = read_feeds(made.requests)
    order = np.random.default_rng(len(feeds)).permutation(len(feeds))
    return [_sample(made.model.stem, session, names, feeds[number]) for number in order]


def _sample(model: str, session: object, names: Sequence[str], feed: Feed) -> Sample:
    answers = session.run(names, feed)  # type: ignore[attr-defined]
    return sample_of(model, feed, dict(zip(names, answers, strict=True)), tolerance=TOLERANCE)


def write_requests(samples: Sequence[Sample], path: Path) -> Path:
    """For client.py."""
    requests = [whole_request(sample.path, HOST, (sample.body, sample.headers)) for sample in samples]
    path.write_bytes(msgspec.msgpack.encode(requests))
    return path


def check_answers(samples: Sequence[Sample], port: int, clients: int) -> None:
    """Every request once alone, then all of them again, so many at a time: those of one size together, to meet in batches.

    Raises BenchmarkError.
    """
    for sample in samples:
        with _saying("alone"):
            sample.check_answer(port)
    by_size = sorted(samples, key=lambda sample: len(sample.body))
    for start in range(0, len(by_size), clients):
        _check_together(by_size[start : start + clients], port)


def _check_together(samples: Sequence[Sample], port: int) -> None:
    """All are sent before an answer is read, on open connections: those that find the first under way share a batch."""
    with ExitStack() as entered, _saying(f"beside {len(samples) - 1} others"):
        connections = [entered.enter_context(closing(connect(port))) for _ in samples]
        for sample, connection in zip(samples, connections, strict=True):
            sample.ask(connection)
        for sample, connection in zip(samples, connections, strict=True):
            sample.judge(connection)


@contextmanager
def _saying(how: str) -> Iterator[None]:
    try:
        yield
    except BenchmarkError as error:
        raise BenchmarkError(f"{how}: {error}") from error
