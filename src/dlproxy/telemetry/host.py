"""Whether other processes keep this one from its cores: threads that are ready to run, and wait (Linux).

Called once a second by serve/server.py. Not aware of: requests, which processes they are.
"""

from collections.abc import Callable, Mapping
from time import process_time

from dlproxy.cores import all_waited_s, usable_cores
from dlproxy.telemetry.journal import Journal

LEAST_WAITED = 0.1  # of a second, by all threads together: less slows nobody down by much
LEAST_OTHERS = 0.2  # cores that this process did not have: else its own threads wait for each other


class Host:
    """`waited`: seconds of each thread until now that it was ready to run; `computed`: seconds of all threads that they ran."""

    def __init__(
        self,
        journal: Journal,
        *,
        cores: int | None = None,
        waited: Callable[[], Mapping[str, float]] = all_waited_s,
        computed: Callable[[], float] = process_time,
    ) -> None:
        self._journal = journal
        self._cores = usable_cores() if cores is None else cores
        self._waited, self._computed = waited, computed
        self._seen = dict(waited()), computed()
        self._at = journal.clock()

    def look(self) -> None:
        """What was since the last time, in the journal if it was much."""
        now, (waited_before, computed_before) = self._journal.clock(), self._seen
        seconds, self._at = max(now - self._at, 1e-3), now
        self._seen = waited, computed = dict(self._waited()), self._computed()
        waited_s = sum([total - waited_before.get(thread, total) for thread, total in waited.items()])
        ran_s = computed - computed_before
        if waited_s >= LEAST_WAITED * seconds and ran_s <= (self._cores - LEAST_OTHERS) * seconds:
            words = (
                f"other processes had the cores: within {seconds:.2g} s dlproxy's threads ran for {ran_s:.2g} s, "
                f"and waited for {waited_s:.2g} s for one of {self._cores}"
            )
            self._journal.add_late("host", words, began_at=now - seconds)
