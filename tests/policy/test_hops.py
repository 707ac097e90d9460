"""What nodes tell each other: whatever is missing, malformed or newer means what it meant before; loops end."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.policy.hops import (
    MOST_HOPS,
    MOST_IDS,
    NO_LOAD,
    NO_WAY,
    Load,
    Way,
    left_s,
    load_in,
    load_text,
    way_in,
    way_on,
    why_refused,
)

ids = st.text("abcdef0123456789.-", min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("text", "way"),
    [
        ("", NO_WAY),
        ("gw1", NO_WAY),
        ("-1; gw1", NO_WAY),
        ("1" * 10, NO_WAY),
        ("1; gw1-ab", Way(1, ("gw1-ab",))),
        ("2;gw1-ab,mid-cd", Way(2, ("gw1-ab", "mid-cd"))),
        ("2; gw1, mid; region=eu; what=ever", Way(2, ("gw1", "mid"))),
        ("3", Way(3)),
        (f"1; {'x' * 101}, gw1", Way(1, ("gw1",))),
    ],
)
def test_where_a_request_came_through(text: str, way: Way) -> None:
    assert way_in(text) == way


def test_a_batch_came_through_whatever_its_requests_did() -> None:
    assert way_on("own", [""]) == "1; own"
    assert way_on("own", ["1; a", "", "2; b, c", "1; a"]) == "3; a, b, c, own"
    assert way_on("own", ["2; own, a"]) == "3; a, own"


@given(st.lists(st.lists(ids, max_size=40), max_size=20))
def test_what_is_told_is_bounded_and_ends_with_this_node(came: list[list[str]]) -> None:
    way = way_in(way_on("own", [f"{len(one)}; {', '.join(one)}" for one in came]))
    assert way.hops == 1 + max(map(len, came), default=0)
    assert way.ids[-1] == "own"
    assert len(way.ids) <= MOST_IDS


@given(st.lists(ids, min_size=1, max_size=5, unique=True), st.integers(0, 60))
def test_every_circle_ends(circle: list[str], start: int) -> None:
    text = ""
    for step in range(len(circle) + 1):
        node = circle[(start + step) % len(circle)]
        if why_refused(node, text):
            assert step == len(circle), "at the first node that it meets again, and no sooner"
            return
        text = way_on(node, [text])
    raise AssertionError("it went round and round")


def test_nodes_that_forget_the_names_are_counted_still() -> None:
    text = ""
    for step in range(MOST_HOPS):
        assert not why_refused(f"n-{step}", text)
        text = way_on(f"n-{step}", [text]).partition(";")[0]
    assert "8 at most" in why_refused("other", text)
    assert "8 at most" in why_refused("", text), "a model that runs here, too"


def test_a_refusal_names_the_circle() -> None:
    why = why_refused("gw1-ab", "2; gw1-ab, mid-cd")
    assert why.startswith("the request has come back to gw1-ab through mid-cd: these upstreams form a loop")
    assert why_refused("gw1-ab", "1; gw1-ab").startswith("the request has come back to gw1-ab: ")


@pytest.mark.parametrize(
    "load", [Load(0, 0.0), Load(17, 0.25, "eu-1a"), Load(3, 0.001, leaves=True), Load(1 << 30, 100.0, "r", leaves=True)]
)
def test_a_load_comes_back_as_it_went(load: Load) -> None:
    assert load_in(load_text(load)) == load
    assert load_in(f"{load_text(load)}; gpu=70; x") == load, "a later version says more"


@pytest.mark.parametrize(
    "text", ["", "busy", "rows=-1; wait=1", "rows=x; wait=1", "rows=1; wait=nan", "rows=inf; wait=1", "rows=1", ";=;"]
)
def test_half_a_load_is_none(text: str) -> None:
    assert load_in(text) == NO_LOAD


@given(st.text(max_size=200))
def test_garbage_says_something_harmless(text: str) -> None:
    load, way = load_in(text), way_in(text)
    assert load.rows >= -1
    assert 0.0 <= load.wait_s < inf
    assert way.hops >= 0
    why_refused("own", text)
    way_on("own", [text])


@pytest.mark.parametrize(("distance_s", "expected_s"), [(0.0, 0.5), (0.02, 0.48), (0.25, 0.25), (3.0, 0.25)])
def test_a_client_s_patience_less_the_way(distance_s: float, expected_s: float) -> None:
    assert left_s(0.5, distance_s) == pytest.approx(expected_s)
