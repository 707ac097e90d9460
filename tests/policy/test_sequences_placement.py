"""New sequences go where the fewest live, keep their slot, and leave with their instance."""

import random

from dlproxy.policy.sequences_placement import Place, SequencePlacement


def placement(slots: int, *instances: str) -> SequencePlacement:
    made = SequencePlacement(slots)
    for name in instances:
        made.up(name)
    return made


def test_the_fewest_live_sequences_first() -> None:
    places = placement(2, "a", "b")
    assert [places.place(key) for key in range(4)] == [Place("a", 0), Place("b", 0), Place("a", 1), Place("b", 1)]
    assert places.place(4) is None
    assert places.room == 0
    assert places.place(2) == Place("a", 1), "it has its place"
    places.end(0)
    places.end(0)
    assert places.place(5) == Place("a", 0)


def test_who_fails_gets_new_ones_last() -> None:
    places = placement(2, "a", "b")
    assert places.place(1) == Place("a", 0)
    places.answered(1, ok=False)
    places.end(1)
    assert [places.place(key) for key in (2, 3, 4)] == [Place("b", 0), Place("b", 1), Place("a", 0)]
    places.answered(4, ok=True)
    places.answered(99, ok=False)
    places.end(2)
    places.end(3)
    places.end(4)
    assert places.place(5) == Place("a", 0)


def test_threads_with_one_object_of_the_model_share_its_slots() -> None:
    places = SequencePlacement(3, shared=True)
    places.up("a")
    places.up("b")
    assert places.room == 3
    assert [places.place(key) for key in range(4)] == [Place("a", 0), Place("b", 1), Place("a", 2), None]
    assert places.gone("a") == [0, 2]
    assert [places.place(key) for key in (4, 5, 6)] == [Place("b", 0), Place("b", 2), None]
    assert (places.room, places.instances) == (0, 1)


def test_with_an_instance_go_its_sequences_and_no_others() -> None:
    places = placement(4, "a", "b")
    for key in range(6):
        places.place(key)
    assert places.gone("a") == [0, 2, 4]
    assert places.gone("a") == []
    assert len(places) == 3
    places.up("a")
    assert places.place(0) == Place("a", 0), "one of the same name is another"


def test_so_many_instances_keep_all_that_live() -> None:
    def number_of(name: str) -> int:
        return "abc".index(name)

    places, threads = placement(4, "a", "b", "c"), SequencePlacement(4, shared=True)
    for name in "abc":
        threads.up(name)
    for one in (places, threads):
        assert one.least(number_of) == 0
        for key in range(3):
            one.place(key)
        assert one.least(number_of) == 3
        one.end(1)
    assert (places.kept("a"), places.kept("b"), places.kept("x")) == (1, 0, 0)
    assert places.least(number_of) == 2, "the one without a sequence goes first"
    assert threads.least(number_of) == 3, "threads go by their numbers"


def test_no_slot_has_two_sequences() -> None:
    draws, places, live = random.Random(1), placement(3, "a", "b", "c"), dict[int, Place]()
    for number in range(2000):
        action = draws.random()
        if action < 0.55 and (place := places.place(number)) is not None:
            live[number] = place
        elif action < 0.95 and live:
            key = draws.choice(list(live))
            places.answered(key, ok=draws.random() < 0.8)
            places.end(key)
            del live[key]
        elif action >= 0.98:
            name = draws.choice("abc")
            assert set(places.gone(name)) == {key for key, place in live.items() if place.instance == name}
            live = {key: place for key, place in live.items() if place.instance != name}
            places.up(name)
        assert len(set(live.values())) == len(live) == len(places) == 9 - places.room
        assert all(place.slot < 3 for place in live.values())
