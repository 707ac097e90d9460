"""Which batches are so late that they run a second time where an instance would idle. Called by policy/lane.py.

Not aware of: which instance takes the second run, what becomes of it.
"""

from collections.abc import Collection, Iterator
from math import inf

from dlproxy.message import Ticket
from dlproxy.policy.cost import LatencyModel
from dlproxy.policy.running import Run, Running
from dlproxy.policy.second_runs import SecondRuns

HEDGE_SIGMAS = 1.645  # a batch longer than 95 % of its like gets a second run (Dean and Barroso, "The tail at scale", 2013)


class Hedging:
    """`look_again_at`: when the next batch will be late enough, as far as an instance is ready for it now."""

    def __init__(self, model: LatencyModel, running: Running, again: SecondRuns) -> None:
        self.look_again_at = inf
        self._model = model
        self._running = running
        self._again = again

    def watch(self, run: Run) -> None:
        """It has begun."""
        run.hedge_at = run.started_at + self._model.quantile(run.rows, HEDGE_SIGMAS, run.length)

    def late(self, ready: Collection[str], max_batch: int, now: float) -> Iterator[tuple[int, Run]]:
        """What is to be started again now, and its number. `ready` may change while the caller does it."""
        self.look_again_at = inf
        for number, run in list(self._running.runs.items()):
            if run.hedge_at == inf or all(name == run.instance for name in ready):
                continue
            if run.hedge_at > now:
                self.look_again_at = min(self.look_again_at, run.hedge_at)
                continue
            run.hedge_at = inf
            tickets = self._again.not_abandoned(run.tickets)
            if self._may_run_twice(tickets, max_batch, now) and self._again.budget.spend(len(tickets), now):
                self._again.mark(tickets)
                run.tickets = self._again.still_wanted(run.tickets)  # both runs are of the same ones from now on
                yield number, run

    def _may_run_twice(self, tickets: list[Ticket], max_batch: int, now: float) -> bool:
        """Someone waits for it, no deadline has passed meanwhile, and max_batch has not become too small for it."""
        fits = sum([ticket.rows for ticket in tickets]) <= max_batch or len(tickets) == 1
        once = sum([ticket.once for ticket in tickets])
        return bool(tickets) and fits and not once and min([ticket.deadline_at for ticket in tickets]) > now
