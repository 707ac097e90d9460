"""Goodput of a steady load before, during and after a fault. Called by run.py. Not aware of: what the faults are."""

from time import monotonic
from typing import Any

from dlproxy.lab.evaluate import recovery
from dlproxy.lab.evaluate.evaluation import FaultReport
from dlproxy.lab.evaluate.faults import Fault
from dlproxy.lab.load.generator import LOOK_S, Progress
from dlproxy.lab.load.run import Interrupt, LoadTest, Watch
from dlproxy.lab.report.wording import rate

BEFORE, DURING, AFTER = 0.25, 0.3, 0.45  # parts of the time
SETTLE_S = 0.3  # of the steady load, before it counts
SLACK_S = 8.0  # for a fault that takes a while to begin: the processes of a load must start first
DRAIN_S = 0.5
CHART_S = 0.2
LEAST_BEFORE = 0.5  # of the steady load that must be answered in time, so that a fault can be told from it


class _Course:
    """Follows one run and has the fault begin and end in time."""

    def __init__(self, fault: Fault, seconds: float, watch: Watch) -> None:
        self.samples: list[tuple[float, float]] = []
        self.ended_at: float | None = None
        self._fault, self._watch = fault, watch
        self._before_s, self._during_s, self._after_s = BEFORE * seconds, DURING * seconds, AFTER * seconds
        self.asked_at: float | None = None
        self._started_at: float | None = None

    def watch(self, progress: Progress) -> bool:
        now = monotonic()
        if self._started_at is None and progress.ok + progress.failed + progress.under_way:
            self._started_at = now
        if self._started_at is not None and now >= self._started_at + SETTLE_S:
            # late counts what failed, too
            self.samples.append((now, progress.ok - progress.late + progress.failed))
        begun_at = self._fault.begun_at
        if self.asked_at is None and self.samples and now >= self.samples[0][0] + self._before_s:
            self.asked_at = now
            self._fault.begin()
        elif begun_at is not None and self.ended_at is None and now >= begun_at + self._during_s:
            self.ended_at = now
            self._fault.end()
        over = self.ended_at is not None and now >= self.ended_at + self._after_s
        return self._watch(progress) and not over and not self._fault.failed


def suffer(
    test: LoadTest,
    name: str,
    fault: Fault,
    *,
    rps: float,
    reference_rps: float,
    seconds: float,
    interrupt: Interrupt,
    watch: Watch,
) -> FaultReport:
    """One fault during a steady load. Raises LoadError; KeyboardInterrupt at a second Ctrl-C."""
    course = _Course(fault, seconds, watch)
    changes: dict[str, Any] = {"concurrency": None, "rate": rps, "arrivals": "constant"}
    length_s = SETTLE_S + seconds + SLACK_S
    try:
        test.run(interrupt, course.watch, **changes, duration_s=length_s, warmup_s=0.0, drain_s=DRAIN_S)
    finally:
        fault.close()
    report = FaultReport(name=name, reference_rps=reference_rps, note=fault.note)
    samples, asked_at, begun_at, ended_at = course.samples, course.asked_at, fault.begun_at, course.ended_at
    if asked_at is None or begun_at is None or ended_at is None:
        report.reason = f"not measured: {fault.note or 'the load ended before the fault did'}"
        return report
    start_at = samples[0][0]
    samples = [(at, good) for at, good in samples if at <= min(start_at + length_s, ended_at + AFTER * seconds) + LOOK_S]
    effect = recovery.effect(samples, rps, asked_at, begun_at, ended_at, begun_at if fault.at_once else ended_at)
    if effect.before_rps < LEAST_BEFORE * rps:
        report.reason = (
            f"not measured: of the steady load of {rate(rps)}, {rate(effect.before_rps)} was answered in time before"
        )
        return report
    report.effect = effect
    during = effect.during_rps + recovery.rate(fault.good, begun_at, ended_at)
    report.reference_rps = reference = reference_rps or effect.before_rps
    report.kept = during / reference if reference > 0.0 else None
    report.timeline = recovery.per_interval(samples, CHART_S)
    report.from_s, report.to_s = begun_at - start_at, (begun_at if fault.at_once else ended_at) - start_at
    return report
