"""What the steps of a pipeline take, and what follows: how its objective is shared out, deadlines of steps, who is let in.

Asked by serve/pipelines for every request, and by lab/simulate. Not aware of: how steps run, clocks, tensors.
"""

from collections.abc import Mapping
from math import ceil, inf, sqrt

from msgspec import Struct

from dlproxy.config.pipelines import Wiring
from dlproxy.message import Failure, FailureKind, Ticket
from dlproxy.policy.batching import SLO_SHARE
from dlproxy.policy.fitting import SIGMAS

MEMORY = 0.97  # of what was observed, kept at each further observation: about the last 33 count
MOST_COUNTED = 512  # beginnings of a step; then all counts are halved
HEADROOM = 1.5  # what steps other than the bottleneck can do, over what they must: at 1.25 one row less made one of them it
HALF_A_ROW = 0.5  # so that a fit that moves a little does not cost a batch a row
LENT = 0.5  # of what later steps leave of their shares; with all of it they get their requests too late for large batches
FEW = 2.0  # deviations below the usual number of items: a request of so few may be in time where most are not
DOUBT_S = 1.0  # beyond a request's time: if none has ended for so long, what was learnt keeps nobody out
SPLIT_EVERY_S = 1.0  # between two looks at how the objective is shared out
FIRST_SPLIT_S = 1 / 16  # the first ones come sooner, as less is known: each takes twice as long as the one before
NEWS = 0.1  # relative; a share that has changed by less stays
ROUNDING = 1e-9  # relative
MANY, REFRESH = 512, 16  # observations: from so many on, what follows from them is worked out anew after each REFRESH
HALVINGS = 24  # of the interval in which the rate is looked for


class Stage(Struct, frozen=True):
    """How a step's model batches, as its lane has it: so many rows take base_s + row_s * rows, at most `most` on each of so
    many instances at a time; `spread`: the 99th percentile over that.
    """

    base_s: float
    row_s: float
    most: int
    instances: int
    spread: float = 1.0

    @property
    def capacity(self) -> float:
        """Rows per second with the largest batches."""
        return self.instances * self.most / max(self.base_s + self.row_s * self.most, 1e-9)

    def needs(self, rate: float, rows: float) -> float:
        """Seconds for a request of so many rows where so many rows come per second: a batch under way, and its own batches."""
        free = self.instances - rate * self.row_s
        batch = min(max(ceil(rate * self.base_s / free), 1), self.most) if free > 0.0 else self.most
        batch_s = self.spread * (self.base_s + self.row_s * min(batch + HALF_A_ROW, self.most))
        return batch_s * (1.0 + max(rows / batch / self.instances, 1.0)) / (2.0 * SLO_SHARE)


class Took(Struct):
    """What one step took, and what it was foretold to wait; recent observations count more.

    What it computed over its items: decayed sums, through which a line is fitted (least squares).
    """

    weight: float = 0.0
    items: float = 0.0
    items2: float = 0.0
    seconds: float = 0.0
    seconds2: float = 0.0
    cross: float = 0.0
    waited_s: float = 0.0
    foretold: float = 0.0
    foretold_s: float = 0.0
    begun: float = 0.0
    ended: float = 0.0

    def observe(self, waited_s: float, computed_s: float, items: int) -> None:
        self.weight = self.weight * MEMORY + 1.0
        self.items = self.items * MEMORY + items
        self.items2 = self.items2 * MEMORY + items * items
        self.seconds = self.seconds * MEMORY + computed_s
        self.seconds2 = self.seconds2 * MEMORY + computed_s * computed_s
        self.cross = self.cross * MEMORY + computed_s * items
        self.waited_s += (waited_s - self.waited_s) / self.weight

    def foretell(self, wait_s: float) -> None:
        self.foretold = self.foretold * MEMORY + 1.0
        self.foretold_s += (wait_s - self.foretold_s) / self.foretold

    @property
    def usual(self) -> float:
        """Items."""
        return self.items / self.weight if self.weight else 1.0

    @property
    def spread(self) -> float:
        """Variance of the number of items; 0 where that is always the same."""
        usual = self.usual
        spread = self.items2 / self.weight - usual * usual if self.weight else 0.0
        return spread if spread > ROUNDING * usual * usual else 0.0

    def wait(self, wait_s: float) -> float:
        """What a lane foretells, with what requests have waited beyond it: for turns on cores, for what was still to come."""
        if not (wait_s and self.foretold and self.weight):
            return wait_s
        return wait_s + max(self.waited_s - self.foretold_s, 0.0)

    def expect(self, items: float) -> tuple[float, float]:
        """Mean and variance of what it computes for so many items."""
        if not self.weight:
            return 0.0, 0.0
        mean_s, usual = self.seconds / self.weight, self.items / self.weight
        variance = max(self.seconds2 / self.weight - mean_s * mean_s, 0.0)
        spread = self.spread
        if not spread:
            return mean_s, variance
        slope_s = max((self.cross / self.weight - usual * mean_s) / spread, 0.0)
        return max(mean_s + slope_s * (items - usual), 0.0), max(variance - slope_s * slope_s * spread, 0.0)

    def least(self) -> tuple[float, float]:
        """Mean and variance of what it computes before its items are counted: the fewest that are likely, and no caution."""
        spread = self.spread
        if not spread:
            return self.expect(1)
        return self.expect(max(self.usual - FEW * sqrt(spread), 1.0))[0], 0.0

    def tail(self, items: float) -> float:
        """What it computes at the 99th percentile."""
        mean_s, variance = self.expect(items)
        return mean_s + SIGMAS * sqrt(variance)


