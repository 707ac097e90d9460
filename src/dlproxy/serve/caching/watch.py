"""Whether the cache of one model is on, and whether it may be: asks some requests again though their answers are known.

Told by layer.py of what it looks up, and while it is off of what passes. Judges by policy/caching's Auto. Not aware of: keys,
what is kept.
"""

import logging
from collections.abc import Callable, Sequence
from itertools import count
from math import inf

from dlproxy.message import Failure, Request, Response, Tensor, Ticket
from dlproxy.policy.caching.auto import RECHECK, Auto
from dlproxy.policy.queueing import LOWEST_LEVEL
from dlproxy.serve.caching.copies import beginning_of, owned
from dlproxy.serve.caching.keys import Key
from dlproxy.serve.recheck import differing_outputs
from dlproxy.serve.traffic import BELOW
from dlproxy.service import ReplyTo, Service
from dlproxy.telemetry.stats import CacheCounts

MEASURED = 64  # look-ups, of which one tells what they cost
COMPARED_BYTES = 2**14  # of each output while it is off, of some dozens of answers: while it is on, all of one answer

log = logging.getLogger(__name__)
_ids = count(2 * BELOW, -1)  # of requests that are asked again: no others get there


class Watch:
    """`auto`: None where an operator has turned it on: then different answers to equal inputs are only warned of.

    `on_off`: called when nothing is to be remembered any more, or for a while.
    """

    def __init__(self, name: str, inner: Service, counts: CacheCounts, auto: Auto[Sequence[Tensor]] | None) -> None:
        self.auto = auto
        self.on_off: Callable[[], object] = lambda: None
        self._name = name
        self._inner = inner
        self._counts = counts
        self._to_recheck = RECHECK
        self._to_measure = MEASURED
        self._before = (0, 0.0)
        self._warned = False
        self.rechecking = False

    @property
    def state(self) -> str:
        """For people."""
        auto = self.auto
        if auto is None:
            return "on"
        if not auto.stable:
            return "off: equal inputs gave different answers"
        return "auto: on" if auto.on else "auto: off"

    # While it is on

    def looked_up(self, *, hit: bool) -> None:
        """`hit`: it had the answer, or it was under way."""
        auto = self.auto
        if auto is None:
            return
        self._to_measure -= 1
        if not self._to_measure:
            self._measure(auto)
        auto.looked_up(hit=hit)
        if not auto.on:
            log.info("model %s: too few requests repeat for the cache to pay: it is off for a while", self._name)
            self.on_off()

    def hit(self, request: Request, outputs: Sequence[Tensor]) -> None:
        """Answered with these: now and then it is run all the same, last in line, for no client."""
        auto = self.auto
        if auto is None:
            self._to_recheck -= 1
            if not self._to_recheck:
                self._to_recheck = RECHECK
                self._ask_again(request, outputs)
            return
        if auto.rechecks():
            self._ask_again(request, outputs)
        self.looked_up(hit=True)

    def _ask_again(self, request: Request, outputs: Sequence[Tensor]) -> None:
        if self.rechecking:  # a slow model would have nothing else to do
            return
        self.rechecking = True
        ticket = request.ticket
        number = next(_ids)
        again = Ticket(number, ticket.arrived_at, inf, ticket.rows, LOWEST_LEVEL, "", (number,), length=ticket.length)
        self._inner.submit(Request(again, request.model, owned(request.inputs), request.outputs), _Compared(self, outputs))

    def compared(self, outputs: Sequence[Tensor], again: Sequence[Tensor]) -> None:
        """Two answers to equal inputs."""
        differing = differing_outputs(outputs, again)
        self._counts.rechecks["different" if differing else "same"] += 1
        if self.auto is not None:
            self.auto.compared(same=not differing)
        if differing:
            self._warn()

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            consequence = "cache = 'on' keeps them all the same" if self.auto is None else "nothing is remembered any more"
            log.warning("model %s: equal inputs gave different answers: %s", self._name, consequence)
            if self.auto is not None:
                self.on_off()

    def _measure(self, auto: Auto[Sequence[Tensor]]) -> None:
        self._to_measure = MEASURED
        counts, (before, before_s) = self._counts, self._before
        looked_up, seconds = counts.hits + counts.misses, counts.hit_s + counts.miss_s
        if looked_up > before:
            auto.cost((seconds - before_s) / (looked_up - before))
        self._before = looked_up, seconds

    # While it is off

    def answered(self, key: Key, outputs: Sequence[Tensor], run_s: float) -> None:
        """What was computed for a request that is watched. The outputs are copies."""
        auto = self.auto
        if auto is None:
            return
        auto.ran(run_s)
        auto.answered(key, outputs)
        if not auto.stable:
            self._warn()


class _Compared:
    """A ReplyTo of what is run although the answer is known."""

    __slots__ = ("_outputs", "_watch")

    def __init__(self, watch: Watch, outputs: Sequence[Tensor]) -> None:
        self._watch = watch
        self._outputs = outputs

    def completed(self, response: Response) -> None:
        self._watch.rechecking = False
        if not response.variant:  # of an upstream, that says nothing of the model
            self._watch.compared(self._outputs, response.outputs)

    def failed(self, failure: Failure) -> None:
        """Overload, or a model that fails: another will do."""
        self._watch.rechecking = False


class Watched:
    """A ReplyTo that lets the watch see the answer, too. `run_s_of`: what so many rows take of a batch."""

    __slots__ = ("_key", "_reply", "_rows", "_run_s_of", "_watch")

    def __init__(
        self,
        watch: Watch,
        key: Key,
        rows: int,
        reply: ReplyTo,
        run_s_of: Callable[[int], float],
    ) -> None:
        self._watch = watch
        self._key = key
        self._rows = rows
        self._reply = reply
        self._run_s_of = run_s_of

    def completed(self, response: Response) -> None:
        outputs = response.outputs
        self._reply.completed(response)
        if response.variant:  # says nothing of the model
            return
        beginnings = [beginning_of(tensor, COMPARED_BYTES) for tensor in outputs]
        self._watch.answered(self._key, beginnings, self._run_s_of(self._rows))

    def failed(self, failure: Failure) -> None:
        self._reply.failed(failure)
