"""Whether one version of a model does worse than another, from what both did side by side: pure, with a stated error.

Called by serve/rollout.py once a second. Not aware of: who takes what share back.
"""

from collections.abc import Sequence
from math import exp, lgamma

from msgspec import Struct

ALPHA = 0.005  # the probability that a version which is no worse is called worse: less than this, however long it is watched
LEAST_TICKS = 10  # seconds with requests of a version before it is judged, so that it is seen how requests fail together
LEAST_STRETCHES = 8  # of one length, to tell how much they differ: of fewer the dispersion is known to less than a half
LEAST_TIMED = 1000  # answers of the stable version that tell its 99th percentile
GROWTH = 1.1  # a look when there is a tenth more than at the last one: 60 looks at an hour, not 3600
PERIOD = 3600  # ticks after which counting starts anew: what goes bad after a good day is found as quickly
MATTERS = 1.5  # times the stable version's rate: less is not worth a rollback, however sure


class Seen(Struct):
    """What one version did in one tick. `failed`: through the model's fault, `refused`: for lack of time. `latencies_s`: of its
    answers, or of the last ones of many.
    """

    answered: int
    failed: int
    refused: int
    latencies_s: Sequence[float]


class _Count:
    """Bad ones among all, and how they cluster: in ticks, and in stretches of 2, 4, 8 ticks and so on."""

    def __init__(self) -> None:
        self.ticks = 0
        self.all = self.bad = 0.0
        self._scales: list[_Scale] = []

    def add(self, bad: float, of: float) -> None:
        if not of:
            return
        self.ticks += 1
        self.all += of
        self.bad += bad
        for scale in self._scales:
            whole = scale.add(bad, of)
            if whole is None:
                return
            bad, of = whole
        self._scales.append(_Scale(bad, of))

    @property
    def rate(self) -> float:
        return self.bad / self.all

    @property
    def design_effect(self) -> float:
        """How many requests tell as much as one that is independent: those of one batch, or of one burst, fare alike. Pearson's
        dispersion of the stretches around their mean (McCullagh and Nelder, "Generalized Linear Models", 1989, section 4.5),
        where it is largest.
        """
        rate = self.rate
        if not 0.0 < rate < 1.0:
            return 1.0
        known = [scale.dispersion(rate) for scale in self._scales if scale.stretches >= LEAST_STRETCHES]
        return max([*known, 1.0])


class _Scale:
    """Stretches of one length."""

    def __init__(self, bad: float, of: float) -> None:
        self.stretches = 0
        self._bad = self._all = self._squares = 0.0
        self._half: tuple[float, float] | None = None
        self.add(bad, of)

    def add(self, bad: float, of: float) -> tuple[float, float] | None:
        """The sum of this one and the one before, every second time."""
        self.stretches += 1
        self._bad += bad
        self._all += of
        self._squares += bad * bad / of
        half = self._half
        self._half = (bad, of) if half is None else None
        return None if half is None else (bad + half[0], of + half[1])

    def dispersion(self, rate: float) -> float:
        squares = self._squares - 2.0 * rate * self._bad + rate * rate * self._all
        return squares / ((self.stretches - 1) * rate * (1.0 - rate))


class Comparison:
    """One kind of bad outcome, in both versions.

    Fisher's exact test, one-sided, on counts divided by their design effects. Look k may err with probability
    alpha / (k (k + 1)), which sums to alpha over all looks ever.
    """

    def __init__(self) -> None:
        self.stable, self.canary = _Count(), _Count()
        self._looks = 0
        self._next_at = LEAST_TICKS

    def worse(self, alpha: float) -> bool:
        """Whether the canary is worse by more than chance and by enough to matter; False between looks."""
        stable, canary = self.stable, self.canary
        if min(stable.ticks, canary.ticks) < self._next_at:
            return False
        self._next_at = int(min(stable.ticks, canary.ticks) * GROWTH) + 1
        self._looks += 1
        if canary.rate <= MATTERS * stable.rate:
            return False
        effect = max(stable.design_effect, canary.design_effect)
        counts = (round(number / effect) for number in (canary.bad, canary.all, stable.bad, stable.all))
        return fisher(*counts) < alpha / (self._looks * (self._looks + 1))


class Judge:
    """Compares failures, and requests slower than the stable version's 99th percentile, which is measured before they are
    counted; refused for lack of time is slow, too. Both share `alpha`; period j has alpha / (j (j + 1)) of it.
    """

    def __init__(self, alpha: float = ALPHA) -> None:
        self._alpha = alpha
        self._periods = 0
        self._begin()

    def look(self, stable: Seen, canary: Seen) -> str:
        """Why the canary is worse, or nothing. `stable` and `canary`: since the last call."""
        self._ticks += 1
        if self._ticks > PERIOD:
            self._begin()
        failures, slowness = self._failures, self._slowness
        failures.stable.add(stable.failed, stable.answered + stable.failed)
        failures.canary.add(canary.failed, canary.answered + canary.failed)
        alpha = self._alpha / 2 / (self._periods * (self._periods + 1))
        if failures.worse(alpha):
            return f"{_share(failures.canary)} failed, of the stable version's {_share(failures.stable)}"
        if self._slow_s is None:
            self._measure(stable)
            return ""
        slowness.stable.add(*_slow(stable, self._slow_s))
        slowness.canary.add(*_slow(canary, self._slow_s))
        if slowness.worse(alpha):
            what = f"took longer than {self._slow_s * 1e3:.3g} ms or were refused for lack of time"
            return f"{_share(slowness.canary)} {what}, of the stable version's {_share(slowness.stable)}"
        return ""

    def _begin(self) -> None:
        self._ticks = 0
        self._periods += 1
        self._failures, self._slowness = Comparison(), Comparison()
        self._slow_s: float | None = None
        self._timed: list[float] = []

    def _measure(self, stable: Seen) -> None:
        self._timed += stable.latencies_s
        if self._ticks >= LEAST_TICKS and len(self._timed) >= LEAST_TIMED:
            self._timed.sort()
            self._slow_s = self._timed[len(self._timed) * 99 // 100]
            self._timed = []


def fisher(bad: int, of: int, other_bad: int, other_of: int) -> float:
    """The probability of `bad` or more among `of`, if all that are bad fell on both groups by chance (R. A. Fisher, 1934)."""
    all_bad, most = bad + other_bad, min(of, bad + other_bad)
    if bad * other_of <= other_bad * of:
        return 1.0
    term = exp(_choose(of, bad) + _choose(other_of, other_bad) - _choose(of + other_of, all_bad))
    total = 0.0
    for number in range(bad, most + 1):
        total += term
        if term <= total * 1e-12:
            break
        term *= (of - number) * (all_bad - number) / ((number + 1) * (other_of - all_bad + number + 1))
    return min(total, 1.0)


def _choose(n: int, k: int) -> float:
    """The logarithm of the binomial coefficient."""
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def _slow(seen: Seen, slow_s: float) -> tuple[float, float]:
    timed = len(seen.latencies_s)
    share = sum([latency_s > slow_s for latency_s in seen.latencies_s]) / timed if timed else 0.0
    return share * seen.answered + seen.refused, float(seen.answered + seen.refused)


def _share(count: _Count) -> str:
    return f"{count.rate:.2%} of {count.all:,.0f} requests"
