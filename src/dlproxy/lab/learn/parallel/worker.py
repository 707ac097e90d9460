"""A worker other than the first: `python -m dlproxy.lab.learn.parallel.worker`, with its task on stdin, or an actor of ray.py.

It trains what the first trains, and keeps nothing. Not aware of: what becomes of the network.
"""

import sys
import tempfile
from pathlib import Path

import msgspec

from dlproxy.lab.learn.experiment import KINDS, LearnError, Place
from dlproxy.lab.learn.parallel.synchronous import Task, joined


def work(task: Task) -> None:
    """Until all seeds are done. Raises LearnError."""
    train = KINDS[task.experiment.kind].train()
    one = joined(task)
    with tempfile.TemporaryDirectory() as folder:
        for seed in task.seeds:
            place = Place(folder=Path(folder), seed=seed, threads=task.threads, tell=_nobody, workers=one)
            train(task.experiment, place)
    one.close()


def _nobody(_: str) -> None:
    """The first worker tells."""


if __name__ == "__main__":
    try:
        work(msgspec.json.decode(sys.stdin.buffer.read(), type=Task))
    except LearnError as error:
        sys.exit(str(error))
