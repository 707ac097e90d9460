"""Random pipelines give what their steps give when they are run one after the other by hand, whatever takes how long."""

import os
from collections.abc import Mapping
from math import inf
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from looptime import new_event_loop

from dlproxy.config.pipelines import NOT
from dlproxy.message import FailureKind
from tests.serve.pipelines import code
from tests.serve.pipelines.rig import TWO, Answer, Floor, Pipeline, Stage, rows, step, total
from tests.serve.rig import Array, pass_time

GRAPHS = int(os.environ.get("DLPROXY_GRAPHS", "80"))
MISSING = "missing"
DOES = {  # what each takes and gives, and how it is run by hand
    "double": (("x",), "array", "array", lambda x: x * np.float32(2)),
    "total": (("a", "b"), "array", "array", lambda a, b: a + b),
    ":plus_one": (("x",), "array", "array", code.plus_one),
    ":split": (("x",), "array", "items", code.split),
    ":gather": (("items",), "items", "array", code.gather),
    ":is_large": (("x",), "array", "truth", lambda x: code.is_large(x)["yes"]),
    ":are_large": (("items",), "items", "truths", lambda items: code.are_large(items)["yes"]),
}
OUTPUT = {
    "double": "y",
    "total": "y",
    ":plus_one": "y",
    ":split": "items",
    ":gather": "y",
    ":is_large": "yes",
    ":are_large": "yes",
}
RARE = (":split", ":gather", ":are_large", "double")
EACH = ("double", "total", ":plus_one")
Graph = dict[str, dict[str, Any]]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graph, dict[str, str]]:
    """Steps, all of which somebody takes something from, and outputs."""
    known = {"array": ["x"], "items": ["i.items"], "truth": ["w.yes"], "truths": ["t.yes"]}
    steps: Graph = {"i": step(":split", x="x"), "w": step(":is_large", x="x"), "t": step(":are_large", items="i.items")}
    does = {"i": "items", "w": "truth", "t": "truths"}
    both: dict[str, str] = {}  # branches of one condition
    for number in range(draw(st.integers(1, 9))):
        able = [what for what, (_, takes, _, _) in DOES.items() if known[takes]]
        what = draw(st.sampled_from([*able, *[one for one in able if one in RARE] * 3]))
        names, takes, gives, _ = DOES[what]
        each = what in EACH and draw(st.booleans())
        if each:
            takes, gives = draw(st.sampled_from(["array", *(["items"] if known["items"] else [])])), "items"
        inputs = {name: " | ".join(draw(st.lists(st.sampled_from(known[takes]), min_size=1, max_size=3))) for name in names}
        conditions = [*known["truth"], *(known["truths"] if each else [])]
        when = draw(st.sampled_from([*conditions, *(NOT + one for one in conditions)] or [""])) if draw(st.booleans()) else ""
        name = f"s{number}"
        steps[name] = step(what, each=each, when=when, **inputs)
        does[name] = gives
        known[gives].append(f"{name}.{OUTPUT[what]}")
        if when and gives in ("array", "items") and draw(st.booleans()):  # and the other branch
            other = when.removeprefix(NOT) if when.startswith(NOT) else NOT + when
            some = known[takes if each else "array"]  # by itself it adds to no list
            steps[f"{name}n"] = step(":plus_one", each=each, when=other, x=draw(st.sampled_from(some)))
            does[f"{name}n"] = gives
            known[gives] += [f"{name}.{OUTPUT[what]} | {name}n.y"] * 3
            both[name] = f"{name}n"
    while True:
        taken = " ".join(
            [*(source for one in steps.values() for source in one["inputs"].values()), *(one["when"] for one in steps.values())]
        )
        unused = [name for name in steps if f"{name}." not in taken]
        useless = [name for name in unused if name in "iwt" or does[name].startswith("truth")]
        if not useless:
            break
        for name in useless:
            del steps[name]
    outputs = {name: f"{name}.{_output(steps[name])} | {other}.y" for name, other in both.items()}
    for name in unused:
        if name not in (*both, *both.values()):
            outputs[name] = f"{name}.{_output(steps[name])}" + (" | x" * (does[name] == "array" and draw(st.booleans())))
    return steps, outputs


def _what(one: dict[str, Any]) -> str:
    name: str = one.get("model") or one["call"].removeprefix(code.__name__)
    return name


def _output(one: dict[str, Any]) -> str:
    return OUTPUT[_what(one)]


def by_hand(steps: Graph, outputs: Mapping[str, str], x: Array) -> dict[str, Any]:
    """What each output is; MISSING for what there is not."""
    values: dict[str, Any] = {"x": x}
    for name, one in steps.items():
        values[f"{name}.{_output(one)}"] = _done(one, DOES[_what(one)][3], values)
    found = {name: _first(text, values) for name, text in outputs.items()}
    return {
        name: MISSING
        if value is MISSING or (isinstance(value, list) and any(one is None for one in value))
        else np.stack(value)
        if isinstance(value, list)
        else value
        for name, value in found.items()
    }


def _done(one: dict[str, Any], function: Any, values: dict[str, Any]) -> Any:
    taken = {name: _first(text, values) for name, text in one["inputs"].items()}
    truth = values[one["when"].removeprefix(NOT)] if one["when"] else True
    if truth is MISSING or any(value is MISSING for value in taken.values()):
        return MISSING
    wants = not one["when"].startswith(NOT)
    if not one["each"]:
        return function(**taken) if bool(truth) is wants or not one["when"] else MISSING
    if not isinstance(truth, list) and one["when"] and bool(truth) is not wants:
        return MISSING
    found = []
    for number, _ in enumerate(next(iter(taken.values()))):
        items = {name: value[number] for name, value in taken.items()}
        runs = not isinstance(truth, list) or bool(truth[number]) is wants
        lacks = any(item is None for item in items.values())
        found.append(function(**items) if runs and not lacks else None)
    return found


