"""Configurations of steps: each is one that dlproxy takes, and differs from the one before in what the step says."""

from pathlib import Path

import pytest

from dlproxy.config import ModelConfig, load
from dlproxy.lab.casestudy.steps import (
    LIGHT,
    NAME,
    NAMES,
    WHOLE,
    Goods,
    Tables,
    as_toml,
    configuration,
    ladder,
    possible,
)
from tests.lab.casestudy import stand_ins


@pytest.fixture(scope="module")
def goods(tmp_path_factory: pytest.TempPathFactory) -> Goods:
    return stand_ins.goods(tmp_path_factory.mktemp("goods"))


def _tables(goods: Goods, *steps: str) -> Tables:
    return configuration(steps, goods, objective_ms=100.0)


def _served(tables: Tables, tmp_path: Path) -> dict[str, ModelConfig]:
    path = tmp_path / "dlproxy.toml"
    path.write_text(as_toml(tables), "utf-8")
    return dict(load(path).served())


@pytest.mark.parametrize(("side", "steps"), ladder(NAMES))
def test_every_side_is_a_configuration_that_dlproxy_takes(
    side: str, steps: frozenset[str], goods: Goods, tmp_path: Path
) -> None:
    served = _served(configuration(steps, goods, objective_ms=100.0, agent=tmp_path / "agent.onnx"), tmp_path)
    assert NAME in served
    assert all(step.model in ("", *served) for step in served[NAME].steps.values()), side


@pytest.mark.parametrize(
    ("step", "model", "knob", "before", "after"),
    [
        ("batching", "classifier", "max_batch", 1, 256),
        ("scheduling", "classifier", "discipline", "fcfs", "edf"),
        ("scheduling", NAME, "slo", "", "p99=100ms"),
        ("cache", NAME, "cache", "off", "on"),
        ("autoscaling", "classifier", "forecast", "off", "trend"),
        ("variants", "classifier", "variants", [], ["light"]),
    ],
)
def test_a_step_changes_what_it_says(
    step: str, model: str, knob: str, before: object, after: object, goods: Goods, tmp_path: Path
) -> None:
    assert getattr(_served(_tables(goods), tmp_path)[model], knob) == before
    assert getattr(_served(_tables(goods, step), tmp_path)[model], knob) == after


def test_the_light_model_is_the_compressed_one_until_that_is_the_classifier(goods: Goods) -> None:
    assert _tables(goods, "variants")["models.light"]["path"] == str(goods.compressed)
    both = _tables(goods, "variants", "compression")
    assert both["models.classifier"]["path"] == str(goods.compressed)
    assert both["models.light"]["path"] == str(goods.light)


def test_with_partners_a_pipeline_without_them_is_the_variant(goods: Goods, tmp_path: Path) -> None:
    served = _served(configuration(NAMES[:-1], goods, objective_ms=100.0), tmp_path)
    assert served[NAME].variants == [LIGHT]
    assert {step.model for step in served[LIGHT].steps.values()} == {"", "classifier"}
    assert {"partner-a", "partner-b"} < {step.model for step in served[NAME].steps.values()}


def test_words_are_an_input_of_the_classifier_that_takes_them(goods: Goods, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    both = Goods(classifier=goods.classifier, tokenizer=tmp_path / "tokenizer.json")
    whole = _served(configuration(possible(both, None), both, objective_ms=100.0), tmp_path)[NAME]
    assert whole.inputs == {"jpeg": "BYTES[1]", "text": "BYTES[1]"}
    assert whole.steps["classify"].inputs == {"image": "pixels.image", "words": "tokens.input_ids"}


def test_the_ladder_ends_with_everything() -> None:
    rungs = dict(ladder(NAMES))
    assert list(rungs.values())[-1] == frozenset(NAMES)
    assert len(rungs) == 2 * len(NAMES)
    assert WHOLE not in rungs


def test_a_step_for_which_there_is_no_model_is_left_out(goods: Goods, tmp_path: Path) -> None:
    assert possible(goods, tmp_path) == NAMES
    assert set(NAMES) - set(possible(goods, None)) == {"agent"}
    alone = Goods(classifier=goods.classifier)
    assert set(NAMES) - set(possible(alone, None)) == {"agent", "compression", "variants", "ensemble"}
    assert _served(configuration(possible(alone, None), alone, objective_ms=100.0), tmp_path)
