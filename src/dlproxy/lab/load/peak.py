"""The highest Poisson rate at which a server meets an objective, by MLPerf's Server rules: every request counts, from when it
was due, and one error fails a trial. Called by cli/bench.py. Not aware of: processes, how a trial is shown.
"""

from collections.abc import Callable
from math import inf, log10, sqrt
from time import monotonic
from typing import Any

from dlproxy.lab.load.generator import Progress
from dlproxy.lab.load.run import BUSY, Interrupt, LoadTest, Watch
from dlproxy.lab.load.settings import MAX_RATE, LoadError
from dlproxy.lab.report.result import Result, Trial

MAX_TRIALS = 30
SHORT = 0.3  # of the full length: trials that only look for the region
LEAST_REQUESTS = 200  # of a trial, where its full length allows that: fewer say nothing about a p99
FIRST_S = 1.0
NEAR = 1.05  # passed and failed rates this close are not told apart by short trials
BACK = 0.05  # the step down after a full-length run failed; each next step is one such larger
QUEUE = 20  # objectives that a trial lasts at least: in less an overloaded server's queue is no longer than the objective
CONFIRMING = 2.5  # full-length runs that a search keeps time for
CONFIRMATIONS = 8  # trials that are kept for full-length runs
TOO_LATE = 0.01  # of all requests; once that many are late the p99 is lost

Tell = Callable[[Trial], None]


class Search:
    """One search. `run` gives the Result of the confirming run (or of the last one, if none was confirmed) with all trials,
    and the rate that was confirmed as its `peak_rps`.
    """

    def __init__(self, test: LoadTest, objective_s: float, interrupt: Interrupt, tell: Tell, watch: Watch) -> None:
        self._test, self._objective_s = test, objective_s
        self._interrupt, self._tell, self._watch = interrupt, tell, watch
        self._trials: list[Trial] = []
        self._bounded = False
        self._gone = ""
        self._until = inf
        self._last: Result | None = None
        self._peak: float | None = None

    def run(self, start_rate: float | None = None, most: int = MAX_TRIALS, until: float = inf) -> Result:
        """At most so many trials, none begun after `until`. Raises LoadError; KeyboardInterrupt at a second Ctrl-C."""
        self._until = until - CONFIRMING * self._test.settings.length_s
        rate = self._bracket(start_rate or self._first_rate(), max(most - CONFIRMATIONS, most // 2))
        back, self._until = 0.0, until
        while rate is not None and len(self._trials) < most and not self._over:
            if self._passes(rate, self._test.settings.length_s, most):
                self._peak = rate
                break
            back += BACK
            rate = self._rounded(rate * (1.0 - back))
        if self._last is None:  # interrupted before the first run
            raise KeyboardInterrupt
        result = self._last
        result.kind, result.trials, result.peak_rps = "peak search", self._trials, self._peak
        result.interrupted = self._interrupt.pressed
        result.warnings += self._warnings(most)
        return result

    @property
    def _over(self) -> bool:
        late = bool(self._trials) and monotonic() > self._until
        return self._interrupt.pressed or bool(self._gone) or late

    def _first_rate(self) -> float:
        """Half of what one client alone gets: a start that most servers pass."""
        seconds = min(FIRST_S, self._test.settings.length_s)
        self._last = self._test.run(
            self._interrupt, self._watch, concurrency=1, processes=1, rate=None, arrivals=None, duration_s=seconds, warmup_s=0.0
        )
        return self._rounded(max(self._last.rate_rps / 2, self._least))

    def _bracket(self, rate: float, most: int) -> float | None:
        """The highest rate that passed short trials, None if none did."""
        passed: float | None = None
        failed: float | None = None
        length_s = self._test.settings.length_s
        while len(self._trials) < most and not self._over:
            seconds = min(length_s, max(SHORT * length_s, LEAST_REQUESTS / rate, QUEUE * self._objective_s))
            if self._passes(rate, seconds, most):
                passed = rate
            else:
                failed = rate
            if passed is None:
                if rate <= self._least:
                    return None
                rate = max(self._rounded(rate / 4), self._least)
            elif failed is None:
                if rate >= MAX_RATE:
                    return rate
                rate = min(rate * 2, MAX_RATE)
            elif failed <= passed * NEAR:
                break
            else:
                rate = self._rounded(sqrt(passed * failed))
        return passed

    @property
    def _least(self) -> float:
        return 1.0 / self._test.settings.length_s + 1e-9

    def _passes(self, rate: float, seconds: float, most: int) -> bool:
        """Two failures count as one: other work on the machine spoils trials, and those that fail are short."""
        if self._try(rate, seconds):
            return True
        return len(self._trials) < most and not self._over and self._try(rate, seconds)

    def _try(self, rate: float, seconds: float) -> bool:
        hopeless = TOO_LATE * rate * seconds + 3.0 * sqrt(rate * seconds * TOO_LATE) + 3.0
        stopped = False

        def watch(progress: Progress) -> bool:
            nonlocal stopped
            stopped = stopped or progress.late > hopeless
            return self._watch(progress) and not stopped

        settings = self._test.settings
        changes: dict[str, Any] = {"concurrency": None, "rate": rate, "arrivals": "poisson", "duration_s": seconds}
        result = self._test.run(
            self._interrupt, watch, **changes, objective_s=self._objective_s, seed=settings.seed + len(self._trials)
        )
        self._last = result
        if self._interrupt.pressed:
            return False
        p99_ms = result.latency_ms.get("p99")
        reason = self._reason(result, p99_ms, stopped)
        trial = Trial(
            rate=rate,
            duration_s=result.duration_s,
            sent=result.sent,
            failed=result.failed,
            p99_ms=p99_ms,
            passed=not reason,
            reason=reason,
            whole=seconds >= settings.length_s,
        )
        self._trials.append(trial)
        self._tell(trial)
        self._bounded = self._bounded or (bool(reason) and result.generator is not None and result.generator.cpu_share > BUSY)
        if not result.ok:
            self._look_for_server()
        return trial.passed

    def _reason(self, result: Result, p99_ms: float | None, stopped: bool) -> str:
        if result.failed:
            kind = max(result.errors, key=lambda name: result.errors[name])
            return f"{kind}: {result.errors[kind]:,} of {result.sent:,}"
        if p99_ms is None:
            return "no request succeeded"
        if p99_ms > self._objective_s * 1e3:
            return "p99 is over the objective"
        return "too many answers were late" if stopped else ""

    def _look_for_server(self) -> None:
        try:
            self._test.target.model(self._test.model.name)
        except LoadError as error:
            self._gone = str(error)

    def _rounded(self, rate: float) -> float:
        """Three digits."""
        return float(f"{rate:.{2 if rate < 1000 else max(2, int(log10(rate)) - 1)}e}")

    def _warnings(self, most: int) -> list[str]:
        best = max((trial.rate for trial in self._trials if trial.passed), default=None)
        passed = "" if best is None else f"; the highest rate that passed a trial is {best:,.6g}/s"
        warnings = []
        if self._gone:
            warnings.append(f"the search ended early: {self._gone}{passed}")
        elif self._interrupt.pressed:
            warnings.append(f"the search was interrupted{passed}")
        elif self._peak is None:
            warnings.append(
                f"no rate met the objective in a full-length run ({len(self._trials)} of at most {most} trials){passed}"
            )
        if self._bounded:
            warnings.append(
                "a trial failed while the load generator was busy: the server may be capable of more; raise --processes"
            )
        return warnings
