"""Which instance keeps the state of a new sequence, where instances keep it: the one with the fewest that live.

Called by whoever pins the requests of sequences. Not aware of: requests, when a sequence ends, lanes.
"""

from collections.abc import Callable, Hashable
from heapq import heappop, heappush

from msgspec import Struct


class Place(Struct, frozen=True):
    """`slot`: which of its instance's, from 0; the sequence's own for as long as it lives, and the lowest that was free."""

    instance: str
    slot: int


class _Slots(Struct, eq=False):
    """`free`: a heap of those that were given back. `used`: how many were ever taken at a time: the next new one."""

    free: list[int]
    used: int = 0

    def take(self) -> int:
        if self.free:
            return heappop(self.free)
        self.used += 1
        return self.used - 1

    @property
    def taken(self) -> int:
        return self.used - len(self.free)


class _Instance(Struct, eq=False):
    slots: _Slots
    live: dict[Hashable, None]
    failed: bool = False


class SequencePlacement:
    """`slots`: sequences that an instance keeps at a time: as many as a batch has rows ("direct"), or as its memory holds.
    `shared`: instances are threads with one object of the model, which has so many in all.

    An instance whose latest answer was a failure gets new ones only if all others are full: as failed sequences end, it would
    be the emptiest, and get all.
    """

    def __init__(self, slots: int, *, shared: bool = False) -> None:
        assert slots >= 1
        self.slots = slots
        self._shared = _Slots([]) if shared else None
        self._instances: dict[str, _Instance] = {}
        self._places: dict[Hashable, Place] = {}

    def __len__(self) -> int:
        """Sequences that live."""
        return len(self._places)

    @property
    def room(self) -> int:
        """Sequences that may come."""
        kept = {id(one.slots): one.slots for one in self._instances.values()}
        return sum([max(self.slots - slots.taken, 0) for slots in kept.values()])

    @property
    def instances(self) -> int:
        """That are up."""
        return len(self._instances)

    def kept(self, instance: str) -> int:
        """Sequences whose state would be gone with it."""
        one = self._instances.get(instance)
        return len(one.live) if one is not None else 0

    def least(self, number_of: Callable[[str], int]) -> int:
        """Instances that keep all that live: of threads the highest numbers go first, else those that keep none."""
        numbers = [number_of(name) for name, one in self._instances.items() if one.live]
        return len(numbers) if self._shared is None else max(numbers, default=-1) + 1

    def up(self, instance: str) -> None:
        """It takes sequences."""
        assert instance not in self._instances, f"instance {instance} is up already"
        self._instances[instance] = _Instance(self._shared or _Slots([]), {})

    def gone(self, instance: str) -> list[Hashable]:
        """It was lost, or retired: the sequences whose state is gone with it, oldest first. Nothing if it was not up."""
        one = self._instances.pop(instance, None)
        if one is None:
            return []
        for key in one.live:
            heappush(one.slots.free, self._places.pop(key).slot)
        return list(one.live)

    def place(self, key: Hashable) -> Place | None:
        """Where the sequence is, or is from now on; None if all are full. O(instances) for a new one."""
        place = self._places.get(key)
        if place is not None:
            return place
        roomy = [name for name, one in self._instances.items() if one.slots.taken < self.slots]
        if not roomy:
            return None
        name = min(roomy, key=lambda name: (self._instances[name].failed, len(self._instances[name].live)))
        one = self._instances[name]
        place = self._places[key] = Place(name, one.slots.take())
        one.live[key] = None
        return place

    def answered(self, key: Hashable, *, ok: bool) -> None:
        """A request of the sequence was, or the model failed; no matter if it has ended."""
        place = self._places.get(key)
        if place is not None:
            self._instances[place.instance].failed = not ok

    def end(self, key: Hashable) -> None:
        """Its place is free. No harm if it had none."""
        place = self._places.pop(key, None)
        if place is not None:
            one = self._instances[place.instance]
            del one.live[key]
            heappush(one.slots.free, place.slot)
