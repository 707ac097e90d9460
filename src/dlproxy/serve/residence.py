"""Where the sequences of a model live that keeps their state itself: what comes and goes with an instance.

Stands between the roster and the driver (put there by assemble.py); sequences.py asks for places. Not aware of: requests.
"""

from collections.abc import Callable, Hashable

from dlproxy.fleet.names import number_of
from dlproxy.fleet.roster import Scheduler
from dlproxy.instance import Instance
from dlproxy.message import Failure, FailureKind, Ticket
from dlproxy.policy.sequences import SOON_S
from dlproxy.policy.sequences_placement import SequencePlacement

_NEVER_RAN = frozenset((FailureKind.QUEUE_FULL, FailureKind.OVERLOADED, FailureKind.DEADLINE))


class Residence:
    """A Scheduler around the driver. `on_gone`: told which sequences have lost their state, and why, before the lane hears."""

    def __init__(self, driver: Scheduler, places: SequencePlacement) -> None:
        self.places = places
        self.on_gone: Callable[[list[Hashable], str], None] = lambda keys, why: None
        self._driver = driver

    def add_instance(self, instance: Instance) -> None:
        self._driver.add_instance(instance)
        self.places.up(instance.name)

    def lose_instance(self, name: str, reason: str, *, crashed: bool = False) -> None:
        self._gone(name, reason)
        self._driver.lose_instance(name, reason, crashed=crashed)

    def retire_instance(self, name: str, reason: str = "") -> None:
        self._gone(name, reason or "it was retired")
        self._driver.retire_instance(name, reason)

    def kept(self, name: str) -> int:
        return self.places.kept(name)

    def least(self) -> int:
        """Instances that there must be for no sequence to lose its state."""
        return self.places.least(number_of)

    def settle(self, key: Hashable, ticket: Ticket, model: str) -> int | Failure:
        """Pins a request to where its sequence lives, or is to live from now on. Returns the slot, or why there is none."""
        place, places = self.places.place(key), self.places
        if place is not None:
            ticket.pin(place.instance)
            return place.slot
        if not places.instances:
            return Failure(FailureKind.UNAVAILABLE, f"model '{model}' has no live instance", retry_after_s=SOON_S)
        message = f"model '{model}' has {len(places)} sequences under way, and none of its instances has room for another"
        return Failure(FailureKind.QUEUE_FULL, message, retry_after_s=SOON_S)

    def _gone(self, name: str, reason: str) -> None:
        keys = self.places.gone(name)
        if keys:
            self.on_gone(keys, f"its state was on instance {name}, which is gone ({reason})")


def may_have_run(failure: Failure) -> bool:
    """Whether the model may have changed the state of the sequence before this."""
    return failure.kind not in _NEVER_RAN


def told_id(principal: str, tenant: str, sequence_id: int | str) -> int | str:
    """What the model hears: the id, unless another client could have the same one, of another sequence."""
    alone = not principal and not tenant
    if alone and not (isinstance(sequence_id, str) and sequence_id.startswith("(")):
        return sequence_id
    return repr((principal, tenant, sequence_id))
