"""A model's section as a file has it: read again, it is the same to the last digit."""

import tomllib
from pathlib import Path

import pytest

from dlproxy.config import ModelConfig
from dlproxy.lab.tune.search.toml import model_table


@pytest.mark.parametrize("value", [0.000390625, 1e-7, 0.1 + 0.2, 12.34567])
def test_numbers_are_written_as_they_are(value: float, tmp_path: Path) -> None:
    text = model_table("m", ModelConfig(path="sleep:base=1ms", max_wait_s=value), tmp_path)
    assert tomllib.loads(text)["models"]["m"]["max_wait_s"] == value