def _first(text: str, values: dict[str, Any]) -> Any:
    """Item by item where there are items."""
    found = [value for source in text.split(" | ") if (value := values[source]) is not MISSING]
    if not found:
        return MISSING
    if not isinstance(found[0], list):
        return found[0]
    lists = [value for value in found if isinstance(value, list)]
    return [next((item for item in items if item is not None), None) for items in zip(*lists, strict=True)]


async def compare(graph: tuple[Graph, dict[str, str]], xs: list[Array], service_s: tuple[float, float], work_s: float) -> None:
    steps, outputs = graph
    floor = Floor(work_s=work_s)
    floor.model("double", service_s=service_s[0])
    floor.model("total", total, signature=TWO, service_s=service_s[1], instances=2)
    pipeline = floor.pipeline(steps, outputs)
    asked = [(x, number, pipeline.send({"x": x}, outputs=(number,))) for x in xs for number in range(len(outputs))]
    for x, number, answer in asked:
        name, expected = list(outputs)[number], by_hand(steps, outputs, x)[list(outputs)[number]]
        await answer.wait()
        if expected is MISSING:
            assert answer.kind is FailureKind.MODEL_FAILED, name
            assert "skipped" in answer.why
        else:
            assert np.array_equal(answer.outputs[name], expected), name
    await floor.rest()
    _check_counts(pipeline, len(asked))


def _check_counts(pipeline: Pipeline, requests: int) -> None:
    """No step ran twice for a request."""
    for counts in pipeline.fleet.counts.values():
        assert counts.requests + counts.skipped + counts.failures <= requests


Event = tuple[float, str, int]
EVENTS = st.tuples(
    st.integers(0, 60).map(lambda ms: ms / 1e3),
    st.sampled_from(["leave", "leave", "fail", "die", "go", "come"]),
    st.integers(0, 9),
)


async def disturb(graph: tuple[Graph, dict[str, str]], xs: list[Array], events: list[Event], timeouts: list[float]) -> None:
    """Every request is answered once: as by hand, or with a failure for which there is a reason."""
    steps, outputs = graph
    floor = Floor(work_s=0.002)
    models = [floor.model("double"), floor.model("total", total, signature=TWO, service_s=0.005, instances=2)]
    pipeline = floor.pipeline(steps, outputs)
    asked = []
    for number, x in enumerate(xs):
        timeout_s = timeouts[number % len(timeouts)]
        asked.append((x, pipeline.send({"x": x}, timeout_s=timeout_s, promised=number % 2 == 0)))
    for at, what, which in sorted(events):
        await pass_time(max(at - floor.now(), 0.0))
        happens(floor, pipeline, what, models[which % 2], asked[which % len(asked)][1])
    for stage in models:
        stage.revive()
        floor.catalog.add(stage.served)
    for x, answer in asked:
        await answer.wait()
        expected = by_hand(steps, outputs, x)
        if answer.response is not None:
            for name, value in answer.outputs.items():
                assert np.array_equal(value, expected[name]), name
        elif not events and timeouts == [inf]:
            assert MISSING in [value if isinstance(value, str) else "" for value in expected.values()]
    await floor.rest()
    again = await pipeline.send({"x": xs[0]}).wait()
    assert (again.response is None) == any(isinstance(value, str) for value in by_hand(steps, outputs, xs[0]).values())
    await floor.rest()


def happens(floor: Floor, pipeline: Pipeline, what: str, stage: Stage, answer: Answer) -> None:
    served = [model.name for model in floor.catalog]
    if what == "leave":
        pipeline.service.cancel(answer.request)
        assert answer.answered
    elif what == "fail":
        stage.fakes[0].fail_next("it failed")
    elif what == "die":
        stage.driver.lose_instance(stage.fakes[0].name, "it died")
    elif what == "go" and stage.served.name in served:
        floor.catalog.remove(stage.served.name, "1")
    elif what == "come" and stage.served.name not in served:
        floor.catalog.add(stage.served)


@given(
    graphs().filter(lambda graph: bool(graph[1])),
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(EVENTS, max_size=6),
    st.lists(st.sampled_from([inf, inf, 0.004, 0.012, 0.025, 0.050]), min_size=1, max_size=3),
)
@settings(max_examples=GRAPHS // 2)
def test_whatever_happens_every_request_is_answered_once_and_nothing_is_left(
    graph: tuple[Graph, dict[str, str]], values: list[list[int]], events: list[Event], timeouts: list[float]
) -> None:
    loop = new_event_loop()
    try:
        loop.run_until_complete(disturb(graph, [rows(*one) for one in values], events, timeouts))
    finally:
        loop.close()


@given(
    graphs().filter(lambda graph: bool(graph[1])),
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    st.tuples(st.sampled_from([0.001, 0.010]), st.sampled_from([0.002, 0.005])),
    st.sampled_from([0.0, 0.001, 0.020]),
)
@settings(max_examples=GRAPHS)
def test_a_pipeline_gives_what_its_steps_give_by_hand(
    graph: tuple[Graph, dict[str, str]], values: list[list[int]], service_s: tuple[float, float], work_s: float
) -> None:
    loop = new_event_loop()
    try:
        loop.run_until_complete(compare(graph, [rows(*one) for one in values], service_s, work_s))
    finally:
        loop.close()
