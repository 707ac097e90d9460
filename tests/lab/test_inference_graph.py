"""InferenceGraphs of KServe: pipelines that do the same, and what has no counterpart, named."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from dlproxy.config import ConfigError, load
from dlproxy.lab.gjson import case_of
from dlproxy.lab.inference_graph import Tensors, as_pipelines, toml_of

MODELS = {
    "animal": Tensors({"image": "FP32[-1,3,8,8]"}, {"label": "BYTES[-1]"}),
    "breed": Tensors({"image": "FP32[-1,3,8,8]"}, {"label": "BYTES[-1]"}),
    "colour": Tensors({"image": "FP32[-1,3,8,8]"}, {"hue": "FP32[-1]", "name": "BYTES[-1]"}),
    "words": Tensors({"text": "BYTES[-1]"}, {"vector": "FP32[-1,4]"}),
    "two": Tensors({"a": "FP32[-1]", "b": "FP32[-1]"}, {"label": "BYTES[-1]"}),
    "odd": Tensors({"image": "UINT8[-1]"}, {"label": "BYTES[-1]"}),
}


def graph(**nodes: Any) -> dict[str, Any]:
    """`nodes`: their kind and steps."""
    made = {name: {"routerType": kind, "steps": steps} for name, (kind, *steps) in nodes.items()}
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "InferenceGraph",
        "metadata": {"name": "zoo"},
        "spec": {"nodes": made},
    }


def asks(service: str, **fields: Any) -> dict[str, Any]:
    return {"serviceName": service, "dependency": "Hard", **fields}


def imported(document: dict[str, Any], folder: Path) -> tuple[dict[str, Any], str]:
    """The pipelines' tables, which dlproxy reads, and all of the text."""
    text = "\n".join(toml_of(as_pipelines(document, MODELS.__getitem__)))
    (folder / "dlproxy.toml").write_text(text)
    load(folder / "dlproxy.toml")
    return tomllib.loads(text).get("pipelines", {}), text


def test_a_sequence_passes_requests_and_responses_on(tmp_path: Path) -> None:
    root = ["Sequence", asks("animal", name="first"), asks("words", data="$response")]
    pipelines, text = imported(graph(root=root), tmp_path)
    assert "#" not in text
    assert pipelines == {
        "zoo": {
            "inputs": {"image": "FP32[-1,3,8,8]"},
            "outputs": {"vector": "words.vector"},
            "steps": {
                "first": {"model": "animal", "inputs": {"image": "image"}},
                "words": {"model": "words", "inputs": {"text": "first.label"}},
            },
        }
    }


def test_a_sequence_ends_where_a_condition_does_not_hold(tmp_path: Path) -> None:
    condition = '[@this].#(predictions.0=="dog")'
    steps = [asks("animal"), asks("breed", condition=condition)]
    pipelines, _ = imported(graph(root=["Sequence", *steps]), tmp_path)
    assert pipelines["zoo"]["outputs"] == {"label": "breed.label | animal.label"}
    assert pipelines["zoo"]["steps"]["breed"]["when"] == "if_breed.met"
    assert pipelines["zoo"]["steps"]["if_breed"] == {
        "call": "choose",
        "inputs": {"label": "animal.label"},
        "outputs": {"met": "BOOL[1]"},
        "options": {"cases": {"met": {"input": "label", "at": [0], "test": "==", "value": "dog"}}},
    }
    pipelines, _ = imported(graph(root=["Sequence", *steps, asks("animal", name="again")]), tmp_path)
    assert list(pipelines["zoo"]["steps"]) == ["animal", "if_breed", "breed", "again"]
    assert pipelines["zoo"]["steps"]["again"]["when"] == "if_breed.met", "what follows is not run either"
    assert pipelines["zoo"]["outputs"] == {"label": "again.label | breed.label | animal.label"}


def test_what_nobody_hears_of_is_left_out(tmp_path: Path) -> None:
    steps = [asks("animal"), asks("words", data="$response"), asks("animal", name="if_words"), asks("words", data="$response")]
    pipelines, text = imported(graph(root=["Sequence", *steps]), tmp_path)
    assert list(pipelines["zoo"]["steps"]) == ["if_words", "words_2"]
    assert text.count("is left out: nothing takes its response") == 2
    steps[3]["condition"] = "[@this].#(predictions.0==cat)"
    with pytest.raises(ConfigError, match="the answer has label in place of vector"):
        imported(graph(root=["Sequence", *steps]), tmp_path)
    steps = [asks("animal"), asks("breed", condition=steps[3]["condition"]), asks("animal", name="if_breed")]
    pipelines, _ = imported(graph(root=["Sequence", *steps]), tmp_path)
    assert list(pipelines["zoo"]["steps"]) == ["animal", "if_breed_2", "breed", "if_breed"]


def test_a_switch_takes_the_first_that_holds(tmp_path: Path) -> None:
    root = [
        "Switch",
        asks("animal", condition="[@this].#(instances.0.0.1.2 > 0.5)"),
        {"nodeName": "rest", "condition": "[@this].#(inputs.0.data.9==1)"},
    ]
    document = graph(root=root, rest=["Sequence", asks("animal"), asks("breed", data="$request")])
    document["spec"]["timeout"] = 60
    pipelines, text = imported(document, tmp_path)
    assert list(pipelines) == ["zoo-rest", "zoo"], "what is asked comes first"
    assert text.splitlines()[:2] == [
        "# timeout has no effect here",
        "# node 'rest', step 'animal' is left out: nothing takes its response",
    ]
    steps = pipelines["zoo"]["steps"]
    assert steps["choose"]["options"]["cases"] == {
        "animal": {"input": "image", "at": [0, 0, 1, 2], "test": ">", "value": 0.5},
        "rest": {"input": "image", "at": [0, 0, 1, 1], "test": "==", "value": 1.0},
    }
    assert (steps["rest"]["model"], steps["rest"]["when"]) == ("zoo-rest", "choose.rest")
    assert pipelines["zoo"]["outputs"] == {"label": "animal.label | rest.label"}


