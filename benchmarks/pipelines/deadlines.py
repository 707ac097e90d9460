"""Chains under load in virtual time: online deadlines beside every static split of the objective.

python -m benchmarks.pipelines.deadlines
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf

from msgspec import Struct, structs

from dlproxy.config.pipelines import StepConfig, Wiring, wired
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.report.result import Tally
from dlproxy.lab.simulate.engine import Call, SimulatedModel, Simulation
from dlproxy.lab.simulate.pipelines import Paces, SimulatedPipeline, StepPlan
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.message import Failure, FailureKind, Ticket
from dlproxy.policy.arbiter import Arbiter
from dlproxy.policy.balancing import LeastPeakEwma
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.pipelines import Pacing


class Served(Struct):
    base_s: float
    row_s: float
    instances: int = 1
    max_batch: int = 32
    cv: float = 0.2


class Chain(Struct):
    """A pipeline: its steps in a row."""

    steps: Mapping[str, StepPlan]
    slo_s: float


class Case(Struct):
    name: str
    models: Mapping[str, Served]
    chains: Mapping[str, Chain]
    cores: int = 0


def line(*names: str, items: Mapping[str, Sequence[int]] = {}) -> dict[str, StepPlan]:
    return {name: StepPlan(model=name, items=items.get(name, (1,))) for name in names}


WARM = 2.0
FAN = tuple(range(1, 21))
CASES = [
    Case("cheap->dear", {"a": Served(0.002, 0.0005), "b": Served(0.02, 0.005)}, {"p": Chain(line("a", "b"), 0.3)}),
    Case("dear->cheap", {"a": Served(0.02, 0.005), "b": Served(0.002, 0.0005)}, {"p": Chain(line("a", "b"), 0.3)}),
    Case("balanced", {"a": Served(0.02, 0.005), "b": Served(0.02, 0.005)}, {"p": Chain(line("a", "b"), 0.3)}),
    Case("fan-out", {"a": Served(0.01, 0.002), "b": Served(0.005, 0.001)}, {"p": Chain(line("a", "b", items={"b": FAN}), 0.3)}),
    Case(
        "3 stages",
        {"a": Served(0.005, 0.002), "b": Served(0.01, 0.005), "c": Served(0.005, 0.001)},
        {"p": Chain(line("a", "b", "c"), 0.3)},
    ),
    Case("shared cores", {"a": Served(0.01, 0.005), "b": Served(0.02, 0.005)}, {"p": Chain(line("a", "b"), 0.4)}, cores=1),
    Case(
        "two share",
        {"a": Served(0.01, 0.004), "s": Served(0.01, 0.004), "c": Served(0.005, 0.002)},
        {"p": Chain(line("a", "s"), 0.3), "q": Chain(line("s", "c"), 0.2)},
    ),
]


def wiring(steps: Mapping[str, StepPlan]) -> Wiring:
    configs, before = {}, ""
    for name, step in steps.items():
        configs[name] = StepConfig(model=name, inputs={"x": f"{before}.y" if before else "x"})
        before = name
    return wired(configs, ["x"], {"y": f"{before}.y"})


class Split:
    """The same shares of the objective for ever. `relative`: each step's share begins when the step does."""

    def __init__(
        self,
        wiring: Wiring,
        shares: Sequence[float],
        slo_s: float,
        *,
        relative: bool,
        inner: Pacing | None,
        batching: bool = False,
    ) -> None:
        self._batching = batching
        self._shares2 = {n: s * slo_s for n, s in zip(wiring.order, shares)}
        self._shares = dict(zip(wiring.order, shares))
        self._until, so_far = {}, 0.0
        for name, share in self._shares.items():
            so_far += share
            self._until[name] = so_far * slo_s
        self._slo_s = slo_s
        self._relative = relative
        self._inner = inner

    def observed(self, step: str, *, waited_s: float, computed_s: float, items: int = 1) -> None:
        if self._inner is not None:
            self._inner.observed(step, waited_s=waited_s, computed_s=computed_s, items=items)

    def deadline_at(self, step: str, ticket: Ticket, now: float, items: int = 1) -> float:
        if self._relative:
            return min(now + self._shares[step] * self._slo_s, ticket.deadline_at)
        return ticket.arrived_at + self._until[step]

    def begun(self, step):
        if self._inner is not None:
            self._inner.begun(step)

    def splits(self, now):
        return self._inner.splits(now) if self._inner else not self.done

    done = False

    def split(self, objective_s, stages):
        self.done = True
        if self._inner is not None:
            self._inner.split(objective_s, stages)
        return self._shares2 if self._batching else {}

    def refusal(self, ticket: Ticket, waits: Mapping[str, float], now: float) -> Failure | None:
        return None if self._inner is None else self._inner.refusal(ticket, waits, now)


def capacity(case: Case) -> float:
    """Requests per second that the bottleneck can do, with batches of the most rows; equal shares of the pipelines."""
    work: dict[str, float] = {}
    for chain in case.chains.values():
        for step in chain.steps.values():
            served = case.models[step.model]
            row_s = (served.base_s + served.row_s * served.max_batch) / served.max_batch / served.instances
            work[step.model] = work.get(step.model, 0.0) + row_s * sum(step.items) / len(step.items)
    per_request = sum(work.values()) / case.cores if case.cores else max(work.values())
    return len(case.chains) / per_request


