"""What loading a version by hand wants: its number, who is sent to it, and what stays as it was."""

from dlproxy.config import ModelConfig
from dlproxy.policy.wanted import Traffic, WantedModel, WantedVersion
from dlproxy.serve.operations import Load

BEFORE = WantedModel(
    {number: WantedVersion(ModelConfig(path="m.onnx", version=number)) for number in ("2", "10")}, on_demand=True
)


def loaded(load: Load, before: WantedModel = BEFORE) -> WantedModel:
    after = load.change(before)
    assert after is not None
    return after


def test_it_is_the_version_after_the_largest_and_stays_on_demand() -> None:
    after = loaded(Load(path="n.onnx", config={"max_batch": 7}))
    assert after.versions["11"].config == ModelConfig(path="n.onnx", version="11", max_batch=7, pinned=["max_batch"])
    assert after.on_demand
    assert not loaded(Load(path="n.onnx", on_demand=False)).on_demand
    assert list(loaded(Load(path="n.onnx"), WantedModel()).versions) == ["1"]


def test_as_a_canary_it_gets_its_share_and_no_more() -> None:
    after = loaded(Load(path="n.onnx", share=0.1))
    assert (after.default, after.traffic) == ("10", Traffic({"11": 0.1}, guarded=True))
    assert loaded(Load(path="o.onnx"), after).default == "12", "what is loaded without a share is for all"