def test_an_ensemble_gives_what_all_its_steps_do(tmp_path: Path) -> None:
    pipelines, text = imported(graph(root=["Ensemble", asks("animal"), asks("colour"), asks("animal")]), tmp_path)
    assert "#" not in text
    assert pipelines["zoo"]["outputs"] == {
        "animal": "animal.label",
        "colour_hue": "colour.hue",
        "colour_name": "colour.name",
        "animal_2": "animal_2.label",
    }


def test_a_splitter_is_versions_of_one_model(tmp_path: Path) -> None:
    split = ["Splitter", asks("animal", weight=80), asks("breed", weight=20)]
    assert imported(graph(root=split), tmp_path)[0] == {}
    pipelines, text = imported(
        graph(root=["Sequence", {"nodeName": "ab"}, asks("words", data="$response")], ab=split), tmp_path
    )
    assert pipelines["zoo"]["steps"]["ab"]["model"] == "zoo-ab"
    assert "#   dlproxy models load zoo-ab PATH_OF_breed --version 2 --canary 20%" in text.splitlines()
    assert "a step that fails makes the request fail" in text


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"rot": ["Sequence", asks("animal")]}, "it has no node 'root'; it has rot"),
        ({"root": ["Loop", asks("animal")]}, "it is no InferenceGraph: invalid enum value 'Loop'"),
        ({"root": ["Sequence"]}, "node 'root' has no steps"),
        ({"root": ["Sequence", {"nodeName": "b"}], "b": ["Sequence", {"nodeName": "root"}]}, "a circle: root asks b asks root"),
        ({"root": ["Sequence", {"nodeName": "b"}]}, "there is no node 'b'; there are: root"),
        ({"root": ["Sequence", {"serviceUrl": "http://a/b"}]}, "names serviceUrl http://a/b: serve that as a model here"),
        ({"root": ["Sequence", {"name": "x"}]}, "a step names either a serviceName or a nodeName"),
        ({"root": ["Sequence", asks("animal", condition="x")]}, "the condition of the first step has no response to look at"),
        (
            {"root": ["Sequence", asks("colour"), asks("two", data="$response")]},
            "it takes a, b of the response before, which has",
        ),
        (
            {"root": ["Sequence", asks("animal"), asks("colour", condition='[@this].#(predictions.0=="dog")')]},
            "where its condition does not hold, the answer has label in place of hue, name",
        ),
        (
            {"root": ["Ensemble", asks("animal"), asks("odd")]},
            r"take the input 'image' of the request as FP32.* and UINT8\[-1\]",
        ),
        ({"root": ["Switch", asks("animal")]}, "step 'animal': it has no condition, and so is never taken"),
        ({"root": ["Splitter", asks("animal", weight=80)]}, "the weights of a Splitter sum to 100"),
        (
            {"root": ["Splitter", asks("animal", weight=50), asks("words", weight=50)]},
            "words takes or gives others than animal",
        ),
    ],
)
def test_what_has_no_counterpart_is_named(nodes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_pipelines(graph(**nodes), MODELS.__getitem__)


ONE = {"label": "BYTES[-1]"}
TWO = {"hue": "FP32[-1,3]", "label": "BYTES[-1]"}


@pytest.mark.parametrize(
    ("condition", "specs", "case"),
    [
        ("[@this].#(predictions.0==dog)", ONE, ("label", [0], "==", "dog")),
        ("[@this].#( predictions.2 != true )", ONE, ("label", [2], "!=", True)),
        ('[@this].#(predictions.0.label="1")', TWO, ("label", [0], "==", "1")),
        ("[@this].#(predictions.0.hue.2<=-1.5)", TWO, ("hue", [0, 2], "<=", -1.5)),
        ("[@this].#(outputs.0.data.5>=2)", TWO, ("hue", [1, 2], ">=", 2.0)),
        ("[@this].#(outputs.1.data.5==x)", TWO, ("label", [5], "==", "x")),
    ],
)
def test_conditions_on_one_element(condition: str, specs: dict[str, str], case: tuple[Any, ...]) -> None:
    found = case_of(condition, specs, "response", "here")
    assert tuple(found[name] for name in ("input", "at", "test", "value")) == case


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("predictions.0", r"here: the condition 'predictions.0' compares no element of a tensor"),
        ("[@this].#(predictions.0%d*)", "compares no element"),
        ("[@this].#(predictions.0==1)#", "compares no element"),
        ('[@this].#(modelId=="1")', "it is about 'modelId' and not about an element of predictions or outputs"),
        ("[@this].#(predictions.0==1)", "does not say which of hue, label it is about"),
        ("[@this].#(predictions.0.hues.1==1)", "there is no 'hues'; did you mean 'hue'?"),
        ("[@this].#(predictions.0.hue==1)", r"'hue' is FP32\[-1,3\], so this is a list or nothing"),
        ("[@this].#(outputs.2.data.0==1)", "there is no outputs.2; there are hue, label"),
        ("[@this].#(instances.0==1)", "it is about 'instances'"),
    ],
)
def test_conditions_that_tensors_do_not_tell(condition: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        case_of(condition, TWO, "response", "here")


def test_an_element_whose_place_depends_on_sizes() -> None:
    with pytest.raises(ConfigError, match="which element of 'x' number 3 is depends on its sizes, -1, -1"):
        case_of("[@this].#(inputs.0.data.3==1)", {"x": "FP32[-1,-1]"}, "request", "here")
