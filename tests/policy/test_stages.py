"""What pipelines ask, in which order it is loaded, and circles."""

import pytest

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.config.pipelines import PIPELINE, StepConfig
from dlproxy.policy.stages import circle, loading_order, meant, stages_of, with_stages
from dlproxy.policy.wanted import Wanted, WantedModel, WantedVersion


def config(*asked: str, version: str = "1") -> ModelConfig:
    """A pipeline that asks these; a model if there are none."""
    if not asked:
        return ModelConfig(path="m.onnx", version=version)
    steps = {f"s{place}": StepConfig(model=name, inputs={"x": "x"}) for place, name in enumerate(asked)}
    return ModelConfig(path=PIPELINE, version=version, outputs={"y": "s0.y"}, steps={**steps, "cut": StepConfig(call="a:b")})


def wanted(**models: ModelConfig) -> Wanted:
    return Wanted({name: WantedModel({made_of.version: WantedVersion(made_of)}) for name, made_of in models.items()})


def test_steps_that_ask_models_are_stages() -> None:
    assert [str(stage) for stage in stages_of(config("det", "rec:stable"))] == [
        "stage 's0': model 'det'",
        "stage 's1': model 'rec' version stable",
    ]
    assert stages_of(config()) == []


def test_a_stage_may_get_any_version_unless_it_names_one() -> None:
    versions = {number: WantedVersion(config(version=number)) for number in ("1", "2")}
    have = Wanted({"rec": WantedModel(versions, labels={"stable": "1"})})
    for name, found in (("rec", ["1", "2"]), ("rec:2", ["2"]), ("rec:stable", ["1"]), ("rec:3", []), ("det", [])):
        (stage,) = stages_of(config(name))
        assert [version for _, version in meant(stage, have)] == found


def test_what_is_asked_comes_first_whatever_asks_it() -> None:
    have = wanted(a=config("b", "c", "missing"), b=config("c"), c=config(), d=config())
    assert with_stages(["d", "a", "c"], have) == ["d", "c", "b", "a"]
    assert with_stages(["x", "y"], wanted(x=config("y"), y=config("x"))) == ["y", "x"]


def test_only_who_is_in_a_circle_waits_for_itself() -> None:
    have = wanted(a=config("b"), b=config("c", "d"), c=config("b"), d=config())
    assert circle(("a", "1"), have) == ""
    assert circle(("b", "1"), have) == "pipelines wait for each other: 'b' asks 'c', which asks 'b'"


def test_models_are_loaded_before_those_that_ask_them() -> None:
    models = [("all", config("two", "one")), ("two", config("one:1")), ("one", config()), ("one", config("one:1", version="2"))]
    order = loading_order(models)
    assert order in ([2, 3, 1, 0], [2, 1, 3, 0])
    assert loading_order([("b", config()), ("a", config("elsewhere"))]) == [0, 1]
    with pytest.raises(ConfigError, match=r"pipelines wait for each other: '(one|two)' asks '(two|one)', which asks"):
        loading_order([("two", config("one")), ("one", config("two"))])
