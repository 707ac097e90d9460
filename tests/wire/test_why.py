"""`/why` of the control port: which requests it lists, which it finds, and who sees them."""

import asyncio
from typing import Any

import pytest
from msgspec import Struct

from dlproxy.message import Grant, Principal
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.control.http import control_app
from dlproxy.wire.control.why import MOST, why_routes
from tests.wire.test_control_http import Pilots, Port, Remembered, ask


class Kept(Struct):
    """An exemplar."""

    id: int
    request_id: str
    name: str
    kept_as: str
    arrived_at: float
    seconds: float = 0.1

    def told(self) -> dict[str, Any]:
        return {"id": str(self.id)}


KEPT = [
    Kept(1, "a", "m", "sample", 10.0),
    Kept(2, "b", "m", "slow", 11.0),
    Kept(3, "b", "m", "slow", 12.0),
    Kept(4, "a/b", "secret", "failed", 13.0),
    Kept(5, "stage", "m", "noted", 9.0, 9.0),
    Kept(6, "stage", "m", "sample", 10.5, 2.0),
]


def got(path: str, *models: str) -> tuple[int, Any]:
    """`models`: those that the client may see, if not all."""
    grant = Grant(frozenset({"read"}), models) if models else None
    identify = (lambda *asked: Principal("somebody", grant=grant)) if models else None
    port = Port()
    app = control_app(Catalog(), lambda: 0, port, Pilots(), Remembered(), why_routes(KEPT), identify)
    return asyncio.run(ask(app, "GET", path))


@pytest.mark.parametrize(
    ("path", "ids"),
    [
        ("/why", ["5", "4", "3", "2"]),
        ("/why?kind=all", ["5", "4", "6", "3", "2", "1"]),
        ("/why?kind=slow", ["3", "2"]),
        ("/why?kind=sample&model=m", ["6", "1"]),
        ("/why?model=secret", ["4"]),
        ("/why?model=none", []),
        ("/why?limit=1", ["5"]),
    ],
)
def test_lists_have_the_newest_first(path: str, ids: list[str]) -> None:
    status, told = got(path)
    assert (status, [one["id"] for one in told]) == (200, ids)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/why/1", "1"),
        ("/why/b", "3"),
        ("/why?id=b", "3"),
        ("/why?id=a/b", "4"),
        ("/why/a%2Fb", "4"),
        ("/why/b?model=m", "3"),
        ("/why/stage", "5"),
    ],
)
def test_one_is_found_by_its_name_or_number_the_newest_of_several(path: str, number: str) -> None:
    assert got(path) == (200, {"id": number})


@pytest.mark.parametrize("path", ["/why/9", "/why/b?model=secret", "/why?id="])
def test_what_is_not_kept_is_said_with_what_is(path: str) -> None:
    status, told = got(path)
    assert status == 404
    assert "is not known" in told["error"]
    assert told["kept"] == (1 if "secret" in path else len(KEPT))


@pytest.mark.parametrize("query", ["kind=quick", "limit=0", "limit=x", f"limit={MOST + 1}", "limit=-1"])
def test_a_query_of_no_sense_is_refused(query: str) -> None:
    status, told = got(f"/why?{query}")
    assert (status, "it can be" in told["error"]) == (400, True)


def test_whoever_may_see_some_models_sees_theirs() -> None:
    assert [one["id"] for one in got("/why?kind=all", "m")[1]] == ["5", "6", "3", "2", "1"]
    assert got("/why/4", "m")[0] == 404
    assert got("/why/4", "secret") == (200, {"id": "4"})
    assert got("/why", "nothing") == (200, [])
