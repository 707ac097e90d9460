"""What operators do to a model that is wanted: what comes of it, and what makes no sense."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.policy import changes
from dlproxy.policy.planner import cost
from dlproxy.policy.wanted import Traffic, Wanted, WantedModel, WantedVersion


def version(number: str, **knobs: Any) -> WantedVersion:
    return WantedVersion(ModelConfig(path="m.onnx", version=number, **knobs))


def model(*numbers: str, **fields: Any) -> WantedModel:
    return WantedModel({number: version(number) for number in numbers}, **fields)


def test_the_first_share_pins_the_default_to_the_newest_of_the_others() -> None:
    after = changes.with_share(model("1", "2", "10"), "10", 0.1)
    assert (after.default, after.traffic) == ("2", Traffic({"10": 0.1}, guarded=True))
    assert changes.with_share(after, "10", 0.0).traffic == Traffic()
    both = changes.with_share(after, "1", 0.2, by="tenant", guarded=False)
    assert both.traffic == Traffic({"10": 0.1, "1": 0.2}, by="tenant")


def test_a_promoted_version_gets_all_and_the_stable_label_follows_it() -> None:
    tried = changes.with_share(model("1", "2", labels={"stable": "1", "mine": "1"}), "2", 0.1)
    after = changes.promoted(tried)
    assert (after.default, after.traffic, after.labels) == ("2", Traffic(), {"stable": "2", "mine": "1"})
    assert changes.promoted(changes.with_shadow(model("1", "2"), "2")).traffic.shadow == ""


def test_a_rollback_takes_a_canary_back_first_and_then_the_last_change() -> None:
    wanted = Wanted().having("m", model("1", "2", default="1", traffic=Traffic(tenants={"ann": "2"}, trunk="t")))
    for change in (lambda one: changes.with_share(one, "2", 0.1), lambda one: changes.promoted(one, "2")):
        wanted = wanted.having("m", change(wanted.model("m")))
    back = changes.rolled_back(wanted.model("m"))
    assert (back.default, back.traffic.shares) == ("1", {"2": 0.1})
    back = changes.rolled_back(back)
    assert (back.default, back.traffic) == ("1", Traffic(tenants={"ann": "2"}, trunk="t"))


def test_other_versions_keep_what_was_said_of_those_that_stay() -> None:
    traffic = Traffic({"2": 0.1, "3": 0.1}, tenants={"ann": "3", "bob": "1"}, shadow="3")
    before = model("1", "2", "3", default="1", labels={"a": "1", "c": "3"}, traffic=traffic)
    before = changes.scaled(before, "2", 4)
    after = changes.without_version(before, "3")
    assert after is not None
    assert (after.default, after.labels) == ("1", {"a": "1"})
    assert after.traffic == Traffic({"2": 0.1}, tenants={"bob": "1"})
    again = changes.with_versions(after, {"2": version("2", threads=2)})
    assert (again.default, again.versions["2"].instances, again.versions["2"].config.threads) == ("", 4, 2)
    assert changes.without_version(again, "2") is None


def test_knobs_and_instances_of_one_version_or_of_all() -> None:
    every = changes.with_knobs(changes.scaled(model("1", "2"), "", 3), "", {"max_wait_s": 0.5})
    assert {(each.instances, each.config.max_wait_s) for each in every.versions.values()} == {(3, 0.5)}
    one = changes.with_knobs(changes.scaled(every, "2", None), "2", {"max_wait_s": 0.0})
    assert (one.versions["2"].instances, one.versions["2"].config.max_wait_s) == (None, 0.0)
    assert one.versions["1"] == every.versions["1"]


def test_what_an_operator_sets_is_pinned_and_its_first_value_is_over() -> None:
    before = WantedModel({"1": version("1", start={"max_batch": 1, "hedge": True}, pinned=["balancer"])})
    after = changes.with_knobs(before, "1", {"max_batch": 8, "slo": "p99=1s"}).versions["1"]
    assert (after.config.max_batch, after.config.start) == (8, {"hedge": True})
    assert set(after.config.pinned) == {"balancer", "max_batch"}
    assert cost(before.versions["1"], after) == "live"
    freed = changes.with_knobs(WantedModel({"1": after}), "1", {"pinned": [], "hedge": False}).versions["1"]
    assert (freed.config.pinned, freed.config.start) == (["hedge"], {})
    assert changes.with_values(after.config, {"max_wait_s": 0.1}).pinned == after.config.pinned, "whoever tunes pins nothing"


def test_a_model_that_serves_is_not_loaded_anew_for_other_first_values() -> None:
    assert cost(version("1"), version("1", start={"max_batch": 4})) == "live"
    assert cost(version("1"), version("1", threads=2)) == "reload"


def test_tenants_labels_and_trunks_come_and_go() -> None:
    own = changes.with_tenant(model("1", "2"), "ann", "2")
    assert (own.default, own.traffic.tenants) == ("1", {"ann": "2"})
    assert changes.with_tenant(own, "ann", "").traffic == Traffic()
    labelled = changes.labelled(model("1", "2"), "canary", "2")
    assert labelled.labels == {"canary": "2"}
    assert changes.labelled(labelled, "canary", "").labels == {}
    assert changes.with_trunk(own, "t").traffic.trunk == "t"
    assert changes.without_share(changes.with_share(own, "2", 0.1), "2").traffic.shares == {}


ONE = model("1")
TWO = model("1", "2", default="1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: changes.with_share(ONE, "1", 0.1), "answers all requests that name none already"),
        (lambda: changes.with_share(TWO, "1", 0.1), "answers all requests that name none already"),
        (lambda: changes.with_share(TWO, "3", 0.1), "version 3 is not wanted; there are: 1, 2"),
        (lambda: changes.with_shadow(TWO, "3"), "version 3 is not wanted"),
        (lambda: changes.with_tenant(TWO, "ann", "3"), "version 3 is not wanted"),
        (lambda: changes.with_tenant(TWO, "ann", ""), "tenant 'ann' has no version of its own; there are: none"),
        (lambda: changes.labelled(TWO, "x", ""), "there is no label 'x'; there are: none"),
        (lambda: changes.labelled(TWO, "x", "9"), "version 9 is not wanted"),
        (lambda: changes.promoted(TWO), "say which version to promote; there are: 1, 2"),
        (lambda: changes.promoted(TWO, "3"), "version 3 is not wanted"),
        (lambda: changes.rolled_back(ONE), "there is nothing to go back to"),
        (lambda: changes.without_version(ONE, "2"), "version 2 is not wanted"),
        (lambda: changes.scaled(ONE, "", 1000), "instances 1000 is out of range; give 0 to 256"),
        (lambda: changes.with_knobs(ONE, "", {"max_bach": 1}), "unknown knob 'max_bach'; did you mean 'max_batch'"),
        (lambda: changes.with_knobs(ONE, "", {"max_batch": 0}), "max_batch: expected `int` >= 1"),
    ],
)
def test_what_makes_no_sense_is_refused(change: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        change()


def test_what_is_wanted_survives_being_written_down() -> None:
    wanted = Wanted().having("m", changes.with_share(TWO, "2", 0.1))
    assert msgspec.json.decode(msgspec.json.encode(wanted), type=Wanted) == wanted
