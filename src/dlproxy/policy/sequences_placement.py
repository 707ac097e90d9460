"""Which instance keeps the state of a new sequence, where instances keep it: the one with the fewest that live.

Called by whoever pins the requests of sequences. Not aware of: requests, when a sequence ends, lanes.
"""

from collections.abc import Hashable
from heapq import heappop, heappush

from msgspec import Struct


class Place(Struct, frozen=True):
    """`slot`: which of its instance's, from 0; the sequence's own for as long as it lives, and the lowest that was free."""

    instance: str
    slot: int


class _Instance(Struct, eq=False):
    free: list[int]  # a heap
    live: dict[Hashable, None]
    failed: bool = False


class SequencePlacement:
    """`slots`: sequences that an instance keeps at a time: as many as a batch has rows ("direct"), or as its memory holds.

    An instance whose latest answer was a failure gets new ones only if all others are full: as failed sequences end, it would
    be the emptiest, and get all.
    """

    def __init__(self, slots: int) -> None:
        assert slots >= 1
        self._slots = slots
        self._instances: dict[str, _Instance] = {}
        self._places: dict[Hashable, Place] = {}

    def __len__(self) -> int:
        """Sequences that live."""
        return len(self._places)

    @property
    def room(self) -> int:
        """Sequences that may come."""
        return sum([len(one.free) for one in self._instances.values()])

    def up(self, instance: str) -> None:
        """It takes sequences."""
        assert instance not in self._instances, f"instance {instance} is up already"
        self._instances[instance] = _Instance(list(range(self._slots)), {})

    def gone(self, instance: str) -> list[Hashable]:
        """It was lost, or retired: the sequences whose state is gone with it, oldest first. Nothing if it was not up."""
        one = self._instances.pop(instance, None)
        if one is None:
            return []
        for key in one.live:
            del self._places[key]
        return list(one.live)

    def place(self, key: Hashable) -> Place | None:
        """Where the sequence is, or is from now on; None if all are full. O(instances) for a new one."""
        place = self._places.get(key)
        if place is not None:
            return place
        roomy = [name for name, one in self._instances.items() if one.free]
        if not roomy:
            return None
        name = min(roomy, key=lambda name: (self._instances[name].failed, len(self._instances[name].live)))
        one = self._instances[name]
        place = self._places[key] = Place(name, heappop(one.free))
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
            heappush(one.free, place.slot)
