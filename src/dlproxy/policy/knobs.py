"""The values that steer one lane. config.py describes them and their defaults; KnobsChanged brings new ones at run time."""

from math import inf

from msgspec import Struct


class LaneKnobs(Struct, frozen=True):
    """`max_batch`: rows that a batch never exceeds. `slo_s`: the latency objective, None if the user declared none.

    `max_wait_s`: how long a batch may wait to fill while an instance idles (0: never, the default). `max_batch_s`: how long
    one batch may take at most, whatever the objective allows (set for models that run on the event loop).

    Order: `discipline` names a queue discipline; `starvation_s` bounds how long one request can be passed over, `ageing_s` is
    what one level of priority is worth in waiting time, `tenant_weights` are shares of the fair discipline (1 if not named).
    Balance: `balancer` names one; a new instance's weight grows for `slow_start_s`.
    Overload: `codel_target_s` (0: off) is the queueing delay that may stand; `adaptive_limit` bounds the requests without a
    deadline that are under way.
    Faults: `retry_budget` is the share of requests that may run a second time (0: never), `hedge` runs a batch that is late a
    second time on an idle instance, `eject_after` errors in a row take an instance out (0: never). `outage_wait_s`: how long
    requests wait when the last instance has crashed and is being replaced (0: they fail at once); whoever tells the lane that
    an instance is expected goes by it.
    `max_padding`: the share of a batch that may be padding, where requests of different lengths may be padded to one (0: they
    share no batch).
    `arbitrated`: every batch waits for the arbiter's turn, because lanes share the machine's cores.
    """

    max_batch: int
    max_queue_rows: int
    slo_s: float | None = None
    max_wait_s: float = 0.0
    max_batch_s: float = inf
    discipline: str = "edf"
    starvation_s: float = 10.0
    ageing_s: float = 1.0
    tenant_weights: dict[str, float] = {}
    balancer: str = "peak-ewma"
    slow_start_s: float = 0.0
    codel_target_s: float = 0.0
    adaptive_limit: bool = False
    retry_budget: float = 0.2
    hedge: bool = False
    eject_after: int = 5
    outage_wait_s: float = 2.0
    arbitrated: bool = False
    max_padding: float = 0.0
