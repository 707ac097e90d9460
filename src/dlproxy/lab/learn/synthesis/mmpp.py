"""Poisson arrivals whose rate depends on a hidden Markov chain (MMPP): the most likely one by expectation and maximisation.

Called by training.py. Not aware of: traces' files, how good it is.
"""

import numpy as np
from msgspec import Struct

from dlproxy.lab.learn.synthesis.fits import Numbers

FIRST_ROUNDS, MOST_ROUNDS = 15, 150  # with each beginning, and then with the best
ENOUGH = 1e-6  # of the log-likelihood per gap: what a round must bring
SMOOTHINGS = (1, 8, 40)  # gaps whose mean says in which state the first guess takes the chain to be
LEAST_RATE = 1e-9


class Mmpp(Struct, frozen=True):
    """`rates`: arrivals per second in each state, ascending; `leaving`: [state, state] rates of going from one to another."""

    rates: Numbers
    leaving: Numbers
    log_likelihood: float = 0.0

    @property
    def shares(self) -> Numbers:
        """Of the time, that the chain is in each state."""
        states = len(self.rates)
        flows = np.vstack([_generator(self.leaving).T, np.ones(states)])
        found: Numbers = np.maximum(np.linalg.lstsq(flows, np.append(np.zeros(states), 1.0), rcond=None)[0], 0.0)
        return found

    @property
    def rate(self) -> float:
        return float(self.shares @ self.rates)

    @property
    def spec(self) -> str:
        """Of two states; `--arrivals` knows no more."""
        if len(self.rates) != 2:
            return ""
        low, high = self.rates
        share, dwell_s = float(self.shares[1]), 1.0 / float(self.leaving[1, 0])
        return f"mmpp:high={high / max(low, LEAST_RATE):.4g},share={share:.4g},dwell={dwell_s:.4g}"

    def instants(self, duration_s: float, random: np.random.Generator) -> Numbers:
        pieces: list[Numbers] = []
        at, state, out = 0.0, int(random.choice(len(self.rates), p=self.shares / self.shares.sum())), self.leaving.sum(axis=1)
        while at < duration_s:
            end = min(at + random.exponential(1.0 / out[state]), duration_s)
            pieces.append(np.sort(random.uniform(at, end, random.poisson(self.rates[state] * (end - at)))))
            at, state = end, int(random.choice(len(self.rates), p=self.leaving[state] / out[state]))
        return np.concatenate(pieces)


def mmpp(gaps: Numbers, states: int) -> Mmpp:
    """The most likely of several beginnings, each improved until that gains nothing.

    Source: Rydén, "An EM algorithm for estimation in Markov-modulated Poisson processes", CSDA 21 (1996).
    """
    begun = [_improved(_guess(gaps, states, smoothing), gaps, FIRST_ROUNDS) for smoothing in SMOOTHINGS]
    best = _improved(max(begun, key=lambda one: one.log_likelihood), gaps, MOST_ROUNDS)
    order = np.argsort(best.rates)
    return Mmpp(best.rates[order], best.leaving[np.ix_(order, order)], best.log_likelihood)


def _guess(gaps: Numbers, states: int, smoothing: int) -> Mmpp:
    """States by the quantiles of the smoothed logarithms of the gaps."""
    logs = np.convolve(np.log(gaps), np.ones(smoothing) / smoothing, mode="same")
    state = np.searchsorted(np.quantile(logs, np.arange(1, states) / states), logs)
    time_s = np.array([gaps[state == one].sum() for one in range(states)])
    moves = np.zeros((states, states))
    np.add.at(moves, (state[:-1], state[1:]), 1.0)
    np.fill_diagonal(moves, 0.0)
    return Mmpp(np.bincount(state, minlength=states) / time_s, (moves + 0.5 * (1.0 - np.eye(states))) / time_s[:, None])


def _improved(model: Mmpp, gaps: Numbers, rounds: int) -> Mmpp:
    start = np.full(len(model.rates), 1.0 / len(model.rates))
    before = -np.inf
    for _ in range(rounds):
        model, start = _round(model, start, gaps)
        if model.log_likelihood - before < ENOUGH * len(gaps):
            break
        before = model.log_likelihood
    return model


def _round(model: Mmpp, start: Numbers, gaps: Numbers) -> tuple[Mmpp, Numbers]:
    """One expectation and maximisation. The new model carries the log-likelihood of the old one."""
    values, vectors = np.linalg.eig(_generator(model.leaving) - np.diag(model.rates))
    inverse = np.linalg.inv(vectors)
    growth = np.exp(gaps[:, None] * values)
    steps = ((vectors * growth[:, None, :]) @ inverse).real * model.rates  # to the next arrival, from state to state
    steps = np.maximum(steps, 1e-300)
    before = _after_each(start, steps)[:-1]  # the state at each gap's beginning, by what came until then
    after = _after_each(np.ones(len(start)), steps[::-1].transpose(0, 2, 1))[-2::-1]  # at its end, by what comes then
    reached = (before[:, None, :] @ steps)[:, 0, :]
    log_likelihood = float(np.log(reached.sum(axis=1)).sum())
    weight = (reached * after).sum(axis=1)
    gap = values[:, None] - values[None, :]
    equal = np.abs(gap) < 1e-9 * np.abs(values).max()
    spans = (growth[:, :, None] - growth[:, None, :]) / np.where(equal, 1.0, gap)
    spans = np.where(equal, gaps[:, None, None] * growth[:, :, None], spans)
    outer = ((after * model.rates) @ inverse.T)[:, :, None] * (before @ vectors)[:, None, :]
    visits = (vectors @ (outer * spans / weight[:, None, None]).sum(axis=0) @ inverse).real.T  # seconds from i that end in j
    time_s = np.maximum(np.diag(visits), 1e-12)
    arrivals = _shares(reached * after).sum(axis=0)
    leaving = np.maximum(model.leaving * visits, 0.0) / time_s[:, None]
    np.fill_diagonal(leaving, 0.0)
    leaving += LEAST_RATE * (1.0 - np.eye(len(start)))
    began = start * (steps[0] @ after[0])
    return Mmpp(np.maximum(arrivals / time_s, LEAST_RATE), leaving, log_likelihood), began / began.sum()


def _generator(leaving: Numbers) -> Numbers:
    found: Numbers = leaving - np.diag(leaving.sum(axis=1))
    return found


def _after_each(start: Numbers, matrices: Numbers) -> Numbers:
    """The row vector before the first matrix, after it, after the second, and so on, each scaled to the sum 1.

    In runs of about the square root of their number, of which all are multiplied out beside each other.
    """
    count, states = len(matrices), len(start)
    size = int(np.ceil(np.sqrt(count)))
    runs = np.tile(np.eye(states), (size * size, 1, 1))
    runs[:count] = matrices / matrices.max(axis=(1, 2), keepdims=True)
    runs = runs.reshape(size, size, states, states)
    for place in range(1, size):
        product = runs[:, place - 1] @ runs[:, place]
        runs[:, place] = product / product.max(axis=(1, 2), keepdims=True)
    begins = np.empty((size, 1, 1, states))
    vector = start
    for run in range(size):
        begins[run] = vector
        vector = vector @ runs[run, -1]
        vector = vector / vector.sum()
    return _shares(np.vstack([start, (begins @ runs).reshape(-1, states)[:count]]))


def _shares(rows: Numbers) -> Numbers:
    found: Numbers = rows / rows.sum(axis=1, keepdims=True)
    return found
