"""README's figures: that they are those of the result pages in the repository, and that another figure is noticed."""

from pathlib import Path

import pytest

from benchmarks import readme


def test_every_source_is_shown_and_up_to_date() -> None:
    text = readme.README.read_text()
    assert [found[1] for found in readme.BLOCK.findall(text)] == list(readme.SOURCES)
    assert readme.updated(text) == text


@pytest.mark.parametrize("arguments", [["--check"], []])
def test_another_figure_is_noticed_and_written(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = readme.README.read_text()
    wrong = right.replace("8.3 times the best peer", "9.3 times the best peer")
    assert wrong != right
    copy = tmp_path / "README.md"
    copy.write_text(wrong)
    monkeypatch.setattr(readme, "README", copy)
    assert readme.main(arguments) == len(arguments)
    assert copy.read_text() == (wrong if arguments else right)
    assert ("python -m benchmarks.readme" in capsys.readouterr().err) == bool(arguments)
