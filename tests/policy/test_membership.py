"""Members come at once and leave when they are missing twice; a directory that knows nobody changes nothing."""

from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.membership import MISSES, Membership

looks = st.lists(st.lists(st.sampled_from("abcdef"), max_size=6), max_size=30)


def test_who_joins_and_leaves() -> None:
    members = Membership("ab")
    assert members.looked("ab") == ([], [])
    assert members.looked("bcc") == (["c"], [])
    assert members.looked("bc") == ([], ["a"])
    assert members.looked("") == ([], []), "which is a failure"
    assert members.looked("c") == ([], [])
    assert members.looked("bc") == ([], []), "back in time"
    assert members.looked("abc") == (["a"], [])
    assert list(members.known) == ["b", "c", "a"]


@given(looks)
def test_what_is_known_is_what_was_found_of_late(looks: list[list[str]]) -> None:
    members, known = Membership("ab"), {"a", "b"}
    told = [set("ab")]
    for found in looks:
        joining, leaving = members.looked(found)
        assert not known & set(joining)
        assert set(leaving) <= known
        known = (known | set(joining)) - set(leaving)
        if found:
            told.append(set(found))
        assert known == set(members.known) == set().union(*told[-MISSES:])
        assert known
