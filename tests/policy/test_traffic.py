"""Shares are met exactly, keys and tenants keep their versions, and what is not served leaves its part to the default."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlproxy.message import Ticket
from dlproxy.policy.traffic import Splitter
from dlproxy.policy.wanted import Traffic

ALL = ("1", "2", "3", "4")


def chosen(splitter: Splitter, requests: int) -> list[str]:
    return [splitter.choose(Ticket(number, 0.0)) for number in range(requests)]


def of_tenants(traffic: Traffic, model: str = "m", served: tuple[str, ...] = ALL) -> dict[str, str]:
    splitter = Splitter(model, "1", traffic, served)
    return {name: splitter.choose(Ticket(1, 0.0, tenant=name)) for name in map(str, range(10_000))}


@given(st.floats(0.0, 1.0), st.integers(0, 300))
def test_a_share_is_met_in_whatever_stretch_of_requests(share: float, begin: int) -> None:
    versions = chosen(Splitter("m", "1", Traffic(shares={"2": share}), ALL), begin + 2_000)[begin:]
    assert versions.count("2") == pytest.approx(share * 2_000, abs=4)


def test_shares_of_many_requests_are_within_a_few() -> None:
    counts = Counter(chosen(Splitter("m", "1", Traffic(shares={"3": 0.1, "2": 0.25, "4": 0.01}), ALL), 20_000))
    for version, expected in {"1": 12_800, "2": 5_000, "3": 2_000, "4": 200}.items():
        assert counts[version] == pytest.approx(expected, abs=5)


@pytest.mark.parametrize("period", [2, 3, 5, 10])
def test_clients_that_take_turns_are_split_alike(period: int) -> None:
    """Whoever sends every second request must not get a version of their own, as weighted turns would have it."""
    versions = chosen(Splitter("m", "1", Traffic(shares={"2": 0.5}), ALL), 1_000 * period)
    for client in range(period):
        assert versions[client::period].count("2") == pytest.approx(500, abs=12)


def test_a_whole_share_leaves_nothing_to_the_default() -> None:
    assert set(chosen(Splitter("m", "1", Traffic(shares={"2": 1.0}), ALL), 1_000)) == {"2"}
    assert set(chosen(Splitter("m", "1", Traffic(shares={"2": 0.0}), ALL), 1_000)) == {"1"}


def test_a_key_keeps_its_version_and_keys_are_shared_out() -> None:
    traffic = Traffic(shares={"2": 0.3}, by="tenant")
    split = of_tenants(traffic)
    assert split == of_tenants(traffic)
    assert Counter(split.values())["2"] == pytest.approx(3_000, abs=200)
    assert split != of_tenants(traffic, model="n"), "models hash differently"


def test_only_keys_that_must_move_do() -> None:
    before = of_tenants(Traffic(shares={"2": 0.1, "3": 0.2}, by="tenant"))
    for shares in ({"2": 0.4, "3": 0.2}, {"2": 0.1, "3": 0.5}):
        after = of_tenants(Traffic(shares=shares, by="tenant"))
        (grown,) = (version for version in shares if shares[version] > 0.2)
        moved = {name for name in before if before[name] != after[name]}
        assert moved
        assert {(before[name], after[name]) for name in moved} == {("1", grown)}
    without = of_tenants(Traffic(shares={"2": 0.1, "3": 0.2}, by="tenant"), served=("1", "3"))
    moved = {name for name in before if before[name] != without[name]}
    assert {(before[name], without[name]) for name in moved} == {("2", "1")}, "a version that is gone moves its own keys only"


def test_a_header_is_a_key_where_it_is_sent() -> None:
    splitter = Splitter("m", "1", Traffic(shares={"2": 0.5}, by="header:x-user"), ALL)
    versions = {user: {splitter.choose(Ticket(n, 0.0, affinity=user)) for n in range(9)} for user in map(str, range(100))}
    assert all(len(found) == 1 for found in versions.values())
    assert len(set.union(*versions.values())) == 2
    assert len(set(chosen(splitter, 9))) == 2, "who sends none is not one client"


def test_tenants_with_versions_of_their_own() -> None:
    traffic = Traffic(shares={"2": 1.0}, tenants={"ann": "3", "bob": "4"})
    splitter = Splitter("m", "1", traffic, ("1", "2", "3"))
    assert [splitter.choose(Ticket(1, 0.0, tenant=name)) for name in ("ann", "bob", "eve", "")] == ["3", "1", "2", "2"]


def test_a_key_that_is_no_unicode_is_a_key() -> None:
    splitter = Splitter("m\udcff", "1", Traffic(shares={"2": 0.5}, by="tenant"), ALL)
    assert splitter.choose(Ticket(1, 0.0, tenant="\udcff")) in ("1", "2")
