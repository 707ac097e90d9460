"""Runs now and then one request of a batch again, alone, and compares: what no probe at start has shown, service may.

Fed by serve/driver.py with answers that it has cut out of batches; asks through the driver like any client, but last in line.
Not aware of: lanes, instances. With n answers alike, the rate of wrong ones is below 3 / n at 95 % (the rule of three).
"""

from collections.abc import Callable, Sequence
from itertools import count
from math import inf

from msgspec import Struct

from dlproxy.instance.evidence import close
from dlproxy.message import DType, Failure, Request, Response, Tensor, Ticket
from dlproxy.policy.queueing import LOWEST_LEVEL
from dlproxy.service import ReplyTo
from dlproxy.telemetry.stats import ModelStats
from dlproxy.tensors import Array, to_array

FIRST = 10  # batches of which each is looked at; then one at a time,
EVERY_S = 1.0  # no more often than this,
COST_SHARE = 0.01  # nor than costs this share of an instance's time
SURE = 300  # answers alike bound the rate of wrong ones at 1 %: from then on a tenth as often


class Kept(Struct):
    """An answer as its client got it."""

    request: Request
    outputs: Sequence[Tensor]
    padded: bool


class Recheck:
    """`submit`: the driver's. `on_difference` is called, with the reason in words, when batching must end; `on_padding` when
    padding must, by a difference in a padded batch, before anything is said of batching. `padded_only`: no other is looked at.
    """

    def __init__(
        self,
        submit: Callable[[Request, ReplyTo], None],
        stats: ModelStats,
        clock: Callable[[], float],
        on_difference: Callable[[str], None],
        on_padding: Callable[[str], None] | None = None,
        padded_only: bool = False,
    ) -> None:
        self._submit = submit
        self._stats = stats
        self._clock = clock
        self._on_difference = on_difference
        self._on_padding = on_padding
        self._padded_only = padded_only
        self._ids = count(-1, -1)  # below those of clients' requests
        self._kept: Kept | None = None
        self._next_at = -inf
        self._ties = 0

    def due(self, now: float, *, padded: bool = False) -> bool:
        """Whether an answer of the batch that has just ended is wanted."""
        return now >= self._next_at and self._kept is None and (padded or not self._padded_only)

    def ask_again(self, request: Request, outputs: Sequence[Tensor], now: float, *, padded: bool = False) -> None:
        """Run it once more, in a batch of its own. `padded`: there were others of other lengths in the batch."""
        ticket, number = request.ticket, next(self._ids)
        self._kept = Kept(request, outputs, padded)
        again = Ticket(number, now, inf, ticket.rows, LOWEST_LEVEL, "", (number,), length=ticket.length)
        self._submit(Request(again, request.model, request.inputs, request.outputs), self)

    def end(self, reason: str, *, padded: bool = False) -> None:
        """Batching has been shown to be wrong, and nothing is left to compare; of padded requests, if that was one's answer."""
        if not padded:
            self._next_at = inf
            self._on_difference(reason)
        elif self._on_padding is not None:  # else padding ends already, and this batch had begun before
            self._on_padding(reason)
            self._on_padding = None

    # ReplyTo

    def completed(self, response: Response) -> None:
        kept, self._kept = self._kept, None
        if kept is None or self._next_at == inf or response.variant:  # another model's answer says nothing of this one
            return
        compared = sum(self._stats.rechecks.values()) + 1
        if compared >= FIRST:
            timing = response.timing
            wait_s = max(EVERY_S, (timing.batch_s + timing.compute_s) / COST_SHARE)
            self._next_at = self._clock() + (10 * wait_s if compared > SURE else wait_s)
        differing = differing_outputs(kept.outputs, response.outputs)
        self._stats.rechecks["different" if differing else "same"] += 1
        if differing and not self._is_tie(kept.outputs, differing):
            how = "padded in a batch" if kept.padded else "in a batch"
            self.end(f"output '{differing[0]}' of a request was different {how} from what it is alone", padded=kept.padded)

    def failed(self, failure: Failure) -> None:
        self._kept = None  # overload, or a model that fails: another will do

    def _is_tie(self, outputs: Sequence[Tensor], differing: Sequence[str]) -> bool:
        """A label may flip where two classes are all but equal, if the numbers that it was chosen by are the same: once."""
        floats = (DType.FP16, DType.BF16, DType.FP32, DType.FP64)
        exact = all(tensor.dtype not in floats for tensor in outputs if tensor.name in differing)
        if not exact or all(tensor.dtype not in floats for tensor in outputs):
            return False
        self._ties += 1
        return self._ties == 1


def differing_outputs(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[str]:
    """The names of those that are not the same but for the order in which a kernel sums."""
    return [
        one.name
        for one, other in zip(ours, theirs, strict=True)
        if tuple(one.shape) != tuple(other.shape) or not close(_array(one), _array(other), one.dtype)
    ]


def _array(tensor: Tensor) -> Array:
    return to_array(tensor.dtype, tensor.shape, tensor.data)
