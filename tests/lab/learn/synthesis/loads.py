"""Loads with a known origin, and places for what is trained."""

from pathlib import Path

import numpy as np

from dlproxy.lab.learn.experiment import Place
from dlproxy.lab.learn.synthesis.fits import Numbers
from dlproxy.lab.load.arrivals import make_arrivals


def gaps(spec: str, count: int, *, seed: int = 1, rate: float = 5.0) -> Numbers:
    """Of the process that `--arrivals` makes of it."""
    pieces: list[Numbers] = []
    for chunk in make_arrivals(spec, rate=rate, seed=seed).chunks(1e9):
        pieces.append(chunk)
        if sum(map(len, pieces)) > count:
            break
    return np.maximum(np.diff(np.concatenate(pieces)[: count + 1]), 1e-9)


def place(folder: Path, *, seed: int = 1) -> tuple[Place, list[str]]:
    """And what it was told."""
    told: list[str] = []
    return Place(folder=folder, seed=seed, threads=1, tell=told.append), told
