"""Learnt forecasts from ONNX files: taken by what they say of themselves, refused by name, and safe when they fail."""

import logging
from pathlib import Path

import pytest

from dlproxy import Model, Proxy
from dlproxy.config import ConfigError, ModelConfig, load
from dlproxy.config.effects import check
from dlproxy.fleet.forecasts import OnnxForecast, forecast_of
from dlproxy.instance.integrity import Trust
from dlproxy.instance.runtime import ModelError
from dlproxy.policy.forecast import Asked
from tests import models
from tests.fleet.forecast_models import SHORT, forecast

ASKED = Asked([1.0, 2.0, 3.0, 6.0], [0.0] * 4, [-1.0] * 3)


@pytest.mark.parametrize("knob", ["off", "trend", "daily"])
def test_the_other_values_of_the_knob_are_left_to_the_policy(knob: str) -> None:
    assert forecast_of("m", knob) == knob


def test_a_file_is_asked_as_it_says(tmp_path: Path) -> None:
    network = OnnxForecast(forecast(tmp_path / "f.onnx", times=2.0))
    assert network.form == SHORT
    assert network(ASKED) == [[6.0, 6.0], [6.0, 6.0]]


def test_each_lane_learns_by_itself(tmp_path: Path) -> None:
    make = forecast_of("m", forecast(tmp_path / "f.onnx"))
    assert callable(make)
    busy, calm = make(), make()
    for second in range(1, 31):
        busy.observe(8.0, float(second))
        calm.observe(1.0, float(second))
    assert (busy.load_at(40.0), calm.load_at(40.0)) == (8.0, 1.0)


@pytest.mark.parametrize(
    ("said", "output", "message"),
    [
        ("{", "rate", "forecast of this version: its property dlproxy.forecast cannot be read"),
        ('{"step_s": 5, "length": 4}', "rate", "missing required field"),
        ('{"step_s": 0.1, "length": 4, "horizons_s": [2], "quantiles": [0.9]}', "rate", "no forecast that can be asked"),
        ('{"step_s": 5, "length": 4, "horizons_s": [9, 2], "quantiles": [0.9]}', "rate", "no forecast that can be asked"),
        ('{"step_s": 5, "length": 4, "horizons_s": [90], "quantiles": [0.9], "season_s": 99}', "rate", "that can be asked"),
        (None, "load", "must take window and season and give rate"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, said: str | None, output: str, message: str) -> None:
    path = forecast(tmp_path / "f.onnx", said=said, output=output)
    with pytest.raises(ModelError, match=rf"^model m: forecast: .*f\.onnx .*{message}"):
        forecast_of("m", path)


def test_a_model_that_is_no_forecast_and_a_file_that_is_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"digits\.onnx is no forecast: it has no property dlproxy\.forecast"):
        forecast_of("m", str(models.DIGITS))
    with pytest.raises(ModelError, match=r"none\.onnx does not exist"):
        forecast_of("m", str(tmp_path / "none.onnx"))


def test_where_models_must_be_signed_forecasts_must_be_too(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="sign"):
        forecast_of("m", forecast(tmp_path / "f.onnx"), Trust(signers=(b"x" * 32,)))


def test_an_answer_that_takes_too_long_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make = forecast_of("ranker", forecast(tmp_path / "f.onnx", times=5.0), most_s=-1.0)
    assert callable(make)
    learnt = make()
    with caplog.at_level(logging.WARNING):
        for second in range(1, 61):
            learnt.observe(8.0, float(second))
            learnt.load_at(second + 10.0)
    assert learnt.load_at(70.0) == pytest.approx(8.0)
    (record,) = caplog.records
    assert "model ranker: the learnt forecast is not used where it is no good" in record.message
    assert "it took" in record.message


def test_what_the_knob_takes_is_said(tmp_path: Path) -> None:
    def model(value: str) -> ModelConfig:
        return ModelConfig(path="m.onnx", autoscale="in-flight", forecast=value)

    assert check(model("f.onnx")) == []
    with pytest.raises(ConfigError, match="forecast = 'dayly' is not understood; did you mean 'daily'"):
        check(model("dayly"))
    with pytest.raises(ConfigError, match=r"it takes off, trend, daily, or a file that ends in \.onnx"):
        check(model("f.pt"))
    (tmp_path / "c.toml").write_text("[models.m]\npath = 'm.onnx'\nautoscale = 'in-flight'\nforecast = 'f.onnx'\n")
    assert load(tmp_path / "c.toml").models["m"][0].forecast == str(tmp_path / "f.onnx")


async def test_a_model_is_not_served_without_the_forecast_that_it_names(tmp_path: Path) -> None:
    settings = {"run": "thread", "threads": 1, "autoscale": "in-flight", "max_instances": 1}
    with pytest.raises(Exception, match=r"none\.onnx does not exist"):
        async with Proxy([Model(models.DIGITS, forecast=str(tmp_path / "none.onnx"), **settings)]):
            raise AssertionError
    async with Proxy([Model(models.DIGITS, forecast=forecast(tmp_path / "f.onnx"), **settings)]) as proxy:
        assert proxy.models[0].autoscaler is not None
