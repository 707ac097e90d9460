"""What is wrong with how steps fit together is said when a pipeline is loaded, with both ends; and what it takes and gives."""

import re
from typing import Any

import pytest
from msgspec.structs import replace

from dlproxy.instance.runtime import ModelError
from dlproxy.message import DType, Signature, TensorSpec
from tests.serve.pipelines.rig import HERE, TWO, Floor, step, total
from tests.serve.rig import SIGNATURE

pytestmark = pytest.mark.looptime


def floor_of() -> Floor:
    """With models of several signatures."""
    floor = Floor()
    floor.model("m")
    floor.model("sum", total, signature=TWO)
    floor.model("wide", signature=_one("FP32", (-1, 4)))
    floor.model("ids", signature=_one("INT64", (-1, -1)))
    floor.model("image", signature=_one("FP32", (-1, 3, -1, -1)))
    floor.model("parts", signature=replace(SIGNATURE, streams=True))
    floor.model("stateful", signature=replace(SIGNATURE, sequences="oldest"))
    floor.model("alone", signature=replace(_one("FP32", (2, 2)), batched=False))
    return floor


def _one(dtype: str, shape: tuple[int, ...]) -> Signature:
    spec = TensorSpec("x", DType(dtype), shape)
    return replace(SIGNATURE, inputs=(spec,), outputs=(replace(spec, name="y"),))


@pytest.mark.parametrize(
    ("steps", "outputs", "message"),
    [
        ({"a": step("mm", x="x")}, "a.y", "stage 'a': model 'mm' is not served: .* is not found.*; did you mean 'm'\\?"),
        (
            {"a": step("m:7", x="x")},
            "a.y",
            "stage 'a': model 'm:7' is not served: .*'m' version 7 is not found; the versions served are 1",
        ),
        ({"a": step("m", xx="x")}, "a.y", "stage 'a': model 'm' takes no input 'xx'; did you mean 'x'\\?"),
        ({"a": step("m", x="x")}, "a.z", "stage 'a': model 'm' gives no output 'z'; its outputs are y"),
        ({"a": step("sum", a="x")}, "a.y", "stage 'a': model 'sum' takes b, and the step does not say from where"),
        (
            {"a": step("m", x="x"), "b": step("ids", x="a.y")},
            "b.y",
            r"steps.b.inputs.x: step 'a' \(model 'm'\) gives FP32\[-1,-1\] \('y'\), and model 'ids' takes INT64.* \('x'\)",
        ),
        (
            {"a": step("ids", x="x")},
            "a.y",
            r"steps.a.inputs.x: the pipeline gives FP32\[-1,-1\] \('x'\), and model 'ids' takes .*",
        ),
        ({"a": step("m", x="x"), "b": step("image", x="a.y")}, "b.y", r".* gives FP32\[-1,-1\] .* takes FP32\[-1,3,-1,-1\] .*"),
        (
            {"a": step(":is_large", x="x")},
            "a.yes",
            r"outputs.y: step 'a' \(.*:is_large\) does not say what 'yes' is; give it .*",
        ),
        ({"a": step(":plus_one", x="x")}, "a.z", r"stage 'a' \(.*:plus_one\) gives no output 'z'; its outputs are y"),
        ({"a": step(":plus_one", z="x")}, "a.y", r"stage 'a' \(.*:plus_one\): it takes no 'z'; it takes x"),
        ({"a": step(":plus_two", x="x")}, "a.y", "stage 'a': .* has no function or class plus_two; did you mean plus_one\\?"),
        ({"a": {**step("m", x="x"), "need": 1}}, "a.y", "stage 'a': need is for code, and model 'm' takes all of its inputs"),
        (
            {"a": step("parts", x="x"), "b": step("m", x="a.y")},
            "b.y",
            "stage 'a': model 'parts' answers in parts, so it must be .*",
        ),
        ({"a": step("parts", each=True, x="x")}, "a.y", "stage 'a': model 'parts' answers in parts, so it must be .*"),
        (
            {"a": step("m", x="x"), "b": step("image", x="i")},
            "a.y | b.y",
            r"outputs.y: step 'a' \(model 'm'\) gives FP32\[-1,-1\], step 'b' \(model 'image'\) gives FP32\[-1,3,-1,-1\]",
        ),
        ({"a": step("stateful", x="x")}, "a.y", "stage 'a': model 'stateful' has sequences, and requests of a pipeline are .*"),
        ({"a": step("p", x="x")}, "a.y", "stage 'a': model 'p' asks this pipeline itself, which is a circle"),
        ({"a": {"call": "image.decoed", "inputs": {"x": "x"}}}, "a.y", "stage 'a': call = 'image.decoed' names no code; .*"),
        ({"a": {**step(":plus_one", x="x"), "options": {"by": 1}}}, "a.y", "stage 'a': options are for classes, .*"),
        ({"a": {**step(":Scale", x="x"), "options": {"of": 1}}}, "a.y", "stage 'a': .*:Scale could not be made: TypeError: .*"),
    ],
)
async def test_what_does_not_fit_is_said_with_both_ends(steps: dict[str, Any], outputs: str, message: str) -> None:
    floor = floor_of()
    with pytest.raises(ModelError) as raised:
        floor.pipeline(steps, {"y": outputs}, inputs={"x": "FP32[-1,-1]", "i": "FP32[-1,3,-1,-1]"})
    assert re.fullmatch(message, str(raised.value)), str(raised.value)


@pytest.mark.parametrize(
    ("steps", "outputs", "inputs", "expected"),
    [
        ({"a": step("wide", x="x")}, "a.y", {"x": ""}, ((-1, 4), (-1, 4))),
        ({"a": step("wide", x="x")}, "a.y", {"x": "FP32[-1,-1]"}, ((-1, -1), (-1, 4))),
        ({"a": step("wide", each=True, x="x")}, "a.y", {"x": ""}, ((-1, 4), (-1, 4))),
        ({"a": step("alone", each=True, x="x")}, "a.y", {"x": "FP32[-1,2,2]"}, ((-1, 2, 2), (-1, 2, 2))),
        ({"a": step("wide", x="x"), "b": step("m", x="x")}, "a.y | b.y", {"x": ""}, ((-1, 4), (-1, -1))),
        ({"a": step(":split", x="x"), "b": step("wide", each=True, x="a.items")}, "b.y", {"x": "FP32[3,4]"}, ((3, 4), (-1, 4))),
    ],
)
async def test_it_takes_and_gives_what_its_steps_do(
    steps: dict[str, Any], outputs: str, inputs: dict[str, str], expected: tuple[Any, Any]
) -> None:
    signature = floor_of().pipeline(steps, {"y": outputs}, inputs=inputs).fleet.signature
    assert (signature.inputs[0].shape, signature.outputs[0].shape) == expected
    assert [spec.name for spec in (*signature.inputs, *signature.outputs)] == ["x", "y"]
    assert (signature.batched, signature.platform) == (False, "pipeline")


async def test_an_input_that_no_model_takes_must_be_declared() -> None:
    with pytest.raises(ModelError, match=r'inputs.x: no model takes it as it is; say what it is, as in x = "FP32'):
        floor_of().pipeline({"a": step(":plus_one", x="x")}, {"y": "a.y"}, inputs={"x": ""})


async def test_the_startup_report_says_what_asks_what() -> None:
    steps = {"a": step("m", x="x"), "b": step(":plus_one", x="a.y")}
    pipeline = floor_of().pipeline(steps, {"y": "b.y"})
    assert pipeline.fleet.describe() == f"in other models: a (m) -> b ({HERE}:plus_one)"
