"""Chains at twice their capacity in virtual time: the objective shared out online, beside every static split of it.

python -m benchmarks.pipelines.deadlines [--points 11] [--seconds 8] [--seeds 1] [CASE]
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from math import inf

from msgspec import Struct

from dlproxy.config.pipelines import StepConfig, Wiring, wired
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.report.result import Tally
from dlproxy.lab.simulate.engine import Call, SimulatedModel, Simulation
from dlproxy.lab.simulate.pipelines import CAPACITY, Paces, SimulatedPipeline, StepPlan
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.message import Failure, FailureKind, Ticket
from dlproxy.policy.arbiter import Arbiter
from dlproxy.policy.balancing import LeastPeakEwma
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.pipelines import Pacing, Stage

WARM_S = 2.0  # until then nothing counts
LATE_S = 1e-9
MAX_BATCH = 32
CV = 0.2  # of the times of batches


class Served(Struct, frozen=True):
    """A model: base_s + row_s * rows."""

    base_s: float
    row_s: float


class Chain(Struct, frozen=True):
    """A pipeline, whose steps ask models one after the other. `items`: of steps that run for several, one of these numbers."""

    models: tuple[str, ...]
    slo_s: float
    items: Mapping[str, Sequence[int]] = {}

    @property
    def steps(self) -> dict[str, StepPlan]:
        return {name: StepPlan(model=name, items=self.items.get(name, (1,))) for name in self.models}

    @property
    def wiring(self) -> Wiring:
        sources = ("x", *(f"{name}.y" for name in self.models))
        configs = {
            name: StepConfig(model=name, inputs={"x": source}) for name, source in zip(self.models, sources, strict=False)
        }
        return wired(configs, ["x"], {"y": sources[-1]})


class Case(Struct, frozen=True):
    """Pipelines that get equally many requests. `cores`: that batches take turns on; 0: each model has its own."""

    name: str
    models: Mapping[str, Served]
    chains: tuple[Chain, ...]
    cores: int = 0

    @property
    def capacity(self) -> float:
        """Requests per second of all pipelines that the bottleneck can do with the largest batches."""
        work_s = dict.fromkeys(self.models, 0.0)
        for chain in self.chains:
            for name, step in chain.steps.items():
                model = self.models[name]
                work_s[name] += (model.base_s / MAX_BATCH + model.row_s) * sum(step.items) / len(step.items)
        return len(self.chains) / (sum(work_s.values()) / self.cores if self.cores else max(work_s.values()))


CHEAP, DEAR = Served(0.002, 0.0005), Served(0.02, 0.005)
CASES = (
    Case("cheap, dear", {"a": CHEAP, "b": DEAR}, (Chain(("a", "b"), 0.3),)),
    Case("dear, cheap", {"a": DEAR, "b": CHEAP}, (Chain(("a", "b"), 0.3),)),
    Case("equal", {"a": DEAR, "b": DEAR}, (Chain(("a", "b"), 0.3),)),
    Case(
        "1 to 20 items",
        {"a": Served(0.01, 0.002), "b": Served(0.005, 0.001)},
        (Chain(("a", "b"), 0.3, {"b": tuple(range(1, 21))}),),
    ),
    Case(
        "3 stages",
        {"a": Served(0.005, 0.002), "b": Served(0.01, 0.005), "c": Served(0.005, 0.001)},
        (Chain(("a", "b", "c"), 0.3),),
    ),
    Case("one core", {"a": Served(0.01, 0.005), "b": DEAR}, (Chain(("a", "b"), 0.4),), cores=1),
    Case(
        "a stage of two",
        {"a": Served(0.01, 0.004), "s": Served(0.01, 0.004), "c": Served(0.005, 0.002)},
        (Chain(("a", "s"), 0.3), Chain(("s", "c"), 0.2)),
    ),
)


class Static:
    """The same shares of the objective for ever, and batches for them. `relative`: a step's time begins when the step does,
    else with the request. `entrance`: who lets requests in; None: all of them.
    """

    def __init__(
        self, chain: Chain, shares: Sequence[float], *, relative: bool = False, entrance: Pacing | None = None
    ) -> None:
        self._shares_s = {name: share * chain.slo_s for name, share in zip(chain.models, shares, strict=True)}
        self._until_s = {name: sum(shares[: place + 1]) * chain.slo_s for place, name in enumerate(chain.models)}
        self._relative = relative
        self._entrance = entrance
        self._is_split = False

    def begun(self, step: str) -> None:
        if self._entrance is not None:
            self._entrance.begun(step)

    def observed(self, step: str, *, waited_s: float, computed_s: float, items: int = 1) -> None:
        if self._entrance is not None:
            self._entrance.observed(step, waited_s=waited_s, computed_s=computed_s, items=items)

    def deadline_at(self, step: str, ticket: Ticket, now: float, items: int = 1) -> float:
        if self._relative:
            return min(now + self._shares_s[step], ticket.deadline_at)
        return min(ticket.arrived_at + self._until_s[step], ticket.deadline_at)

    def refusal(self, ticket: Ticket, waits: Mapping[str, float], now: float) -> Failure | None:
        return None if self._entrance is None else self._entrance.refusal(ticket, waits, now)

    def splits(self, now: float) -> bool:
        return not self._is_split

    def split(self, objective_s: float, stages: Mapping[str, Stage]) -> Mapping[str, float]:
        self._is_split = True
        return self._shares_s


class Outcome(Struct):
    """`goodput`: requests per second answered within the objective. `answered`, `refused` (at the entrance): shares of all.
    `lost`: the share of what the first steps computed whose requests died later.
    """

    goodput: float
    answered: float
    refused: float
    lost: float


class Counted(Simulation):
    """Counts what was answered in time."""

    def __init__(self, objectives_s: Sequence[float]) -> None:
        super().__init__(Tally(0.0, inf, None), balancer=LeastPeakEwma())
        self.objectives_s = objectives_s
        self.good = self.answered = self.ended = 0

    def _finished(self, number: int, failure: FailureKind | None, now: float) -> None:
        due_at, _ = self._open[number]
        if due_at >= WARM_S:
            self.ended += 1
            self.answered += failure is None
            in_time = now - due_at <= self.objectives_s[number % len(self.objectives_s)] + LATE_S
            self.good += failure is None and in_time
        super()._finished(number, failure, now)


def run(case: Case, pace: Callable[[Chain], Paces], *, load: float = 2.0, seconds: float = 8.0, seed: int = 1) -> Outcome:
    """Poisson arrivals at `load` times the capacity."""
    models = []
    for number, (name, served) in enumerate(case.models.items()):
        knobs = LaneKnobs(max_batch=MAX_BATCH, arbitrated=bool(case.cores))
        prior = [(rows, served.base_s + served.row_s * rows) for rows in (1, 2, 4, 8)]
        times = Fitted(served.base_s, served.row_s, cv=CV, seed=100 * seed + number)
        needs = {"cores": 1.0} if case.cores else None
        models.append(SimulatedModel(name, Lane(knobs, prior), times, [f"{name}-0"], needs=needs))
    pipelines = []
    for number, chain in enumerate(case.chains):
        lane, name = Lane(LaneKnobs(max_batch=1)), f"chain-{number}"
        model = SimulatedModel(name, lane, Fitted(1e-3, 0.0), [f"{name}-0"], capacity=CAPACITY, needs={"cores": 0.0})
        model.pipeline = SimulatedPipeline(chain.wiring, chain.steps, pace(chain), seed=seed)
        pipelines.append(model.pipeline)
        models.append(model)
    simulation = Counted([chain.slo_s for chain in case.chains])
    simulation.add("node", models, arbiter=Arbiter({"cores": case.cores}) if case.cores else None)
    simulation.run(_calls(case, load, seconds, seed))
    first, last = (
        sum(len(pipeline.times[chain.models[place]].computed_s) for pipeline, chain in zip(pipelines, case.chains, strict=True))
        for place in (0, -1)
    )
    refused = sum(pipeline.refused for pipeline in pipelines)
    return Outcome(
        goodput=simulation.good / (seconds - WARM_S),
        answered=simulation.answered / simulation.ended,
        refused=refused / (load * case.capacity * seconds),
        lost=1.0 - last / first,
    )


def _calls(case: Case, load: float, seconds: float, seed: int) -> Iterator[Call]:
    number = 0
    for chunk in make_arrivals("poisson", rate=load * case.capacity, seed=seed).chunks(seconds):
        for at in chunk.tolist():
            number += 1
            place = number % len(case.chains)
            yield Call(f"chain-{place}", 1, case.chains[place].slo_s, at)


def online(chain: Chain) -> Paces:
    """What serves."""
    return Pacing(chain.wiring)


def static(shares: Sequence[float], *, relative: bool, entrance: bool) -> Callable[[Chain], Paces]:
    """One of what it is compared with."""
    return lambda chain: Static(chain, shares, relative=relative, entrance=Pacing(chain.wiring) if entrance else None)


class Tried(Struct):
    """One static split."""

    goodput: float
    shares: tuple[float, ...]
    relative: bool
    entrance: bool

    def __str__(self) -> str:
        shares = " / ".join(f"{share:.2f}" for share in self.shares)
        return f"{shares}{', per stage' if self.relative else ''}{', entrance' if self.entrance else ''}"


def grid(stages: int, points: int) -> list[tuple[float, ...]]:
    """All shares in steps of 1 / (points + 1), none of them 0."""
    parts = points + 1
    cuts = product(range(1, parts), repeat=stages - 1)
    return [(*(part / parts for part in cut), 1.0 - sum(cut) / parts) for cut in cuts if sum(cut) < parts]


def try_split(what: tuple[Case, tuple[float, ...], bool, bool, float, int]) -> Tried:
    case, shares, relative, entrance, seconds, seed = what
    outcome = run(case, static(shares, relative=relative, entrance=entrance), seconds=seconds, seed=seed)
    return Tried(outcome.goodput, shares, relative, entrance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", nargs="?", default="")
    parser.add_argument(
        "--points",
        type=int,
        default=11,
        help="static splits between two stages, four fewer along each side of three (default 11)",
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="virtual (default 8)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each (default 1)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    args = parser.parse_args()
    print("| chain | capacity | online | best static split | ratio | refused at the entrance | computed for nothing |")
    print("|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(args.jobs) as executor:
        for case in (case for case in CASES if args.case in case.name):
            for seed in range(1, args.seeds + 1):
                stages = max(len(chain.models) for chain in case.chains)
                shares = grid(stages, args.points if stages == 2 else args.points - 4)
                tries = [(case, *each, args.seconds, seed) for each in product(shares, (False, True), (False, True))]
                best = max(executor.map(try_split, tries, chunksize=4), key=lambda tried: tried.goodput)
                ours = run(case, online, seconds=args.seconds, seed=seed)
                print(
                    f"| {case.name} | {case.capacity:.0f}/s | {ours.goodput:.1f}/s | {best.goodput:.1f}/s ({best}) | "
                    f"**{ours.goodput / best.goodput:.2f}** | {ours.refused:.0%} | {ours.lost:.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
