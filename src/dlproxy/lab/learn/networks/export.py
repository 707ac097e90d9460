"""A trained network as an ONNX file that takes what clients have and answers with what they want, compared with the network.

Called by training.py, gan.py and by other parts with networks of their own. Not aware of: training, data sets.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dlproxy.compress import CompressError
from dlproxy.compress.recipes.torch import export as onnx_files
from dlproxy.lab.learn.experiment import LearnError
from dlproxy.lab.learn.networks.data import Scale

CLOSE = 1e-4  # of the largest answer


class Served(nn.Module):  # type: ignore[misc]
    """A network between raw inputs [n, ...] and answers: `probabilities` of classes, or values in the unit of the targets.

    `view`: the shape in which the network wants an example. `back`: how its answers become values [n, *shape]; None: they are
    scores of classes.
    """

    def __init__(
        self,
        network: nn.Module,
        scale: Scale,
        *,
        view: tuple[int, ...],
        back: Scale | None = None,
        shape: tuple[int, ...] = (1,),
    ) -> None:
        super().__init__()
        self.network = network
        self.view, self.shape, self.scores = view, shape, back is None
        for name, one in (("before", scale), ("after", back or Scale(np.zeros(1, np.float32), np.ones(1, np.float32)))):
            self.register_buffer(f"{name}_mean", torch.from_numpy(one.mean))
            self.register_buffer(f"{name}_deviation", torch.from_numpy(one.deviation))

    def seen(self, given: Any) -> Any:
        """What the network sees of raw inputs."""
        return ((given - self.before_mean) / self.before_deviation).reshape(-1, *self.view)

    def forward(self, given: Any) -> Any:
        answer = self.network(self.seen(given))
        if self.scores:
            return answer.softmax(-1)
        return answer.reshape(-1, *self.shape) * self.after_deviation + self.after_mean


def export(module: nn.Module, path: Path, examples: Sequence[Any], *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Write `path`; axis 0 is free. `examples`: the tensors of a few rows, one for each input.

    Raises LearnError if ONNX Runtime's answers are not the module's, to all of them at once and to one alone.
    """
    try:
        onnx_files.export(module, path, examples, inputs=inputs, outputs=outputs, close=CLOSE)
    except CompressError as error:
        raise LearnError(str(error)) from error