class _Known(Struct, frozen=True):
    """What follows of a step from what was measured. `chance`: of a request to run it; `mean_s`, `variance`: of what it
    computes, before items are counted; `tail_s`: of as many as usual; `kept_s`: for what comes after it.
    """

    chance: float
    mean_s: float
    variance: float
    tail_s: float
    kept_s: float


class Pacing:
    """Of one pipeline, from what its steps were measured to take. All times in seconds.

    The objective is shared out so that the most requests get through: InferLine's split (Crankshaw et al., SoCC 2020), done
    again as measurements change. What a step leaves of its share is for those after it, and half of what they leave is its own.
    """

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._took = {name: Took() for name in wiring.order}
        self._before = {name: wiring.before(name) for name in wiring.order}
        self._last = {source.step for sources in wiring.outputs.values() for source in sources}
        self._shares: Mapping[str, float] = {}
        self._split_at = -inf
        self._split_after_s = FIRST_SPLIT_S
        self._silent_since = inf
        self._let_in = 0.0
        self._observed = 0
        self._worked_out: Mapping[str, _Known] | None = None

    # What happens

    def begun(self, step: str) -> None:
        """A step of one request has begun: it was not skipped."""
        took = self._took[step]
        took.begun += 1.0
        self._news()
        if took.begun > MOST_COUNTED:
            self._let_in /= 2.0
            for each in self._took.values():
                each.begun, each.ended = each.begun / 2.0, each.ended / 2.0

    def observed(self, step: str, *, waited_s: float, computed_s: float, items: int = 1) -> None:
        """A step of one request has ended well: it waited so long, for a lane or a thread, and computed so long."""
        took = self._took[step]
        took.observe(waited_s, computed_s, items)
        took.ended += 1.0
        self._observed += 1
        self._news()
        if step in self._last:
            self._silent_since = inf

    def _news(self) -> None:
        if self._observed < MANY or self._observed % REFRESH == 0:
            self._worked_out = None

    # What follows

    def splits(self, now: float) -> bool:
        """Whether it is time to share out the objective anew."""
        if now < self._split_at:
            return False
        self._split_at = now + self._split_after_s
        self._split_after_s = min(2.0 * self._split_after_s, SPLIT_EVERY_S)
        return True

    def split(self, objective_s: float, stages: Mapping[str, Stage]) -> Mapping[str, float]:
        """Each step's share of the objective, for which its model should make its batches: those that let the most requests
        through, and in proportion as much more as is left over. `stages`: of the steps that ask a model.
        """
        chances = self._chances()
        rows = {step: max(chances[step] * self._took[step].usual, 1e-6) for step in stages}  # for each request
        capacities = {step: stage.capacity / rows[step] for step, stage in stages.items()}
        rate = least = min(capacities.values(), default=0.0)

        def needs(rate: float) -> dict[str, float]:
            found = {step: took.tail(took.usual) for step, took in self._took.items()}
            for step, stage in stages.items():
                most = min(HEADROOM, capacities[step] / least)
                found[step] = stage.needs(rate * most * rows[step], self._took[step].usual)
            return found

        if self._longest(needs(rate)) > objective_s:
            low, high = 0.0, rate
            for _ in range(HALVINGS):
                rate = (low + high) / 2.0
                low, high = (rate, high) if self._longest(needs(rate)) <= objective_s else (low, rate)
            rate = low
        found = needs(rate)
        longest = self._longest(found)
        shares = {step: seconds * objective_s / longest for step, seconds in found.items()} if longest else {}
        if any(abs(share - self._shares.get(step, 0.0)) > NEWS * share for step, share in shares.items()):
            self._shares = shares
            self._worked_out = None
        return self._shares

    def deadline_at(self, step: str, ticket: Ticket, now: float, items: int = 0) -> float:
        """What scheduling aims at for this step, of a request of the pipeline with this ticket; +inf for nothing.

        `items`: for how many it runs, which those after it may do as well; 0: as many as usual. Never so early that it could
        not end if nothing else waited: that a prediction was wrong shows only if steps run.
        """
        last_at = ticket.deadline_at
        if last_at == inf or self._doubts(ticket, now):
            return last_at
        known, took = self._known()[step], self._took[step]
        tail_s = took.tail(items) if items and items != took.usual else known.tail_s
        kept_s = self._kept(items)[step] if items > 1 else known.kept_s
        return min(max(last_at - kept_s, now + tail_s), last_at)

    def refusal(self, ticket: Ticket, waits: Mapping[str, float], now: float) -> Failure | None:
        """Why the request need not begin: it would be late. `waits`: by step, what a new request would wait there now.

        None where nobody waits anywhere, whatever was measured: only running can correct that.
        """
        left_s = ticket.deadline_at - now
        if self._silent_since == inf:
            self._silent_since = now
        if 0.0 < left_s < inf and any(waits.values()) and not self._doubts(ticket, now):
            wait_s, run_s = self._foreseen(waits)
            if wait_s + run_s > left_s:
                slowest = max(waits, key=waits.__getitem__)
                message = (
                    f"Request timeout expired: {left_s * 1e3:.1f} ms are left, it would wait about {wait_s * 1e3:.1f} ms, "
                    f"most of it for step '{slowest}', and run about {run_s * 1e3:.1f} ms"
                )
                return Failure(FailureKind.DEADLINE, message, retry_after_s=wait_s)
        self._let_in += 1.0
        for step, wait_s in waits.items():
            self._took[step].foretell(wait_s)
        return None

    def _doubts(self, ticket: Ticket, now: float) -> bool:
        """Requests come, and none has got through for longer than one may take."""
        return now - self._silent_since > ticket.deadline_at - ticket.arrived_at + DOUBT_S

    def _foreseen(self, waits: Mapping[str, float]) -> tuple[float, float]:
        """Waiting, and running with some caution, along the way through the steps that takes longest."""
        reached: dict[str, tuple[float, float, float]] = {}
        for step, known in self._known().items():  # in the wiring's order
            total_s, run_s, variance = max([reached[name] for name in self._before[step]], default=(0.0, 0.0, 0.0))
            wait_s, chance = self._took[step].wait(waits.get(step, 0.0)), known.chance
            run_s += chance * known.mean_s
            reached[step] = total_s + chance * (wait_s + known.mean_s), run_s, variance + chance * known.variance
        total_s, run_s, variance = max(reached.values())
        return total_s - run_s, run_s + SIGMAS * sqrt(variance)

    def _known(self) -> Mapping[str, _Known]:
        """By step, not older than the last REFRESH observations."""
        if self._worked_out is None:
            kept, chances = self._kept(1), self._chances()
            self._worked_out = {
                step: _Known(chances[step], *took.least(), took.tail(took.usual), kept[step])
                for step, took in self._took.items()
            }
        return self._worked_out

    def _kept(self, items: int) -> dict[str, float]:
        """By step, seconds for what comes after it, along the way that takes longest."""
        kept: dict[str, float] = {}
        for name in reversed(self._wiring.order):
            longest_s = 0.0
            for after in self._wiring.after[name]:
                took = self._took[after]
                needs_s = took.waited_s + took.tail(items if items > 1 else took.usual)
                share_s = self._shares.get(after, needs_s)
                longest_s = max(longest_s, share_s - LENT * max(share_s - needs_s, 0.0) + kept[after])
            kept[name] = longest_s
        return kept

    def _longest(self, seconds: Mapping[str, float]) -> float:
        """Along the way through the steps that takes longest."""
        reached: dict[str, float] = {}
        for step in self._wiring.order:
            reached[step] = max([reached[name] for name in self._before[step]], default=0.0) + seconds[step]
        return max(reached.values())

    def _chances(self) -> dict[str, float]:
        """By step: the share of requests that run it. Of those that its predecessors were done with, as others have failed."""
        chances: dict[str, float] = {}
        for step, took in self._took.items():  # in the wiring's order
            before = self._before[step]
            ended = max([self._took[name].ended for name in before], default=self._let_in)
            share = min(took.begun / ended, 1.0) if ended and took.begun else 1.0
            chances[step] = share * max([chances[name] for name in before], default=1.0)
        return chances
