"""Files that describe experiments: ours, users', and what is said of mistakes in them."""

from pathlib import Path

import pytest
from msgspec import Struct

from dlproxy.lab.learn.experiment import KINDS, LearnError, find, ours, read, settings
from tests.lab.learn.fakes import WRITTEN, install, written


class Sizes(Struct, frozen=True, forbid_unknown_fields=True):
    size: int


def test_ours_are_found_by_name_say_what_they_are_and_have_seeds_enough_for_an_interval() -> None:
    found = list(ours())
    assert {"digits-cnn", "cancer-mlp", "diabetes-mlp"} <= {one.name for one in found}
    for one in found:
        assert find(one.name) == one
        assert one.kind in KINDS
        assert one.about
        assert one.seeds >= 5


def test_a_users_file_is_found_by_its_path_and_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    found = find(str(written(tmp_path)))
    assert (found.name, found.kind, found.seeds) == ("mine", "fake", 3)
    assert settings(found, Sizes) == Sizes(size=4)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('kind = "fake"', 'kind = "fakes"', "there is no kind 'fakes'; there are fake"),
        ('kind = "fake"', "", "missing required field `kind`"),
        ("seeds = 3", "seeds = 0", "seeds must be 1 or more"),
        ("seeds = 3", 'seeds = "3"', "Expected `int`, got `str` - at `$.seeds`"),
        ("seeds = 3", "seed = 3", "unknown field `seed`"),
        ("seeds = 3", "seeds = ", "line 3"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(
    before: str, after: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    assert before in WRITTEN
    path = written(tmp_path, WRITTEN.replace(before, after))
    with pytest.raises(LearnError) as raised:
        read(path)
    assert str(path) in str(raised.value)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sise = 4", "mine: settings: Object contains unknown field `sise`"),
        ("size = 4.5", "mine: settings: Expected `int`, got `float` - at `$.size`"),
    ],
)
def test_a_mistake_in_the_settings_is_named(line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    found = read(written(tmp_path, WRITTEN.replace("size = 4", line)))
    with pytest.raises(LearnError) as raised:
        settings(found, Sizes)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits-cn", "there is no experiment 'digits-cn'; did you mean digits-cnn?"),
        ("zzz", "there is no experiment 'zzz'; there are"),
        ("zzz", "digits-cnn, "),
        ("nowhere.toml", "nowhere.toml"),
    ],
)
def test_a_name_that_nothing_has_is_answered_with_what_there_is(name: str, message: str) -> None:
    with pytest.raises(LearnError) as raised:
        find(name)
    assert message in str(raised.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(LearnError):
        read(path)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, needs=("msgspec", "no_such_package"))
    from dlproxy.lab.learn import experiment

    with pytest.raises(LearnError, match=r"this needs no_such_package: pip install 'dlproxy\[learn\]'"):
        experiment.KINDS["fake"].train()
