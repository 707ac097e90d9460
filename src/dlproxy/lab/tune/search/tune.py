"""A tuning from its problem to what it recommends: measures the layouts, searches in the simulator, confirms on live servers.

Called by cli/tune.py and benchmarks/tune. Not aware of: the command line, how the result is shown.
"""

import os
from collections.abc import Callable
from math import ceil, inf, log10
from pathlib import Path
from time import monotonic
from typing import Protocol

import msgspec
from msgspec import Struct, field

from dlproxy.config import ConfigError
from dlproxy.instance.runtime import ModelError
from dlproxy.lab.load.run import Interrupt
from dlproxy.lab.report import wording
from dlproxy.lab.simulate.recording import Batches
from dlproxy.lab.tune.search.calibrate import calibrate
from dlproxy.lab.tune.search.evolve import evolve
from dlproxy.lab.tune.search.predict import Predictor
from dlproxy.lab.tune.search.problem import (
    GOOD_SHARE,
    NEVER_S,
    Layout,
    Outcome,
    Point,
    Problem,
    Space,
    TuneError,
    better_first,
    layouts,
    make_space,
)
from dlproxy.lab.tune.search.state import Calibrated, Lived, Simulated, State
from dlproxy.lab.tune.search.times import Times, ratio_of
from dlproxy.lab.tune.search.trials import ROUNDS, Trials
from dlproxy.policy.events import Dispatch
from dlproxy.telemetry.event_log import read

BUSY = 0.5  # programs for each core that want to run beside us
CALIBRATE_SHARE = 0.15  # of the budget, in all
CALIBRATE_S = (0.3, 4.0)  # for one layout, at least and at most
SEARCH_SHARE = 0.45  # of the budget: what is left then belongs to the live runs
MOST_SHARE = 0.1  # of all points are simulated
LEAST_POINTS = 48  # may be, where there are few in all
SURE_POINTS = 8  # are simulated besides the layouts, however little time there is
REVALUED = 40  # points that are simulated at the rate that was found, where none was given
NEAR_PEAK = 0.95
LADDER, RUNGS = 1.25, 24  # objectives that are tried where the one asked for cannot be met
ALIKE = 0.02  # what differs by less than this share is no difference


class Show(Protocol):
    """Whoever shows how far it is."""

    def stage(self, text: str, total: int) -> None:
        """So many steps begin."""
        ...

    def step(self, text: str = "") -> None:
        """One is done."""
        ...


class Tuned(Struct, kw_only=True):
    """What a tuning found. `known`: measured where it was, else predicted; `rate`: at which; `total`: points that there are.

    `highest`: the highest rate that met the objective live, where one was looked for. `notes`: what went unlike planned.
    """

    problem: Problem
    predictor: Predictor
    space: Space
    rate: float
    total: int
    known: dict[Point, Outcome]
    measured: dict[Point, Lived]
    chosen: Point
    simulated: int
    runs: int
    seconds: float
    highest: float | None = None
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        return self.known[self.chosen]


