"""What a repository's files change in what is wanted, and what they leave to operators."""

import pytest

from dlproxy.config import ModelConfig
from dlproxy.fleet.repository.edit import edited
from dlproxy.fleet.repository.model_folder import FoundModel, broken
from dlproxy.fleet.repository.tree import MARK
from dlproxy.policy.wanted import Traffic, Wanted, WantedModel, WantedVersion


def version(number: str, stamp: str = MARK + "1", **knobs: str) -> WantedVersion:
    return WantedVersion(config=ModelConfig(path="m.onnx", version=number, **knobs), stamp=stamp)


def model(*numbers: str, **others: object) -> WantedModel:
    return WantedModel(versions={number: version(number) for number in numbers}, **others)  # type: ignore[arg-type]


def edit(
    wanted: Wanted, found: dict[str, WantedModel], *unsettled: str, before: dict[str, WantedModel] | None = None
) -> tuple[Wanted, list[str]]:
    now = {name: FoundModel(one) for name, one in found.items()}
    then = {name: FoundModel(one) for name, one in (before or {}).items()}
    return edited(wanted, now, unsettled, then, on_demand=False)


def test_models_come_and_go() -> None:
    wanted, warnings = edit(Wanted(models={"old": model("1"), "same": model("1")}), {"same": model("1"), "new": model("3")})
    assert wanted.models == {"same": model("1"), "new": model("3")}
    assert warnings == []


def test_others_models_are_left_alone() -> None:
    theirs = WantedModel(versions={"1": version("1", stamp="")})
    wanted, warnings = edit(Wanted(models={"theirs": theirs, "more": theirs}), {"theirs": model("2")})
    assert wanted.models == {"theirs": theirs, "more": theirs}
    assert warnings == ["model 'theirs' of the repository is left out: another one of that name is served"]


def test_a_version_that_an_operator_has_loaded_stays_beside_the_repositorys() -> None:
    theirs = version("9", stamp="")
    before = Wanted(models={"m": WantedModel(versions={"1": version("1"), "9": theirs}, default="1")})
    wanted, warnings = edit(before, {"m": model("2")})
    assert wanted.models["m"].versions == {"2": version("2"), "9": theirs}
    assert warnings == ["model 'm': the default version is gone with version 1, which the repository no longer has"]
    wanted, _ = edit(wanted, {})
    assert wanted.models["m"].versions == {"9": theirs}


def test_what_was_taken_up_once_is_not_again_whatever_operators_have_done_since() -> None:
    adopted, _ = edit(Wanted(), {"m": model("2"), "n": model("1")})
    changed = adopted.having("m", model("1")).having("n", None)
    assert edit(changed, {"m": model("2"), "n": model("1")})[0] == changed, "in another life, which found nothing before"
    later, _ = edit(changed, {"m": model("3"), "n": model("1")}, before={"m": model("2"), "n": model("1")})
    assert {name: list(one.versions) for name, one in later.models.items()} == {"m": ["3"]}
    gone, _ = edit(later, {"m": model("3")})
    assert list(gone.files) == ["m"]
    back, _ = edit(gone, {"m": model("3"), "n": model("1")})
    assert list(back.models) == ["m", "n"]


def test_what_is_unsettled_stays_as_it_is() -> None:
    before = Wanted(models={"gone": model("1"), "changed": model("1")})
    wanted, _ = edit(before, {"changed": model("2"), "new": model("1")}, "gone", "changed", "new")
    assert wanted == before


def test_what_operators_have_said_stays_where_it_means_something() -> None:
    old = WantedModel(
        versions={"1": version("1"), "2": WantedVersion(config=version("2").config, stamp=MARK + "1", instances=4)},
        default="2",
        labels={"stable": "1", "canary": "2"},
        traffic=Traffic(shares={"1": 0.2, "2": 0.1}, tenants={"shop": "2", "bank": "1"}, shadow="1", by="tenant", guarded=True),
    )
    wanted, warnings = edit(Wanted(models={"m": old}), {"m": model("2", "3")})
    new = wanted.models["m"]
    assert list(new.versions) == ["2", "3"]
    assert new.versions["2"].instances == 4
    assert (new.default, new.labels) == ("2", {"canary": "2"})
    assert new.traffic == Traffic(shares={"2": 0.1}, tenants={"shop": "2"}, by="tenant", guarded=True)
    assert new.previous is not None
    assert new.previous.versions == old.versions
    gone = ("label 'stable'", "the share of version 1", "the version of tenant 'bank'", "the shadow")
    assert warnings == [f"model 'm': {what} is gone with version 1, which the repository no longer has" for what in gone]


def test_a_default_that_is_gone_is_none() -> None:
    wanted, warnings = edit(Wanted(models={"m": model("1", "2", default="1")}), {"m": model("2")})
    assert wanted.models["m"].default == ""
    assert warnings == ["model 'm': the default version is gone with version 1, which the repository no longer has"]


def test_labels_of_the_repository_come_and_go_with_it() -> None:
    before = model("1", "2", labels={"stable": "1", "old": "1"})
    wanted = Wanted(models={"m": model("1", "2", labels={"stable": "1", "old": "1", "mine": "2"})})
    now, _ = edit(wanted, {"m": model("1", "2", labels={"stable": "2"})}, before={"m": before})
    assert now.models["m"].labels == {"stable": "2", "mine": "2"}


def test_a_model_of_which_nothing_can_be_said_stays_as_it_was() -> None:
    before = Wanted(models={"m": model("3", labels={"stable": "3"})})
    found = {"m": broken("m", "config.pbtxt:2: no"), "new": broken("new", "no")}
    wanted, warnings = edited(before, found, (), {}, on_demand=False)
    assert wanted.models["m"] == before.models["m"]
    assert wanted.models["new"].versions["1"].problem == "no"
    assert warnings == ["model 'm' stays as it was: config.pbtxt:2: no"]
    otherwise, warnings = edited(wanted, {**found, "new": broken("new", "nor now")}, (), {}, on_demand=False)
    assert otherwise.models["new"].versions["1"].problem == "nor now"


@pytest.mark.parametrize("on_demand", [True, False])
def test_on_demand(on_demand: bool) -> None:
    wanted, _ = edited(Wanted(), {"m": FoundModel(model("1"))}, (), {}, on_demand=on_demand)
    assert wanted.models["m"].on_demand is on_demand
