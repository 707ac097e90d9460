"""What one scenario shows: the autopilot beside the best static configuration and beside none, or under a steady load.

Called by __main__.py in processes of their own. What static configurations bring is kept in .cache, as it takes the longest.
"""

import hashlib
from pathlib import Path

import msgspec
from msgspec import Struct

from benchmarks.autopilot.runs import FINALISTS, LOOK_S, best_static, run, run_steady
from benchmarks.autopilot.scenarios import MEASURED_S, PHASE_S, SETTLED_S, make
from benchmarks.autopilot.shared import best_split, in_words
from benchmarks.autopilot.shared import make as make_models
from benchmarks.autopilot.shared import run as run_shared
from dlproxy.lab.simulate.scenario import Part, Scenario, Static
from dlproxy.policy.tuning import make_knob_policy
from dlproxy.policy.tuning.pilot import Decision

CACHE = Path(__file__).parent / ".cache"
ENOUGH = 0.95  # of the best static configuration's answers in time, once it has settled
MORE, LEAST = 2.0, 0.01  # misses of a whole phase: at most so many times the reference's, and so much of all requests
HARMLESS = 0.99  # of the answers in time without it
SETTLING_S, STEADY_S = 120.0, 1200.0
SPAN_S, MOST_CHANGES = 600.0, 2  # under a steady load

Best = tuple[Part, Static]


class Half(Struct):
    """One phase. `ratio`: answers in time, settled, to the `best` static configuration's. `missed`: of the whole phase."""

    ratio: float
    missed: float
    reference: float
    best: Static

    @property
    def most_missed(self) -> float:
        return MORE * self.reference + LEAST


class Comparison(Struct):
    """`on_off`: answers in time with the autopilot to those without it, both phases."""

    number: int
    shift: str
    words: str
    halves: tuple[Half, Half]
    on_off: float
    kept: int
    tried: int

    def failures(self) -> list[str]:
        """In words; none: all is well."""
        found = []
        for name, half in zip(("first phase", "second phase"), self.halves, strict=True):
            if half.ratio < ENOUGH:
                found.append(f"{name}: {half.ratio:.1%} of what {half.best} answers in time")
            if half.missed > half.most_missed:
                found.append(f"{name}: misses {half.missed:.2%} of its requests, at most {half.most_missed:.2%} are allowed")
        if self.on_off < HARMLESS:
            found.append(f"{self.on_off:.1%} of what is answered in time without it")
        return found


class Steadiness(Struct):
    """`most`: changes kept in any ten minutes, once it has settled; `settling`: before."""

    number: int
    words: str
    most: int
    settling: int
    tried: int

    def failures(self) -> list[str]:
        return (
            []
            if self.most <= MOST_CHANGES
            else [f"{self.most} changes kept in ten minutes, at most {MOST_CHANGES} are allowed"]
        )


class Sharing(Struct):
    """Two models on two cores, and a third from the second phase on: weighed answers in time, to those of the best split."""

    number: int
    words: str
    ratios: tuple[float, float]
    best: tuple[tuple[float, ...], tuple[float, ...]]
    kept: int
    tried: int

    def failures(self) -> list[str]:
        return [
            f"{name}: {ratio:.1%} of what the shares {split} answer in time"
            for name, ratio, split in zip(("two models", "three models"), self.ratios, self.best, strict=True)
            if ratio < ENOUGH
        ]


def compare(number: int, seed: int, policy: str, *, again: bool = False) -> Comparison:
    """One scenario. `again`: what is in the cache does not count."""
    scenario = make(number, seed)
    on, off = run(scenario, make_knob_policy(policy), seed), run(scenario, None, seed)
    halves = []
    for (part, static), settled, whole in zip(references(scenario, seed, again=again), on.settled, on.whole, strict=True):
        halves.append(Half(settled.good / max(part.good, 1), whole.missed, part.missed, static))
    good_on, good_off = (sum([part.good for part in outcome.whole]) for outcome in (on, off))
    kept, tried = (sum([decision.kind == kind for decision in on.log]) for kind in ("keeps", "tries"))
    return Comparison(number, scenario.shift, scenario.words(), (halves[0], halves[1]), good_on / max(good_off, 1), kept, tried)


def references(scenario: Scenario, seed: int, *, again: bool = False) -> tuple[Best, Best]:
    """The best static configuration of each phase, from the cache if the same scenario is there."""
    content = msgspec.json.encode((seed, PHASE_S, SETTLED_S, MEASURED_S, LOOK_S, FINALISTS, scenario))
    path = CACHE / f"static-{scenario.number}-{hashlib.sha256(content).hexdigest()[:16]}.json"
    if path.exists() and not again:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Best, Best])
    found = best_static(scenario, 0, seed), best_static(scenario, 1, seed)
    CACHE.mkdir(exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_bytes(msgspec.json.encode(found))
    partial.replace(path)
    return found


def steady(number: int, seed: int, policy: str) -> Steadiness:
    """One scenario's first phase, for as long as it takes to settle and twenty minutes more."""
    scenario = make(number, seed)
    log = run_steady(scenario, make_knob_policy(policy), seed, SETTLING_S + STEADY_S)
    times = [decision.at for decision in log if changed(decision)]
    tried = sum([decision.kind == "tries" for decision in log])
    return Steadiness(number, scenario.words(), most_within(times), sum([at < SETTLING_S for at in times]), tried)


def changed(decision: Decision) -> bool:
    """Knobs are others after it than before: something was kept, or what had been kept is taken back."""
    return decision.kind == "keeps" or (decision.kind == "undoes" and "after some seconds" in decision.reason)


def most_within(times: list[float], span_s: float = SPAN_S) -> int:
    """The most of these in any span, once it has settled."""
    later = [at for at in times if at >= SETTLING_S]
    return max([sum([since <= at < since + span_s for at in later]) for since in later], default=0)


def share(number: int, seed: int, policy: str) -> Sharing:
    """One set of models. Which policy turns their own knobs does not matter: nothing but shares is turned."""
    models = make_models(number, seed)
    outcome = run_shared(models, seed)
    best = best_split(models, 0, seed), best_split(models, 1, seed)
    ratios = outcome.good[0] / best[0][0], outcome.good[1] / best[1][0]
    kept, tried = (sum([decision.kind == kind for decision in outcome.log]) for kind in ("keeps", "tries"))
    return Sharing(number, in_words(models), ratios, (best[0][1], best[1][1]), kept, tried)
