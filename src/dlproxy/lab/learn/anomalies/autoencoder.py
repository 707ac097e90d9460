"""An autoencoder over SPAN windows of telemetry, trained on normal ones: what it cannot tell again is unusual.

Called by training.py. Not aware of: scenarios, thresholds.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray

from dlproxy.policy.watch.detectors import SPAN
from dlproxy.policy.watch.features import FEATURES, NAMES

NEWEST = 4  # windows whose error counts: what is older has been judged
SCALE = 3.0  # spreads off the usual that are 1 to the network

Floats = NDArray[np.float32]


class Shape(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of the network, and how it is trained: Adam on mini-batches, stopped by normal windows that it was not trained on."""

    hidden: int = 64
    code: int = 8
    epochs: int = 60
    batch: int = 256
    rate: float = 1e-3
    noise: float = 0.1
    patience: int = 8


class Autoencoder(torch.nn.Module):  # type: ignore[misc]  # of no types
    """[N, SPAN, features] as spreads off the usual; gives [N]: the worst feature's mean error over the NEWEST windows, on the
    side that is bad, as part of its limit.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        wide = SPAN * len(NAMES)
        self.encode = torch.nn.Sequential(
            torch.nn.Linear(wide, shape.hidden), torch.nn.GELU(), torch.nn.Linear(shape.hidden, shape.code)
        )
        self.decode = torch.nn.Sequential(
            torch.nn.Linear(shape.code, shape.hidden), torch.nn.GELU(), torch.nn.Linear(shape.hidden, wide)
        )
        self.register_buffer("limits", torch.ones(len(NAMES)))
        self.register_buffer("sides", torch.tensor([float(FEATURES[name].side) for name in NAMES]))

    def told_again(self, windows: torch.Tensor) -> torch.Tensor:
        """In the network's own scale."""
        return self.decode(self.encode(windows.flatten(1) / SCALE)).reshape(windows.shape)

    def errors(self, windows: torch.Tensor) -> torch.Tensor:
        """[N, features], in spreads."""
        error = (windows - SCALE * self.told_again(windows))[:, -NEWEST:].mean(1)
        return torch.where(self.sides == 0.0, error.abs(), torch.relu(error * self.sides))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return (self.errors(windows) / self.limits).amax(1)


def spans(off: Floats) -> Floats:
    """[windows - SPAN + 1, SPAN, features] of [windows, features]: each ends one window later."""
    view = np.lib.stride_tricks.sliding_window_view(off, SPAN, axis=0)
    return np.ascontiguousarray(view.transpose(0, 2, 1))


def fit(train: Floats, held_out: Floats, shape: Shape, seed: int) -> tuple[Autoencoder, list[float], list[float]]:
    """The network of the best epoch, and the mean squared errors of each on both."""
    torch.manual_seed(seed)
    model, order = Autoencoder(shape), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), shape.rate)
    here, there = torch.from_numpy(train), torch.from_numpy(held_out)
    losses: list[float] = []
    checks: list[float] = []
    best = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(shape.epochs):
        total = 0.0
        for chosen in torch.randperm(len(here), generator=order).split(shape.batch):
            windows = here[chosen]
            noisy = windows + shape.noise * SCALE * torch.randn(windows.shape, generator=order)
            loss = ((model.told_again(noisy) - windows / SCALE) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(windows)
        losses.append(total / len(here))
        with torch.no_grad():
            checks.append(float(((model.told_again(there) - there / SCALE) ** 2).mean()))
        if checks[-1] <= min(checks):
            best = {name: value.clone() for name, value in model.state_dict().items()}
        elif len(checks) - 1 - int(np.argmin(checks)) >= shape.patience:
            break
    model.load_state_dict(best)
    return model.eval(), losses, checks


def errors(model: Autoencoder, off: Floats) -> NDArray[np.float64]:
    """[windows, features] of a scenario; 0 until there are SPAN of them."""
    found = np.zeros(off.shape)
    if len(off) >= SPAN:
        with torch.no_grad():
            found[SPAN - 1 :] = model.errors(torch.from_numpy(spans(off))).numpy()
    return found


def scores(model: Autoencoder, off: Floats) -> NDArray[np.float64]:
    """[windows], as the exported network has them: 1 and more is unusual."""
    worst: NDArray[np.float64] = (errors(model, off) / model.limits.numpy()).max(1)
    return worst


def export(model: Autoencoder, path: Path) -> None:
    """With what a server needs to know of it as properties: see autopilot/watching.py."""
    import onnx

    example = torch.zeros(2, SPAN, len(NAMES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, of its own parts
        program = torch.onnx.export(
            model,
            (example,),
            input_names=["windows"],
            output_names=["score"],
            dynamic_shapes=({0: "rows"},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {"dlproxy.features": ",".join(NAMES), "dlproxy.span": str(SPAN)})
    onnx.save(proto, path)
