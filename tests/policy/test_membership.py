"""Members come at once and leave when they are missing twice; a directory that knows nobody changes nothing."""

from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.membership import MISSES, Membership

looks = st.lists(st.lists(st.sampled_from("abcdef"), max_size=6), max_size=30)


def test_who_joins_and_leaves() -> None:
    members = Membership("ab", 0.0)
    assert members.looked("ab", 1.0) == ([], [])
    assert members.looked("bcc", 2.0) == (["c"], [])
    assert members.looked("bc", 3.0) == ([], ["a"])
    assert members.looked("", 4.0) == ([], []), "which is a failure"
    assert members.looked("c", 5.0) == ([], [])
    assert members.looked("bc", 6.0) == ([], []), "back in time"
    assert members.looked("abc", 7.0) == (["a"], [])
    assert list(members.known) == ["b", "c", "a"]


def test_a_directory_that_fills_again_has_time_for_that() -> None:
    members = Membership("ab", 0.0, grace_s=10.0)
    for now in range(1, 10):
        assert members.looked("a", float(now)) == ([], [])
    assert members.looked("a", 10.0) == ([], ["b"])


@given(looks)
def test_what_is_known_is_what_was_found_of_late(looks: list[list[str]]) -> None:
    members, known = Membership("ab", 0.0), {"a", "b"}
    told = [set("ab")]
    for now, found in enumerate(looks):
        joining, leaving = members.looked(found, float(now))
        assert not known & set(joining)
        assert set(leaving) <= known
        known = (known | set(joining)) - set(leaving)
        if found:
            told.append(set(found))
        assert known == set(members.known) == set().union(*told[-MISSES:])
        assert known
