"""The network: an LSTM beside a linear map of the same window, which gives quantiles that never cross; trained, and as ONNX.

Called by training.py. Not aware of: where the arrivals come from, what it is compared with.
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import torch
from msgspec import Struct
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import softplus

from dlproxy.fleet.forecasts import FORM, INPUTS, OUTPUT
from dlproxy.lab.learn.forecast.series import Examples
from dlproxy.policy.forecast import Form

Floats = NDArray[np.float64]
CHANNELS = 2  # rate and burstiness
FAR = 12.0  # of a logarithm: what is beyond is nothing that a network should say


class Fit(Struct, frozen=True, kw_only=True):
    """How it is trained. `seen`: the last steps that it sees one by one. `patience`: epochs without progress on validation."""

    hidden: int = 24
    seen: int = 24
    epochs: int = 8
    patience: int = 4
    batch: int = 256
    rate: float = 3e-3
    decay: float = 1e-4


class ForecastNet(nn.Module):  # type: ignore[misc]
    """Rates enter and leave as they are: it divides by the window's own level itself, so that one network serves other loads.

    `hidden`: of the LSTM; 0: the linear map alone, which is linear quantile regression.
    """

    def __init__(self, form: Form, hidden: int, seen: int) -> None:
        super().__init__()
        self.form = form
        horizons, levels = len(form.horizons_s), len(form.quantiles)
        self._shape = (CHANNELS, horizons, levels)
        self._seen = min(seen, form.length)
        context = horizons + 3  # level, whether there was a season, and what was then
        outputs = CHANNELS * horizons * levels
        self.linear = nn.Linear(CHANNELS * self._seen + context, outputs)
        self.shift = nn.Buffer(torch.zeros(self._shape))
        self.lstm = nn.LSTM(CHANNELS, hidden, batch_first=True) if hidden else None
        self.head = (
            nn.Sequential(nn.Linear(hidden + context, hidden), nn.ReLU(), nn.Linear(hidden, outputs)) if hidden else None
        )

    def forward(self, window: Tensor, season: Tensor) -> tuple[Tensor, Tensor]:
        """[N, length, 2] and [N, 1 + horizons] to the quantiles of rate and of burstiness, [N, horizons, levels] each."""
        level, logs = self.logs(window, season)
        return level[:, :, None] * torch.expm1(logs[:, 0]), torch.expm1(logs[:, 1])

    def logs(self, window: Tensor, season: Tensor) -> tuple[Tensor, Tensor]:
        """The level [N, 1], and log1p of rates over it and of burstiness: [N, 2, horizons, levels], none below 0."""
        rates, length_s = window[:, :, 0], self.form.length * self.form.step_s
        level = rates.mean(1, keepdim=True) + 1.0 / length_s
        known = (season[:, :1] >= 0.0).to(window.dtype)
        then = known * torch.log1p(torch.clamp(season, min=0.0) / level)
        last = window[:, -self._seen :]
        steps = torch.stack([torch.log1p(last[:, :, 0] / level), torch.log1p(last[:, :, 1])], -1)
        context = torch.cat([torch.log1p(level * length_s) / 4.0, known, then], 1)
        said = self.linear(torch.cat([steps.flatten(1), context], 1))
        if self.lstm is not None and self.head is not None:
            seen, _ = self.lstm(steps)
            said = said + self.head(torch.cat([seen[:, -1], context], 1))
        apart = said.unflatten(1, self._shape)
        least = softplus(apart[..., :1] * 4.0) / 4.0
        logs = torch.cumsum(torch.cat([least, softplus(apart[..., 1:])], -1), -1) + self.shift
        columns = [torch.clamp(logs[..., :1], 0.0, FAR)]
        for place in range(1, logs.shape[-1]):  # whatever the shift is, they do not cross
            columns.append(torch.maximum(columns[-1], torch.clamp(logs[..., place : place + 1], max=FAR)))
        return level, torch.cat(columns, -1)

    def calibrate(self, held: Examples) -> None:
        """Move each quantile so that it covers its share of these (Romano, Patterson & Candes 2019), in logarithms."""
        window, season, rate, burst, _ = _tensors(held)
        with torch.no_grad():
            level, logs = self.logs(window, season)
            targets = torch.stack([torch.log1p(rate / level), torch.log1p(burst)], 1)
            errors = targets[..., None] - logs
            for place, one in enumerate(self.form.quantiles):
                self.shift[..., place] += torch.quantile(errors[..., place], one, dim=0)


def _tensors(examples: Examples) -> tuple[Tensor, ...]:
    parts = (examples.window, examples.season, examples.rate, examples.burst, examples.scale)
    return tuple(torch.from_numpy(part.astype(np.float32)) for part in parts)


def fit(
    form: Form, train: Examples, validation: Examples, how: Fit, *, seed: int, tell: Callable[[str], None]
) -> tuple[ForecastNet, dict[str, list[float]]]:
    """The network of the epoch that lost least on validation, and the losses of all."""
    torch.manual_seed(seed)
    net = ForecastNet(form, how.hidden, how.seen)
    optimiser = torch.optim.AdamW(net.parameters(), lr=how.rate, weight_decay=how.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, how.epochs)
    data, held = _tensors(train), _tensors(validation)
    bursts = max(float(train.burst.mean()), 1e-6)
    order = np.random.default_rng(seed)
    curves: dict[str, list[float]] = {"training": [], "validation": []}
    best, kept, since = float("inf"), net.state_dict(), 0
    for _ in range(how.epochs):
        net.train()
        lost = []
        for places in np.array_split(order.permutation(len(train)), max(len(train) // how.batch, 1)):
            batch = [part[torch.from_numpy(places)] for part in data]
            optimiser.zero_grad()
            loss = _loss(net, batch, bursts)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            lost.append(loss.item())
        schedule.step()
        net.eval()
        with torch.no_grad():
            value = _loss(net, held, bursts).item()
        curves["training"].append(float(np.mean(lost)))
        curves["validation"].append(value)
        if value < best:
            best, since = value, 0
            kept = {name: part.clone() for name, part in net.state_dict().items()}
        else:
            since += 1
        if since >= how.patience:
            break
    tell(f"{len(curves['training'])} epochs, validation {best:.4f}")
    net.load_state_dict(kept)
    net.eval().calibrate(validation)
    return net, curves


def _loss(net: ForecastNet, batch: "tuple[Tensor, ...] | list[Tensor]", bursts: float) -> Tensor:
    window, season, rate, burst, scale = batch
    level, logs = net.logs(window, season)
    levels = torch.tensor(net.form.quantiles)
    of_rate = _pinball(rate, level[:, :, None] * torch.expm1(logs[:, 0]), levels) / scale[:, None, None]
    of_burst = _pinball(burst, torch.expm1(logs[:, 1]), levels) / bursts
    return of_rate.mean() + of_burst.mean()


def _pinball(target: Tensor, quantiles: Tensor, levels: Tensor) -> Tensor:
    missed = target[..., None] - quantiles
    return torch.maximum(levels * missed, (levels - 1.0) * missed)


def said(net: ForecastNet, examples: Examples) -> tuple[Floats, Floats]:
    """The quantiles of rate and of burstiness, [N, horizons, levels] each."""
    window, season, *_ = _tensors(examples)
    with torch.no_grad():
        rate, burst = net(window, season)
    return rate.numpy().astype(np.float64), burst.numpy().astype(np.float64)


def export(net: ForecastNet, path: Path) -> None:
    """As ONNX, with its form among the properties, for the `forecast` of a model and to be served like any other."""
    form = net.form
    rows = torch.export.Dim("rows", min=1, max=1 << 20)
    example = (torch.rand(2, form.length, CHANNELS), torch.rand(2, 1 + len(form.horizons_s)))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that nothing here needs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own modules
        program = torch.onnx.export(
            net,
            example,
            input_names=list(INPUTS),
            output_names=[OUTPUT, "burstiness"],
            dynamic_shapes={name: {0: rows} for name in INPUTS},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[FORM] = msgspec.json.encode(form).decode()
    program.save(str(path))
