"""Models come and go while requests do: every route follows at once, and nothing of a removed model stays."""

import gc
import weakref
from collections.abc import Callable

import pytest

from dlproxy.config import HttpLimits
from dlproxy.message import DType, FailureKind, InferenceError
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.oip.http import OipApp

from .fixtures import PLAIN, EchoService, Reply, Wire, echo_signature, post, request, served

INFER = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'
PREDICT = b'{"inputs":[[1,2]]}'
HEAD = (
    b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}],'
    b'"parameters":{"timeout":5000000}}'
)
REST = ["", "/ready", "/config", "/stats"]
BINARY = {"Inference-Header-Content-Length": str(len(HEAD))}


class Site:
    """A server whose catalog changes, asked over one connection."""

    def __init__(self, *versions: str) -> None:
        self.catalog = Catalog()
        self.services: dict[str, EchoService] = {}
        for version in versions:
            self.add(version)
        app = OipApp(self.catalog, HttpLimits(), clock=lambda: 100.0, server_timing=False)
        self.wire = Wire(app)

    def add(self, version: str, name: str = "m") -> None:
        self.services[version] = service = EchoService(PLAIN, model=name, version=version)
        self.catalog.add(served(service))

    def ask(self, data: bytes) -> Reply:
        self.wire.feed(data)
        for service in self.services.values():
            service.answer_all()
        (reply,) = self.wire.take()
        return reply

    def answered_by(self, path: str = "") -> set[str]:
        """The versions that answer, over every route of inference and in spellings that are remembered."""
        found = set()
        targets = (f"/v2/models/m{path}/infer", f"/v2/models/%6d{path}/infer", f"/v2/models/m{path}/infer?a")
        for target in targets * 2:
            found.add(self.ask(post(target, INFER)).json()["model_version"])
            found.add(self.ask(post(target, HEAD + bytes(8), **BINARY)).json()["model_version"])
        found.add(self.ask(post(f"/predict/m{path}", PREDICT)).json()["version"])
        return found


def test_a_version_that_is_added_answers_at_once_and_is_the_default() -> None:
    site = Site("1")
    assert site.answered_by() == {"1"}
    site.add("2")
    assert site.answered_by() == {"2"}
    assert site.answered_by("/versions/1") == {"1"}
    assert site.answered_by("/versions/2") == {"2"}
    assert site.ask(request("/v2/models/m")).json()["versions"] == ["1", "2"]


def test_the_default_stays_where_it_was_set_until_that_version_goes() -> None:
    site = Site("1", "2")
    site.catalog.route("m", "1", {})
    assert site.answered_by() == {"1"}
    site.add("3")
    assert site.answered_by() == {"1"}
    site.catalog.remove("m", "1")
    assert site.answered_by() == {"3"}, "the version added last"
    site.add("1")
    assert site.answered_by() == {"1"}, "what was set does not come back"


def test_a_label_is_taken_wherever_a_version_is_until_its_version_goes() -> None:
    site = Site("1", "2")
    site.catalog.route("m", "1", {"canary": "2", "stabil_ß": "1"})
    assert site.answered_by("/versions/canary") == {"2"}
    assert site.answered_by("/versions/stabil_%C3%9F") == {"1"}
    for rest in REST:
        assert site.ask(request(f"/v2/models/m/versions/canary{rest}")).status == 200
    assert site.ask(request("/v2/models/m/versions/canary/config")).json()["version_policy"]["specific"]["versions"] == [2]
    assert site.ask(request("/v2/models/m/versions/canary/stats")).json()["model_stats"][0]["version"] == "2"
    site.catalog.route("m", "1", {"canary": "1"})
    assert site.answered_by("/versions/canary") == {"1"}
    site.catalog.route("m", "1", {"canary": "2"})
    site.catalog.remove("m", "2")
    for data in (post("/v2/models/m/versions/canary/infer", INFER), post("/predict/m/versions/canary", PREDICT)):
        reply = site.ask(data)
        assert (reply.status, reply.error.endswith("version canary is not found; the versions served are 1")) == (404, True)
    site.add("2")
    assert site.ask(post("/v2/models/m/versions/canary/infer", INFER)).status == 404, "a label does not come back"


def test_what_is_diverted_takes_requests_without_a_version_only() -> None:
    site = Site("1", "2")
    diverted = EchoService(PLAIN, version="1")
    site.services["diverted"] = diverted
    site.catalog.route("m", "1", {"stable": "1"}, served(diverted))
    assert site.answered_by() == {"1"}
    asked = len(diverted.requests)
    assert asked
    assert not site.services["1"].requests
    for path in ("/versions/1", "/versions/stable", "/versions/2"):
        site.answered_by(path)
    assert len(diverted.requests) == asked
    assert [model.version for model in site.catalog] == ["1", "2"], "it is no version of its own"
    assert site.catalog.get("m").service is site.services["1"]
    site.catalog.remove("m", "2")
    site.answered_by()
    assert len(diverted.requests) == 2 * asked
    site.catalog.route("m", "1", {})
    site.answered_by()
    assert len(diverted.requests) == 2 * asked


