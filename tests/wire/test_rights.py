"""What somebody may do with which models is asked before anything of the model, or of the request for it, is looked at."""

from collections.abc import Mapping
from math import inf

import pytest

from dlproxy.config import HttpLimits
from dlproxy.message import ANONYMOUS, FailureKind, Grant, InferenceError, Principal, Scope
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.http.server import HttpServer
from dlproxy.wire.oip.http import OipApp
from dlproxy.wire.rights import demand, seen
from dlproxy.wire.terms import Peer
from dlproxy.wire.waiting import Waiting

from .fixtures import PLAIN, Answers, EchoService, Wire, post, request, served

ALL, SOME = ("*",), ("ocr-*",)


@pytest.mark.parametrize(
    ("scopes", "models", "scope", "model", "may"),
    [
        (("infer",), SOME, "infer", "ocr-1", True),
        (("infer",), SOME, "infer", "asr", False),
        (("infer",), SOME, "read", "ocr-1", False),
        (("read",), SOME, "read", "", True),  # of a list: of what one may see
        (("admin",), SOME, "read", "ocr-1", True),
        (("admin",), SOME, "infer", "ocr-1", False),
        (("admin",), SOME, "admin", "ocr-1", True),
        (("admin",), SOME, "admin", "", False),  # what changes something for all
        (("admin",), SOME, "admin", None, True),  # the model is named later
        (("admin",), ("ocr-*", "*"), "admin", "", True),
        (("metrics",), SOME, "admin", None, False),
        ((), ALL, "read", "", False),
    ],
)
def test_who_may(scopes: tuple[Scope, ...], models: tuple[str, ...], scope: Scope, model: str | None, may: bool) -> None:
    demand(ANONYMOUS, scope, model)
    who = Principal("ann", grant=Grant(frozenset(scopes), models))
    if may:
        demand(who, scope, model)
        return
    with pytest.raises(InferenceError) as refused:
        demand(who, scope, model)
    assert refused.value.failure.kind is FailureKind.FORBIDDEN


class Loads:
    """Any model may come, if somebody asks for it."""

    def __init__(self) -> None:
        self.demanded: list[str] = []

    def may_come(self, name: str, version: str = "") -> bool:
        return True

    async def demand(self, name: str, version: str = "") -> None:
        self.demanded.append(name)


def identify(peer: Peer, method: bytes, target: bytes, headers: Mapping[bytes, bytes]) -> Principal:
    return Principal("ann", grant=Grant(frozenset(("infer", "read")), SOME))


@pytest.mark.parametrize("path", ["/v2/models/asr/infer", "/predict/asr", "/v2/models/asr"])
def test_no_model_is_loaded_for_who_may_not_ask_it(path: str) -> None:
    catalog, loads = Catalog(), Loads()
    catalog.add(served(EchoService(PLAIN)))
    catalog.waiting = Waiting(loads)
    app = OipApp(catalog, HttpLimits(), clock=lambda: inf, server_timing=False)
    wire = Wire(Answers(), server=HttpServer(app, HttpLimits(), identify))
    wire.feed(request(path) if path == "/v2/models/asr" else post(path, b"no JSON"))
    (reply,) = wire.take()
    assert (reply.status, loads.demanded) == (403, [])


def test_lists_are_of_what_one_may_see() -> None:
    models = [served(EchoService(PLAIN))]  # "m"
    assert seen(models, ANONYMOUS) == models
    assert not seen(models, Principal("ann", grant=Grant(frozenset(("read",)), SOME)))
    assert not seen(models, Principal("ann", grant=Grant(frozenset(("infer",)), ALL))), "to ask is not to see"
