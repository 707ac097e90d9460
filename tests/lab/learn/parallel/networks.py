"""What the tests of several workers train: digits by a small perceptron without chance of its own."""

import os
import signal
from collections.abc import Callable
from typing import Any

from dlproxy.lab.learn.experiment import Experiment

SETTINGS: dict[str, Any] = {"data": "digits", "network": "mlp", "sizes": [16], "examples": 200, "batch": 33, "l2": 1e-3}


def experiment(**settings: Any) -> Experiment:
    return Experiment(kind="network", about="for tests", seeds=1, settings=SETTINGS | settings, name="small")


def trained(one: Experiment, workers: Any = None) -> tuple[list[Any], list[float]]:
    """Its weights, and the loss of each epoch."""
    import msgspec

    from dlproxy.compress.recipes.torch.training import reproducible
    from dlproxy.lab.learn.networks import data as sets
    from dlproxy.lab.learn.networks.training import Settings, learn

    data = sets.load("digits")
    with reproducible(seed=1, threads=1):
        wanted = msgspec.convert(one.settings, Settings)
        found = learn(data, sets.held_out(data)[0], wanted, seed=1, workers=workers)
    weights = [weight.detach().clone() for weight in found.served.network.parameters()]
    return weights, found.curves["training loss"]


class Killing:
    """Workers, of which a process is killed after so many epochs."""

    leads = True

    def __init__(self, workers: Any, pid: int, after: int) -> None:
        self._workers, self._pid, self._after = workers, pid, after

    def epochs(self, *given: Any) -> Callable[[], float]:
        epoch = self._workers.epochs(*given)

        def killing() -> float:
            if not self._after:
                os.kill(self._pid, signal.SIGKILL)
            self._after -= 1
            return float(epoch())

        return killing

    def figures(self) -> dict[str, float]:
        return dict(self._workers.figures())
