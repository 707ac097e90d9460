"""What a training with several workers is asked for, and who steps with whom.

Called by lab/learn/train.py and networks/fit.py. Not aware of: how gradients travel (synchronous.py, asynchronous.py).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from math import inf
from typing import Any, Protocol

from msgspec import Struct

from dlproxy.lab.learn.experiment import Experiment, LearnError

KINDS = ("network",)  # of experiments: what descends one loss by networks/fit.py


class Parallel(Struct, frozen=True, kw_only=True):
    """`staleness`: how many steps a worker may be ahead of the slowest, of asynchronous ones. `ray`: the cluster whose nodes
    the workers are on ("local": one that is started for it, "auto": the one that runs here); empty: processes of this machine.
    """

    workers: int
    asynchronous: bool = False
    staleness: float = inf
    ray: str = ""


class Workers(Protocol):
    """Of one training."""

    leads: bool
    """Whether this process measures and writes; else it only steps."""

    def epochs(self, network: Any, inputs: Any, targets: Any, loss: Any, how: Any, augment: Any) -> Callable[[], float]:
        """Trains an epoch and returns its mean loss; the weights are in `network`. Raises LearnError, if workers are lost."""
        ...

    def figures(self) -> dict[str, float]:
        """Of all epochs so far: "examples a second", and of asynchronous ones how stale gradients were."""
        ...


@contextmanager
def opened(
    parallel: Parallel, experiment: Experiment, seeds: Sequence[int], threads: int, tell: Callable[[str], None]
) -> Iterator[Workers]:
    """While the workers are there. Raises LearnError."""
    if experiment.kind not in KINDS or experiment.settings.get("network") == "gan":
        raise LearnError(f"{experiment.name} is trained by one worker only: --workers is for one network that descends a loss")
    if (parallel.ray or parallel.asynchronous) and find_spec("ray") is None:
        raise LearnError("this needs ray: pip install 'dlproxy[ray]'")
    if parallel.asynchronous:
        from dlproxy.lab.learn.parallel.asynchronous import server

        with server(parallel, threads, tell) as workers:
            yield workers
    else:
        from dlproxy.lab.learn.parallel.synchronous import group

        with group(parallel, experiment, seeds, threads) as workers:
            yield workers
