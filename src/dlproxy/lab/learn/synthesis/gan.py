"""A generative adversarial network of gaps between arrivals: dilated convolutions over noise against a critic of windows.

The generator never sees what it made before, so any length comes from one pass. Called by training.py. Not aware of: traces'
files, how its loads are judged.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor, nn

from dlproxy.lab.learn.networks.export import export
from dlproxy.lab.learn.synthesis.fits import Numbers, until

WINDOW = 128  # gaps that the critic sees at a time
SLOW = (1, 1, 32, 256)  # gaps over which each kind of noise is averaged: what is slow lets busy times last
NOISE = len(SLOW)  # numbers for each gap
CHANNELS = 24
DILATIONS = (1, 2, 4, 8)  # of kernels of three: each gap depends on the noise of the 31 around it
SEEN = 2 * sum(DILATIONS)  # gaps of noise that a window needs beyond its own length
PIECE = 1024  # gaps that one row of the ONNX file gives; its layers would take any length
KNOTS = 64
MADE = (256, 64)  # rows and scores of each that tell how the generator's are spread: many rows, as slow noise is one in each
CRITIC_STEPS = 3
PENALTY = 10.0
RATE = 2e-4
BATCH = 32


class Generator(nn.Module):  # type: ignore[misc]
    """Noise [N, NOISE, L + SEEN] to the scores of L gaps, [N, L]. Source: Wiese et al., "Quant GANs", Quant. Finance 2020."""

    def __init__(self) -> None:
        super().__init__()
        widths = [NOISE, *[CHANNELS] * len(DILATIONS)]
        pairs = zip(pairwise(widths), DILATIONS, strict=True)
        self.layers = nn.ModuleList([nn.Conv1d(before, after, 3, dilation=dilation) for (before, after), dilation in pairs])
        self.last = nn.Conv1d(CHANNELS, 1, 1)

    def forward(self, noise: Tensor) -> Tensor:
        values = noise
        for number, (layer, dilation) in enumerate(zip(self.layers, DILATIONS, strict=True)):
            made = nn.functional.leaky_relu(layer(values), 0.2)
            values = made if number == 0 else made + values[:, :, dilation:-dilation]
        found: Tensor = self.last(values)[:, 0, :]
        return found


class Gaps(nn.Module):  # type: ignore[misc]
    """The generator and what makes gaps of its scores: noise FP32 [N, NOISE, L + SEEN] to the logarithms of seconds, [N, L].

    A line through KNOTS points takes the quantiles of its scores to those of the trace: how long gaps are is known better from
    the trace than from any network, which is left with the order in which they come.
    """

    def __init__(self, generator: Generator, logs: Numbers, seed: int) -> None:
        super().__init__()
        self.generator = generator
        shares = np.concatenate([[0.0005], (np.arange(KNOTS - 2) + 0.5) / (KNOTS - 2), [0.9995]])
        with torch.no_grad():
            scores = generator(_noise(*MADE, torch.Generator().manual_seed(seed))).double().numpy().ravel()
        knots, values = np.quantile(scores, shares), np.quantile(logs, shares)
        knots += np.arange(KNOTS) * 1e-6  # ascending even where scores are equal
        slopes = np.append(np.diff(values) / np.diff(knots), 0.0)
        self.register_buffer("knots", torch.tensor(knots, dtype=torch.float32))
        self.register_buffer("bends", torch.tensor(np.diff(slopes, prepend=0.0), dtype=torch.float32))
        self.first = float(values[0])

    def forward(self, noise: Tensor) -> Tensor:
        scores = self.generator(noise)
        found: Tensor = self.first + (torch.relu(scores[:, :, None] - self.knots) * self.bends).sum(dim=2)
        return found


class Trained:
    """A Source. `folder`/model.onnx is the same network."""

    spec = ""

    def __init__(self, network: Gaps) -> None:
        self.network = network.eval()

    def instants(self, duration_s: float, random: np.random.Generator) -> Numbers:
        noise = torch.Generator().manual_seed(int(random.integers(2**31)))

        def gaps(count: int) -> Numbers:
            with torch.no_grad():
                found: Numbers = self.network(_noise(1, count, noise))[0].double().exp().numpy()
            return found

        return until(duration_s, gaps)

    def save(self, path: Path) -> None:
        """ONNX: `noise` FP32 [N, NOISE, PIECE + SEEN] to `gaps` FP32 [N, PIECE], logarithms of seconds. Raises LearnError."""
        examples = [_noise(2, PIECE, torch.Generator().manual_seed(0))]
        export(self.network, path, examples, inputs=["noise"], outputs=["gaps"])


def train(
    gaps: Numbers, every: Numbers, *, steps: int, seed: int, judge: Callable[[Trained], float]
) -> tuple[Trained, dict[str, list[float]]]:
    """By the distance of Wasserstein with a penalty on the critic's gradient (Gulrajani et al. 2017), so many steps.

    Of ten stages the one is kept of which `judge` thinks best, least first; `every`: the gaps whose lengths it is to have, more
    than those it is trained with. The curves are what the critic tells apart and what the judge said.
    """
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    generator, critic = Generator(), _critic()
    makers, critics = (torch.optim.Adam(net.parameters(), RATE, betas=(0.0, 0.9)) for net in (generator, critic))
    scores = torch.tensor(_scores(gaps), dtype=torch.float32)
    curves: dict[str, list[float]] = {"critic": [], "distance": []}
    best, kept = np.inf, generator.state_dict()
    stages = min(steps, 10)
    for stage in range(stages):
        told = 0.0
        count = steps * (stage + 1) // stages - steps * stage // stages
        for _ in range(count):
            for _ in range(CRITIC_STEPS):
                told += _teach(critic, critics, _windows(scores, random), generator, random) / (count * CRITIC_STEPS)
            makers.zero_grad()
            (-critic(generator(_noise(BATCH, WINDOW, random))).mean()).backward()
            makers.step()
        found = judge(Trained(Gaps(generator, np.log(gaps), seed)))
        curves["critic"].append(told)
        curves["distance"].append(found)
        if found < best:
            best, kept = found, {name: value.clone() for name, value in generator.state_dict().items()}
    generator.load_state_dict(kept)
    return Trained(Gaps(generator, np.log(every), seed)), curves


def _teach(critic: nn.Module, by: torch.optim.Optimizer, real: Tensor, generator: Generator, random: torch.Generator) -> float:
    """One step of the critic: how far apart it holds what is real and what is made."""
    with torch.no_grad():
        made = generator(_noise(BATCH, WINDOW, random))
    mix = torch.rand(BATCH, 1, generator=random)
    between = (mix * real + (1.0 - mix) * made).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    apart = critic(real).mean() - critic(made).mean()
    by.zero_grad()
    (PENALTY * ((slope.norm(dim=1) - 1.0) ** 2).mean() - apart).backward()
    by.step()
    return float(apart.detach())


def _critic() -> nn.Module:
    layers: list[nn.Module] = [nn.Unflatten(1, (1, WINDOW))]
    for before, after in pairwise((1, 16, 32, 32, 32)):
        layers += [nn.Conv1d(before, after, 5, stride=2, padding=2), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * (WINDOW // 16), 1))


def _scores(gaps: Numbers) -> Numbers:
    """Each gap by its rank, as if gaps were normally distributed."""
    normal = NormalDist()
    ranks = (np.argsort(np.argsort(gaps, kind="stable")) + 0.5) / len(gaps)
    return np.array([normal.inv_cdf(rank) for rank in ranks.tolist()])


def _windows(scores: Tensor, random: torch.Generator) -> Tensor:
    begins = torch.randint(len(scores) - WINDOW + 1, (BATCH, 1), generator=random)
    return scores[begins + torch.arange(WINDOW)]


def _noise(rows: int, length: int, random: torch.Generator) -> Tensor:
    """Of mean 0 and variance 1, each kind averaged over so many gaps."""
    kinds = []
    for slow in SLOW:
        added = torch.randn(rows, length + SEEN + slow, generator=random, dtype=torch.float64).cumsum(dim=1)
        kinds.append((added[:, slow:] - added[:, :-slow]) / slow**0.5)
    return torch.stack(kinds, dim=1).float()