def run(
    case: Case,
    pace: Callable[[Wiring, Chain], Paces],
    *,
    load: float = 2.0,
    seconds: float = 20.0,
    seed: int = 0,
    slos: Mapping[str, float] = {},
):
    models = []
    for number, (name, served) in enumerate(case.models.items()):
        knobs = LaneKnobs(max_batch=served.max_batch, arbitrated=bool(case.cores), slo_s=slos.get(name))
        prior = [(rows, served.base_s + served.row_s * rows) for rows in (1, 2, 4, 8)]
        times = Fitted(served.base_s, served.row_s, cv=served.cv, seed=seed * 100 + number)
        models.append(
            SimulatedModel(
                name,
                Lane(knobs, prior),
                times,
                [f"{name}-{i}" for i in range(served.instances)],
                needs={"cores": 1.0} if case.cores else None,
            )
        )
    tally = Tally(0.0, inf, None)
    arbiter = Arbiter({"cores": case.cores}) if case.cores else None
    good = dict.fromkeys(case.chains, 0)
    sent = 0

    class Counting(Simulation):
        def _finished(self, number: int, failure: FailureKind | None, now: float) -> None:
            due_at, _ = self._open[number]
            name = names[number % len(names)]
            if failure is None and due_at >= WARM and now - due_at <= case.chains[name].slo_s + 1e-9:
                good[name] += 1
            ends[failure] = ends.get(failure, 0) + 1
            super()._finished(number, failure, now)

    ends: dict = {}
    simulation = Counting(tally, balancer=LeastPeakEwma())
    pipelines = {}
    for name, chain in case.chains.items():
        hung = wiring(chain.steps)
        model = SimulatedModel(name, Lane(LaneKnobs(max_batch=1)), Fitted(1e-3, 0.0), [f"{name}-0"], capacity=256)
        pipelines[name] = model.pipeline = SimulatedPipeline(hung, chain.steps, pace(hung, chain), seed=seed)
        models.append(model)
    if arbiter is not None:
        for m in models:
            if m.pipeline is not None:
                m.needs = {"cores": 0.0}
    simulation.add("node", models, arbiter=arbiter)
    names = list(case.chains)
    arrivals = make_arrivals("poisson", rate=load * capacity(case), seed=seed)

    def calls():
        number = 0
        for chunk in arrivals.chunks(seconds):
            for at in chunk.tolist():
                number += 1
                name = names[number % len(names)]
                yield Call(name, 1, case.chains[name].slo_s, at)

    simulation.run(calls())
    return sum(good.values()) / (seconds - WARM), good, ends, pipelines


def sweep(case: Case, points: int, seconds: float, seed: int, load: float = 2.0):
    best = (0.0, "")
    n = max(len(c.steps) for c in case.chains.values())
    grid = []
    for i in range(1, points + 1):
        x = i / (points + 1)
        if n == 2:
            grid.append((x, 1 - x))
        else:
            for j in range(1, points + 1 - i):
                y = j / (points + 1)
                grid.append((x, y, 1 - x - y))
    rows = []
    for batching in (False, True):
        for relative in (False, True):
            for entrance in (False, True):
                for shares in grid:
                    g, *_ = run(
                        case,
                        lambda w, c: Split(
                            w, shares, c.slo_s, relative=relative, inner=Pacing(w) if entrance else None, batching=batching
                        ),
                        seconds=seconds,
                        seed=seed,
                        load=load,
                    )
                    rows.append(
                        (
                            g,
                            f"{tuple(round(s, 2) for s in shares)}{' rel' if relative else ''}{' ent' if entrance else ''}{' batch' if batching else ''}",
                        )
                    )
    return rows


if __name__ == "__main__":
    import sys, time

    points = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 10.0
    which = sys.argv[3] if len(sys.argv) > 3 else ""
    for case in CASES:
        if which not in case.name:
            continue
        t = time.time()
        g, good, ends, pipes = run(case, lambda w, c: Pacing(w), seconds=seconds, seed=1)
        el = time.time() - t
        cap = capacity(case)
        rows = sweep(case, points, seconds, 1)
        out = []
        for label, test in (
            ("plain", lambda t: "batch" not in t and "ent" not in t),
            ("ent", lambda t: "batch" not in t and "ent" in t),
            ("batch", lambda t: "batch" in t and "ent" not in t),
            ("batch+ent", lambda t: "batch" in t and "ent" in t),
        ):
            b = max(r for r in rows if test(r[1]))
            out.append(f"{label}: {g / max(b[0], 1e-9):.2f} {b[1]}")
        print(
            f"{case.name:14} cap {cap:.0f}/s pacing {g:.1f} ({el:.1f}s) refused {[p.refused for p in pipes.values()]} { ({k.value if k else 'ok': v for k, v in ends.items()}) }"
        )
        print("     ", " | ".join(out), flush=True)
