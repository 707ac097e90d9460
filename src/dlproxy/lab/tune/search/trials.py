"""The live phase: few runs on real servers, by halving: many points briefly, the better ones longer, the best to confirm.

What a run shows of batch times and paths corrects the simulator, and how far it was off at p99 too. Called by tune.py.
Not aware of: how points were found.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from math import log
from statistics import median
from types import TracebackType
from typing import Protocol

import msgspec
from msgspec import Struct, field

from dlproxy.lab.load.run import Interrupt
from dlproxy.lab.tune.search.evolve import front
from dlproxy.lab.tune.search.live import LiveServer
from dlproxy.lab.tune.search.predict import Predictor
from dlproxy.lab.tune.search.problem import Layout, Outcome, Point, Problem, TuneError, better_first
from dlproxy.lab.tune.search.state import Lived, State
from dlproxy.lab.tune.search.times import Times

MOST_RUNS = 30
ROUNDS = ((8, 2.5), (4, 4.0), (2, 8.0))  # points, and seconds of each: the last confirms
MOST_LAYOUTS = 4  # that a round starts servers for
PER_LAYOUT = 6  # points of each that are valued anew when the simulator has learnt
PER_UNTRIED = 3  # and of those that no server ran
LEAST_REQUESTS, MOST_SECONDS = 300, 20.0  # of a run: slow models get longer ones, up to a point
OVERHEAD_S = 2.5  # of a run: processes start, answers are waited for
START_S = 4.0  # of a server
LEAST_GOOD = 0.5  # below, what is measured is the overload, and p99 says nothing of the simulator
LADDER = 5  # runs at other rates, where the highest rate is looked for
STEP_UP, STEP_DOWN = 1.12, 0.9


class Server(Protocol):
    """A LiveServer, or what stands for one in tests."""

    def __enter__(self) -> "Server": ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def turn(self, point: Point) -> None: ...

    def load(self, rate: float, seconds: float, seed: int, interrupt: Interrupt) -> Outcome: ...

    def memory_bytes(self) -> int: ...

    def learn(self, before: Times) -> Times: ...


class Serve(Protocol):
    """Makes one, which is not started yet."""

    def __call__(self, problem: Problem, point: Point, *, record: bool) -> Server: ...


class Trials(Struct):
    """The live phase of one tuning. `left_s`: seconds of the budget that are left; `tell`: is told of each run."""

    predictor: Predictor
    state: State
    archive: dict[Point, Outcome]
    rate: float
    left_s: Callable[[], float]
    tell: Callable[[str], None]
    interrupt: Interrupt
    serve: Serve = LiveServer
    measured: dict[Point, Lived] = field(default_factory=dict)
    """The longest run of each point, the latest of equally long ones."""
    runs: int = 0
    surprises: list[float] = field(default_factory=list)
    """Logarithms of p99 as measured over p99 as predicted from what was known before any live run."""
    failures: dict[Layout, str] = field(default_factory=dict)

    def run(self) -> None:
        """All rounds that the budget has time for, but at least a run of one point to learn from and one to confirm it."""
        for number, (count, shortest) in enumerate(ROUNDS):
            last = number == len(ROUNDS) - 1
            seconds = self._long_enough(shortest)
            points = self._candidates(count)
            budget_s = self.left_s() if last else self.left_s() / 2
            while len(points) > 1 and self._cost_s(points, seconds) > budget_s:
                points = points[:-1]
            if self._cost_s(points, seconds) > budget_s:
                if 0 < number < len(ROUNDS) - 1:
                    continue
                seconds = self._long_enough(ROUNDS[0][1])
            self._round(points, seconds, seed=number, record=number == 0)
            self._learn()

    def best(self) -> Point:
        """Of what a confirming run saw meet the objective; else of what was measured, or, if nothing was, predicted.

        A brief run that went well by chance is no reason to choose.
        """
        objective_s = self.predictor.problem.objective_s
        measured = {point: run.outcome for point, run in self.measured.items()}
        confirmed = {
            point: outcome
            for point, outcome in measured.items()
            if self.measured[point].seed == len(ROUNDS) - 1 and outcome.meets(objective_s)
        }
        return self._ranked(confirmed or measured or self.archive)[0]

    def climb(self) -> float:
        """The highest rate at which the best point was seen to meet the objective, found by few more runs; 0 if none was."""
        point, objective_s = self.best(), self.predictor.problem.objective_s
        seconds = self._long_enough(ROUNDS[1][1])
        run = self.measured.get(point)
        if run is None:
            return 0.0
        passed, failed = (self.rate, 0.0) if run.outcome.meets(objective_s) else (0.0, self.rate)
        try:
            with self.serve(self.predictor.problem, point, record=False) as server:
                for step in range(LADDER):
                    if self.left_s() < seconds + OVERHEAD_S or self.runs >= MOST_RUNS:
                        break
                    rate = passed * STEP_UP if not failed else failed * STEP_DOWN if not passed else (passed * failed) ** 0.5
                    if passed and failed and failed / passed < 1.06:
                        break
                    outcome = self._one(server, point, rate, seconds, seed=10 + step)
                    if outcome.meets(objective_s):
                        passed = rate
                    else:
                        failed = rate
        except TuneError as error:
            self.failures[point.layout] = str(error)
        return passed

    def _long_enough(self, seconds: float) -> float:
        return max(seconds, min(LEAST_REQUESTS / self.rate, MOST_SECONDS))

    # Rounds

    def _candidates(self, count: int) -> list[Point]:
        """The best by what is known now: first the best of each layout, then the rest of the front and of the ranking."""
        ranked = [point for point in self._ranked(self._known()) if point.layout not in self.failures]
        if count == ROUNDS[-1][0]:  # to confirm: nothing but the best, in layouts of which live runs have shown something
            tried_ = {point.layout for point in self.measured}
            return [point for point in ranked if point.layout in tried_ or not tried_][:count]
        best: dict[Layout, Point] = {}
        for point in ranked:
            best.setdefault(point.layout, point)
        tried = dict(list(best.items())[:MOST_LAYOUTS])
        others = [point for point in (*front(self.archive), *ranked) if point.layout in tried]
        return list(dict.fromkeys((*tried.values(), *others)))[:count]

    def _known(self) -> dict[Point, Outcome]:
        return {**self.archive, **{point: run.outcome for point, run in self.measured.items()}}

    def _ranked(self, known: dict[Point, Outcome]) -> list[Point]:
        best = max((outcome.goodput for outcome in known.values()), default=0.0)
        objective_s = self.predictor.problem.objective_s
        return sorted(known, key=lambda point: (better_first(point, known[point], objective_s, best), point))

    def _cost_s(self, points: Sequence[Point], seconds: float) -> float:
        return len(points) * (seconds + OVERHEAD_S) + len({point.layout for point in points}) * START_S

    def _round(self, points: Iterable[Point], seconds: float, *, seed: int, record: bool) -> None:
        for layout, group in groupby(sorted(points, key=lambda point: point.layout), key=lambda point: point.layout):
            try:
                self._on_one_server(layout, list(group), seconds, seed, record)
            except TuneError as error:
                self.failures[layout] = str(error)
                self.tell(f"left out: {error}")

    def _on_one_server(self, layout: Layout, points: list[Point], seconds: float, seed: int, record: bool) -> None:
        known = [self.state.live(point, self.rate, seconds, seed) for point in points]
        for run in filter(None, known):
            self._take(run)
        missing = [point for point, run in zip(points, known, strict=True) if run is None]
        if not missing or self.runs >= MOST_RUNS:
            return
        server = self.serve(self.predictor.problem, missing[0], record=record)
        missing = missing[: MOST_RUNS - self.runs]
        with server:
            for point in missing:
                if point != missing[0]:
                    server.turn(point)
                self._one(server, point, self.rate, seconds, seed)
        if record:
            times = server.learn(self.predictor.times[layout])
            self._take(msgspec.structs.replace(self.measured[missing[-1]], times=times), keep=True)

    def _one(self, server: Server, point: Point, rate: float, seconds: float, seed: int) -> Outcome:
        predicted = self.predictor.at(point, rate)
        outcome = server.load(rate, seconds, seed, self.interrupt)
        self.runs += 1
        if not self.predictor.times[point.layout].live and min(outcome.good, predicted.good) > LEAST_GOOD:
            self.surprises.append(log(outcome.p99_s / predicted.p99_s) + self.predictor.off_by.get(point.layout, 0.0))
        run = Lived(point, rate, seconds, seed, outcome, server.memory_bytes(), predicted)
        self._take(run, keep=True)
        self.tell(f"{point.layout}, max_batch {point.max_batch}: p99 {outcome.p99_s * 1e3:.3g} ms")
        return outcome

    def _take(self, run: Lived, *, keep: bool = False) -> None:
        if keep:
            self.state.keep(run)
        if run.rate == self.rate:
            before = self.measured.get(run.point)
            if before is None or run.seconds >= before.seconds:
                self.measured[run.point] = run
        if run.times is not None:
            self._put(run.point.layout, run.times)

    # Learning

    def _put(self, layout: Layout, times: Times) -> None:
        self.predictor.times[layout] = times
        self.predictor.off_by.pop(layout, None)

    def _learn(self) -> None:
        """Value anew what the simulator knows better now, and by how much it is off."""
        predictor = self.predictor
        tried = {point.layout for point in self.measured}
        # the others are as far off as those were before they ran: else what nobody has tried would always look better
        usual = median(self.surprises) if self.surprises else 0.0
        for layout in {point.layout for point in self.archive} - tried:
            predictor.off_by[layout] = usual
            self._value_anew(layout, PER_UNTRIED)
        for layout in tried:
            predictor.off_by.pop(layout, None)
            ratios = [
                log(run.outcome.p99_s / simulated.p99_s)
                for point, run in self.measured.items()
                if point.layout == layout and run.outcome.good > LEAST_GOOD
                for simulated in (predictor.at(point, self.rate),)
                if simulated.good > LEAST_GOOD
            ]
            predictor.off_by[layout] = median(ratios) if ratios else 0.0
            self._value_anew(layout, PER_LAYOUT)

    def _value_anew(self, layout: Layout, count: int) -> None:
        """The best points of a layout, and those that ran. The others are not comparable any more and go."""
        ranked = [point for point in self._ranked(self.archive) if point.layout == layout]
        for point in ranked:
            del self.archive[point]
        for point in dict.fromkeys((*ranked[:count], *(one for one in self.measured if one.layout == layout))):
            self.archive[point] = self.predictor.at(point, self.rate)
