"""Every step is in the table, describes its options, and says in plain words what is wrong with them."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from dlproxy.config import ConfigError
from dlproxy.config.table import knobs
from dlproxy.steps import STEPS
from tests.steps.running import DECLARED, class_of, made


@pytest.mark.parametrize("name", STEPS)
def test_a_step_says_what_it_takes_and_gives(name: str) -> None:
    step = class_of(name)
    assert step.__doc__
    assert step.__call__.__doc__
    assert all(DECLARED.fullmatch(declared) for declared in step.outputs.values())
    assert all(knob.description for knob in knobs(step.Options).values())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("softmax", {"temprature": 2}, "options.temprature: there is no such option; did you mean 'temperature'?"),
        ("argmax", {"k": 2}, "options.k: there is no such option; it takes none"),
        ("softmax", {"temperature": 0}, "options.temperature: expected `float` > 0"),
        ("top_k", {"k": "five"}, "options.k: expected `int`, got `str`"),
        ("top_k", {"labels_file": "nowhere.txt"}, "options.labels_file: nowhere.txt cannot be read"),
        ("text.pool", {"how": "men"}, "options.how: 'men' is not one of its values; did you mean 'mean'?"),
        ("text.tokenize", {}, "missing required field `file`"),
        ("text.tokenize", {"file": "nowhere.json"}, "options.file: nowhere.json cannot be used"),
        ("image.resize", {"size": 0}, "options.size: it is the length of both sides"),
        ("image.resize", {"size": [1, 2, 3]}, "options.size: expected `array` of length 2"),
        ("image.resize", {"size": 8, "only": "grow"}, "options.only: it has an effect only with fit = inside or outside"),
        ("image.resize", {"size": 8, "multiple_of": 32}, "options.multiple_of: the size leaves no side open"),
        ("image.normalise", {"std": [0.1, 0.0]}, "std is not 0"),
        ("image.normalise", {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5]}, "options.mean is for 3 channels, options.std for 2"),
        ("audio.log_mel", {"high": 9000}, "options.high: it is above low, and at most half the rate, 8000.0 Hz"),
        ("audio.log_mel", {"window": 512}, "options.window: at most n_fft, 400"),
        ("combine.weighted", {"weights": {}}, "give one for each input"),
        ("combine.vote", {"weights": {"a": -1.0}}, "none may be below 0 or infinite"),
        ("combine.confidence", {}, "missing required field `threshold`"),
    ],
)
def test_what_is_wrong_is_said(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(name, **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("package", "module"),
    [("PIL", "dlproxy.steps.image"), ("soundfile", "dlproxy.steps.sound"), ("tokenizers", "dlproxy.steps.tokens")],
)
def test_a_package_that_is_not_there(package: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'dlproxy\[steps\]'"):
        import_module(module)


def test_a_file_that_is_no_stacking_head(tmp_path: Path) -> None:
    (tmp_path / "head.npz").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(ConfigError, match="cannot be read as a stacking head"):
        made("combine.stack", file=str(tmp_path / "head.npz"))