def test_what_is_diverted_goes_with_the_version_in_whose_place_it_is() -> None:
    site = Site("1", "2")
    diverted = served(EchoService(PLAIN, version="1"))
    site.catalog.route("m", "1", {}, diverted)
    desk = site.wire._app._desk  # type: ignore[attr-defined]
    assert desk.find("m")._endpoint.model is diverted
    site.catalog.remove("m", "1")
    assert site.answered_by() == {"2"}
    gone = weakref.ref(diverted)
    gc.disable()
    try:
        del diverted
        assert gone() is None
    finally:
        gc.enable()


def test_a_model_in_place_of_another_has_its_own_signature() -> None:
    site = Site("1", "2")
    assert site.answered_by() == {"2"}
    site.services["1"] = replacing = EchoService(echo_signature(("y", DType.INT32, (-1, 1))), version="1")
    site.catalog.add(served(replacing))
    assert site.answered_by() == {"2"}, "a replaced version is not one that was added"
    reply = site.ask(post("/v2/models/m/versions/1/infer", INFER))
    assert (reply.status, "'y'" in reply.error) == (400, True)
    assert site.ask(post("/predict/m/versions/1", b'{"inputs":[[1]]}')).json()["outputs"] == {"out_y": [[1]]}


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_a_removed_model_is_gone_from_every_route(version: str) -> None:
    site = Site("1")
    site.add("7", name="other")
    assert site.answered_by(version) == {"1"}
    site.catalog.remove("m", "1")
    targets = [post(f"/v2/models/m{version}/infer", INFER), post(f"/predict/m{version}", PREDICT)]
    for data in (*targets, *(request(f"/v2/models/m{version}{rest}") for rest in REST)):
        reply = site.ask(data)
        assert reply.status == 404
        assert reply.error == "Request for unknown model: 'm' is not found; the models served are 'other'"
    site.add("1")
    assert site.answered_by(version) == {"1"}


def test_what_is_under_way_on_a_removed_version_is_answered() -> None:
    site = Site("1", "2")
    site.wire.feed(post("/v2/models/m/infer", INFER), post("/predict/m", PREDICT))
    site.catalog.remove("m", "2")
    site.wire.feed(post("/v2/models/m/infer", INFER))
    for version in ("1", "2"):
        site.services[version].answer_all()
    first, second, third = site.wire.take()
    assert (first.json()["model_version"], second.json()["version"], third.json()["model_version"]) == ("2", "2", "1")


@pytest.mark.parametrize("path", ["m", "m/versions/2"])
@pytest.mark.parametrize("state", ["is being loaded", "is being unloaded"])
def test_a_version_that_comes_or_goes_says_so(path: str, state: str) -> None:
    site = Site()
    site.catalog.announce("m", "2", state)
    for data in (post(f"/v2/models/{path}/infer", INFER), request(f"/v2/models/{path}")):
        reply = site.ask(data)
        assert (reply.status, reply.error) == (503, f"model 'm' version 2 {state}")
    assert site.ask(request("/v2/models/m/versions/3")).status == 404
    site.catalog.announce("m", "2", "")
    assert site.ask(request(f"/v2/models/{path}")).error.endswith("no model is served")
    site.catalog.announce("m", "2", state)
    site.add("2")
    site.catalog.remove("m", "2")
    assert site.ask(request(f"/v2/models/{path}")).status == 404, "having been added, it is being loaded no more"


def test_another_version_answers_while_one_is_loaded() -> None:
    site = Site("1")
    site.catalog.announce("m", "2", "is being loaded")
    assert site.answered_by() == {"1"}


def route(catalog: Catalog, name: str, version: str) -> None:
    catalog.route(name, version, {})


def label(catalog: Catalog, name: str, version: str) -> None:
    catalog.route(name, "", {"canary": version})


@pytest.mark.parametrize("change", [Catalog.remove, route, label])
@pytest.mark.parametrize(("name", "version"), [("m", "9"), ("other", "1")])
def test_what_is_not_there_cannot_be_changed(change: Callable[[Catalog, str, str], None], name: str, version: str) -> None:
    site = Site("1")
    with pytest.raises(InferenceError) as caught:
        change(site.catalog, name, version)
    assert caught.value.failure.kind is FailureKind.NOT_FOUND
    assert site.answered_by() == {"1"}


def test_nothing_of_a_removed_model_stays() -> None:
    site = Site("1", "2")
    site.answered_by()
    kept = site.wire._app._desk.find("m")  # type: ignore[attr-defined]
    decoder, endpoint = kept._decoder, kept._endpoint
    assert decoder._memos
    parts = {
        "what the protocol keeps": kept,
        "decoder": decoder,
        "endpoint": endpoint,
        "checker": endpoint.checker,
        "model": endpoint.model,
        "service": site.services["2"],
    }
    gone = {name: weakref.ref(part) for name, part in parts.items()}
    gc.disable()
    try:
        site.wire.exchanges.clear()
        del parts, kept, decoder, endpoint
        del site.services["2"]
        site.catalog.remove("m", "2")
        assert {name: part() for name, part in gone.items() if part() is not None} == {}
    finally:
        gc.enable()
    assert site.answered_by() == {"1"}
