"""One model of arrivals fitted to the beginning of a load and judged by the rest: how like it is, what tuning on it is worth.

Called by lab/learn/train.py. What has to be chosen is chosen by the end of the beginning. Not aware of: how simulations run.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
from msgspec import Struct

from dlproxy.lab.learn.experiment import Experiment, LearnError, Place, Run, settings
from dlproxy.lab.learn.synthesis.fits import Blocks, Gamma, Numbers, Source, gamma, gamma_by_moments
from dlproxy.lab.learn.synthesis.likeness import LEAST_GAP_S, Load, compare, distance
from dlproxy.lab.learn.synthesis.mmpp import Mmpp, mmpp
from dlproxy.lab.learn.synthesis.transfer import Machine, transferred
from dlproxy.lab.load.arrivals import ArrivalsError, read_trace

CHOSEN_BY = 0.25  # the last part of what is fitted to, where something has to be chosen
FEWEST = 1000  # arrivals
DRAWS = 6  # loads that are drawn of each candidate: one alone says little
LONG_S = 1500.0  # of the made-up load that stands in for a trace
LENGTHS = (1, 20, 100, 500)  # gaps of a block; of one alone their order is lost

FITS: Mapping[str, tuple[Callable[[Numbers], Source], ...]] = MappingProxyType(
    {
        "poisson": (lambda gaps: Gamma(1.0, float(gaps.mean())),),
        "gamma": (gamma,),
        "gamma-cv": (gamma_by_moments,),
        "mmpp-2": (partial(mmpp, states=2),),
        "mmpp-3": (partial(mmpp, states=3),),
        "blocks": tuple(partial(Blocks, length=length) for length in LENGTHS),
    }
)
"""By name; where there are several, one is chosen."""


class About(Struct, kw_only=True, forbid_unknown_fields=True):
    """Settings. `trace`: a file of arrivals as `--trace` takes it; empty: made-up spells of different rates. `held_out`: the
    last part of its time. `service` and `slo_s`: of the model that is tuned on the load.
    """

    trace: str = ""
    held_out: float = 0.4
    service: str = Machine().service
    slo_s: float = Machine().slo_s


class AboutFit(About, kw_only=True, forbid_unknown_fields=True):
    """`model`: of FITS."""

    model: str = "blocks"


class AboutNetwork(About, kw_only=True, forbid_unknown_fields=True):
    """`steps`: of the generator."""

    steps: int = 400


class Parts(Struct, frozen=True):
    """Instants, each from its own 0 on, and seconds. `known` is `fitted` and then `chosen`."""

    known: Numbers
    fitted: Numbers
    chosen: Numbers
    real: Numbers
    chosen_s: float
    real_s: float


def fit(experiment: Experiment, place: Place) -> Run:
    """Kind "fit". Raises LearnError."""
    about: AboutFit = settings(experiment, AboutFit)
    if about.model not in FITS:
        raise LearnError(f"{experiment.name}: there is no model '{about.model}'; there are {', '.join(FITS)}")
    parts = load_of(about, place)
    fits = FITS[about.model]
    chosen = fits[0]
    if len(fits) > 1:
        gaps = gaps_of(parts.fitted)
        chosen = min(fits, key=lambda one: judged(one(gaps), parts))
    source = chosen(gaps_of(parts.known))
    figures = judge(source, about, parts, place)
    if isinstance(source, Blocks):
        figures["block"] = source.length
    if isinstance(source, Gamma | Mmpp) and source.spec:
        rate = len(parts.known) / float(parts.known[-1])
        place.tell(f"as options of simulate and bench: --rate {rate:.4g} --arrivals {source.spec}")
    return Run(seed=place.seed, figures=figures)


def network(experiment: Experiment, place: Place) -> Run:
    """Kind "synthesis". Raises LearnError."""
    import torch

    from dlproxy.lab.learn.synthesis import gan

    about: AboutNetwork = settings(experiment, AboutNetwork)
    if about.steps < 1:
        raise LearnError(f"{experiment.name}: steps must be 1 or more")
    torch.set_num_threads(place.threads)
    parts = load_of(about, place)
    source, curves = gan.train(
        gaps_of(parts.fitted),
        gaps_of(parts.known),
        steps=about.steps,
        seed=place.seed,
        judge=lambda candidate: judged(candidate, parts),
    )
    source.save(place.folder / "model.onnx")
    return Run(seed=place.seed, figures=judge(source, about, parts, place), curves=curves)


def load_of(about: About, place: Place) -> Parts:
    """The trace, or what stands in for it, in parts. Raises LearnError."""
    if not 0.1 <= about.held_out <= 0.9:
        raise LearnError(f"held_out must be a share between 0.1 and 0.9, not {about.held_out:g}")
    if not about.trace:
        place.tell('no trace is named (trace = "FILE" in [settings]): made-up spells of different rates stand in for one')
        instants, length_s = stand_in(), LONG_S
    else:
        try:
            trace = read_trace(Path(about.trace))
        except ArrivalsError as error:
            raise LearnError(str(error)) from error
        length_s = trace.duration_s or 0.0
        instants = np.concatenate(list(trace.chunks(np.inf)))
    known_s = (1.0 - about.held_out) * length_s
    fitted_s = (1.0 - CHOSEN_BY) * known_s
    known, real = instants[instants < known_s], instants[instants >= known_s] - known_s
    fitted, chosen = known[known < fitted_s], known[known >= fitted_s] - fitted_s
    if min(len(fitted), len(real)) < FEWEST / 4 or len(instants) < FEWEST or len(chosen) < FEWEST / 16:
        raise LearnError(
            f"{about.trace or 'the load'}: {len(instants)} arrivals are too few, or too unevenly spread, to learn from"
        )
    return Parts(known, fitted, chosen, real, known_s - fitted_s, length_s - known_s)


def stand_in() -> Numbers:
    """Quiet, busy and hectic spells of 25 minutes."""
    leaving = np.array([[0.0, 0.05, 0.0], [0.02, 0.0, 0.2], [0.0, 4.0, 0.0]])
    return Mmpp(np.array([0.02, 2.5, 40.0]), leaving).instants(LONG_S, np.random.default_rng(0))


def gaps_of(instants: Numbers) -> Numbers:
    """In seconds, none below the resolution of recorded times."""
    return np.maximum(np.diff(instants), LEAST_GAP_S)


def judged(source: Source, parts: Parts) -> float:
    """How far the loads that it makes are from the part by which is chosen, on average."""
    real = Load(parts.chosen)
    found = []
    for draw in range(DRAWS):
        made = source.instants(parts.chosen_s, np.random.default_rng((draw, 1)))
        found.append(distance(Load(made), real) if len(made) > 2 else np.inf)
    return float(np.mean(found))


def judge(source: Source, about: About, parts: Parts, place: Place) -> dict[str, float]:
    """A load as long as what was held out goes to synthetic.csv, which `--trace` takes, and is compared with that."""
    made = source.instants(parts.real_s, np.random.default_rng((place.seed, 2)))
    if len(made) < 10:
        raise LearnError(f"what was fitted makes {len(made)} arrivals in {parts.real_s:.0f} s, too few to judge")
    (place.folder / "synthetic.csv").write_text("time\n" + "".join([f"{at:.6f}\n" for at in made.tolist()]), "utf-8")
    machine = Machine(about.service, about.slo_s)
    return {**compare(Load(made), Load(parts.real)), **transferred(machine, made, parts.known, parts.real)}