class Tuning:
    """One tuning under way. `tuned` after `run`."""

    def __init__(
        self,
        problem: Problem,
        state: State,
        *,
        budget_s: float,
        show: Show,
        interrupt: Interrupt,
        log: Path | None = None,
        live: bool = True,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._problem, self._state, self._show, self._interrupt = problem, state, show, interrupt
        self._budget_s, self._log, self._live, self._clock = budget_s, log, live, clock
        self._began_at = clock()
        self._notes: list[str] = []
        self._archive: dict[Point, Outcome] = {}
        self._rate = 0.0
        self._trials: Trials | None = None
        self._highest: float | None = None

    def run(self) -> Tuned:
        """Raises ArrivalsError, ConfigError, LogError, ModelError, TuneError; KeyboardInterrupt if nothing is known yet."""
        interrupted = False
        busy = os.getloadavg()[0] / self._problem.cores
        if busy > BUSY:
            self._notes.append(f"other programs use this machine ({busy:.1f} of them for each core): figures are unsure")
        times = self._calibrate()
        predictor = self._predictor = Predictor(self._problem, times)
        self._refuse_what_no_batch_meets()
        self._space = make_space(self._problem, list(times), batched=any(one.batched for one in times.values()))
        self._total = sum(1 for _ in self._space.points())
        try:
            self._search()
            self._refuse_what_nothing_meets()
            if self._live:
                self._try_live()
        except KeyboardInterrupt:
            interrupted = True
        return self._tuned(predictor, interrupted or self._interrupt.pressed)

    @property
    def _left_s(self) -> float:
        return self._budget_s - (self._clock() - self._began_at)

    def _stop_if_interrupted(self) -> None:
        if self._interrupt.pressed:
            raise KeyboardInterrupt

    # Batch times

    def _calibrate(self) -> dict[Layout, Times]:
        usable = layouts(self._problem.config, self._problem.cores)
        least, most = CALIBRATE_S
        seconds = min(max(self._budget_s * CALIBRATE_SHARE / len(usable), least), most)
        self._show.stage("measuring batch times", len(usable))
        found: dict[Layout, Times] = {}
        for layout in usable:
            self._stop_if_interrupted()
            record = self._state.calibrated.get(layout)
            if record is None:
                try:
                    record = Calibrated(layout, calibrate(self._problem, layout, seconds))
                except (ConfigError, ModelError, TuneError) as error:
                    record = Calibrated(layout, None, str(error))
                self._state.keep(record)
            if record.times is not None:
                found[layout] = record.times
            else:
                self._notes.append(f"{layout} was left out: {record.problem}")
            self._show.step(str(layout))
        if not found:
            reasons = {record.problem for record in self._state.calibrated.values()}
            raise TuneError("; ".join(sorted(reasons)))
        return self._as_recorded(found) if self._log is not None else found

    def _as_recorded(self, found: dict[Layout, Times]) -> dict[Layout, Times]:
        """All times by how much longer clients' batches took than the made-up ones, in the layout that was recorded."""
        assert self._log is not None
        batches = Batches(self._log)
        names = {
            command.instance for entry in read(self._log)[1] for command in entry.commands if isinstance(command, Dispatch)
        }
        inline = batches.header.knobs.max_batch_s < inf
        like = [one for one in found if (one.run == "inline") is inline and one.instances == len(names)]
        if not like:
            self._notes.append(f"the recording ran on {len(names)} instances, which is no layout here: its times are not used")
            return found
        factor = ratio_of(batches.samples, found[min(like)])
        self._notes.append(f"batches took {factor:.2f} times as long in the recording as on made-up inputs: so they do here")
        return {layout: times.scaled(factor) for layout, times in found.items()}

    # The simulator

    def _search(self) -> None:
        problem, predictor = self._problem, self._predictor
        least = max(LEAST_POINTS, len(self._space.layouts) + 1)
        most = max(int(self._total * MOST_SHARE), least)
        sure = len(self._space.layouts) + SURE_POINTS
        self._show.stage("searching in the simulator", most)
        until = self._budget_s * (1.0 - SEARCH_SHARE)
        value = self._value_peak if problem.load.rate is None and problem.load.trace is None else self._value
        self._rate = problem.load.rate or 0.0
        if problem.load.trace is not None:
            self._rate = problem.load.arrivals(0.0).rate

        def going() -> bool:
            return not self._interrupt.pressed and (self._left_s > until or len(self._archive) < sure)

        self._archive = evolve(self._space, value, objective_s=problem.objective_s, most=most, going=going)
        if not self._rate:
            peaks = sorted(self._archive, key=lambda point: -self._archive[point].goodput)
            self._rate = NEAR_PEAK * self._archive[peaks[0]].rate
            if self._rate:
                self._archive = {point: predictor.at(point, self._rate) for point in peaks[:REVALUED]}
        self._stop_if_interrupted()

    def _value(self, point: Point) -> Outcome:
        return self._kept(point, lambda: self._predictor.at(point, self._rate))

    def _value_peak(self, point: Point) -> Outcome:
        """Its highest rate, and p99 at half of that."""

        def found() -> Outcome:
            peak = self._predictor.peak(point)
            return Outcome(peak, 1.0, self._predictor.at(point, peak / 2).p99_s if peak else NEVER_S)

        return self._kept(point, found)

    def _kept(self, point: Point, found: Callable[[], Outcome]) -> Outcome:
        outcome = self._state.simulated.get(point)
        if outcome is None:
            outcome = found()
            self._state.keep(Simulated(point, outcome))
        self._archive[point] = outcome  # at once, for whoever interrupts
        self._show.step()
        return outcome

    # What cannot be

    def _refuse_what_no_batch_meets(self) -> None:
        single_s = min(map(self._predictor.single_s, self._predictor.times))
        if single_s > self._problem.objective_s:
            rate = self._problem.load.rate or 0.1 / single_s
            takes = f"one row alone takes {wording.duration(single_s * 1e3)}"
            raise TuneError(f"{self._asked()} cannot be met: {takes}; {self._nearest(rate)}")

    def _refuse_what_nothing_meets(self) -> None:
        problem = self._problem
        if any(outcome.meets(problem.objective_s) for outcome in self._archive.values()):
            return
        if not self._rate:
            raise TuneError(
                f"{self._asked()} is met at no rate; {self._nearest(0.1 / self._predictor.single_s(self._first()))}"
            )
        best = sorted(self._archive, key=lambda point: -self._archive[point].goodput)[:3]
        said = self._nearest(self._rate)
        if problem.load.trace is None:
            peak = max(map(self._predictor.peak, best))
            rate = f"up to {wording.rate(_two_digits(peak))} it can" if peak else "nor can it at a lower rate"
            said = f"{rate}; {said}"
        raise TuneError(f"{self._asked()} cannot be met at {wording.rate(self._rate)} on {problem.cores} cores: {said}")

    def _asked(self) -> str:
        return f"p99 = {wording.duration(self._problem.objective_s * 1e3)}"

    def _first(self) -> Layout:
        return min(self._predictor.times, key=self._predictor.single_s)

    def _nearest(self, rate: float) -> str:
        """The nearest objective that can be met at a rate, in words."""
        if rate > max(map(self._predictor.most, self._predictor.times)):
            return f"{wording.rate(rate)} are more than it can compute, whatever the objective"
        defaults = [Point(layout, self._problem.config.max_batch) for layout in self._predictor.times]
        objective_s = max(self._problem.objective_s, self._predictor.single_s(self._first()))
        for _ in range(RUNGS):
            if any(self._predictor.at(one, rate, objective_s=objective_s).meets(objective_s) for one in defaults):
                nearest = wording.duration(_two_digits(objective_s * 1e3, up=True))
                return f"the nearest objective that can be met at {wording.rate(rate)} is about p99={nearest}".replace(
                    " ms", "ms"
                )
            objective_s *= LADDER
        return f"at {wording.rate(rate)} no objective can be met for long"

    # Live

    def _try_live(self) -> None:
        trials = self._trials = Trials(
            self._predictor,
            self._state,
            self._archive,
            self._rate,
            lambda: self._left_s,
            self._show.step,
            self._interrupt,
        )
        self._show.stage("running servers", sum(count for count, _ in ROUNDS))
        trials.run()
        if self._problem.load.rate is None and self._problem.load.trace is None:
            self._highest = trials.climb()
        self._stop_if_interrupted()

    def _tuned(self, predictor: Predictor, interrupted: bool) -> Tuned:
        trials = self._trials
        measured = {} if trials is None else trials.measured
        if not self._archive or not self._rate:
            raise KeyboardInterrupt
        if trials is not None:
            self._notes += [f"{layout} was left out of live runs: {why}" for layout, why in trials.failures.items()]
        known = {**self._archive, **{point: run.outcome for point, run in measured.items()}}
        objective_s = self._problem.objective_s
        if trials is not None:
            chosen = trials.best()
        else:
            best = max(outcome.goodput for outcome in known.values())
            chosen = min(known, key=lambda point: (better_first(point, known[point], objective_s, best), point))
        if measured and not known[chosen].meets(objective_s):
            good, must = (wording.share(part, 1.0) for part in (known[chosen].good, GOOD_SHARE))
            self._notes.append(f"no live run met the objective: in the best {good} of the answers were in time, {must} must be")
        return Tuned(
            problem=self._problem,
            predictor=predictor,
            space=self._space,
            rate=self._rate,
            total=self._total,
            known=known,
            measured=measured,
            chosen=chosen,
            simulated=len(self._state.simulated),
            runs=0 if trials is None else trials.runs,
            seconds=self._clock() - self._began_at,
            highest=self._highest,
            interrupted=interrupted,
            notes=self._notes,
        )


def _two_digits(value: float, *, up: bool = False) -> float:
    if value <= 0.0:
        return value
    unit = 10.0 ** (int(log10(value)) - 1 if value >= 1.0 else int(log10(value)) - 2)
    return (ceil(value / unit) if up else int(value / unit)) * unit


def why(tuned: Tuned) -> dict[str, str]:
    """For each knob that was chosen, what its neighbours would give, by the corrected simulator."""
    point, space = tuned.chosen, tuned.space
    own = tuned.predictor.at(point, tuned.rate)
    said = {}
    for knob, values in (("max_batch", space.batches), ("max_wait_s", space.waits), ("codel_target_s", space.codels)):
        index = values.index(getattr(point, knob))
        others = [values[number] for number in (index - 1, index + 1) if 0 <= number < len(values)]
        said[knob] = _beside([msgspec.structs.replace(point, **{knob: other}) for other in others], knob, own, tuned)
    if point.layout.instances > 1:
        said["hedge"] = _beside([msgspec.structs.replace(point, hedge=not point.hedge)], "hedge", own, tuned)
    said["run"] = _beside_layouts(tuned)
    return said


def _beside(others: list[Point], knob: str, own: Outcome, tuned: Tuned) -> str:
    """What each of them would give, those that would change nothing together."""
    same, parts = [], []
    for other in others:
        value = getattr(other, knob)
        shown = wording.duration(value * 1e3) if knob.endswith("_s") and value else str(value).lower()
        outcome = tuned.predictor.at(other, tuned.rate)
        if abs(outcome.p99_s / own.p99_s - 1.0) < ALIKE and abs(outcome.good - own.good) < ALIKE:
            same.append(shown)
        else:
            parts.append(f"with {shown}: {in_words(outcome)}")
    if same:
        parts.append(f"with {' or '.join(same)}: no difference")
    if not parts:
        return "The only value there is."
    return f"Simulated: {in_words(own)}; {'; '.join(parts)}."


def _beside_layouts(tuned: Tuned) -> str:
    lines = []
    objective_s = tuned.problem.objective_s
    for layout in tuned.space.layouts:
        if layout == tuned.chosen.layout:
            continue
        points = {point: outcome for point, outcome in tuned.known.items() if point.layout == layout}
        if points:
            top = max(outcome.goodput for outcome in points.values())
            best = min(points, key=lambda point: (better_first(point, points[point], objective_s, top), point))
            how = "measured" if best in tuned.measured else "simulated"
            lines.append(f"{layout}: {in_words(points[best])} ({how})")
    return "\n".join(lines)


def in_words(outcome: Outcome) -> str:
    if outcome.p99_s >= NEVER_S:
        return "nothing in time"
    return f"p99 {wording.duration(outcome.p99_s * 1e3)}, {wording.share(outcome.good, 1.0)} in time"
