"""The text of a model's error: its own steps, no more than a log takes, and nothing that a terminal obeys."""

import pytest

from dlproxy.instance.tracebacks import MOST_CHARS, as_text, origin_of, printable


def _caught(depth: int, text: str) -> Exception:
    def down(left: int) -> None:
        if left:
            down(left - 1)
        raise ValueError(text)

    try:
        down(depth)
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize("text", ["short", "x" * 10 * MOST_CHARS, "many\n" * MOST_CHARS])
def test_a_long_one_keeps_its_beginning_and_its_end(text: str) -> None:
    said = as_text(origin_of(_caught(3, f"first {text} last")))
    assert len(said) < MOST_CHARS + 100
    assert said.startswith("Traceback (most recent call last):")
    assert said.endswith(" last")
    assert ("characters left out" in said) == (len(text) > MOST_CHARS)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 模型", "plain ü 模型"),
        ("a\tb\r", "a\\tb\\r"),
        ("\x1b[31m\x07", "\\x1b[31m\\x07"),
        ("\ud800\u2028", "\\ud800\\u2028"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert as_text(origin_of(_caught(0, text))).endswith(f"ValueError: {shown}")
    shown.encode()


def test_an_error_that_was_never_raised_and_one_that_cannot_be_told() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert as_text(origin_of(ValueError("as it is"))) == "ValueError: as it is"
    assert "MuteError" in as_text(origin_of(MuteError()))
