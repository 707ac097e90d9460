"""What workers print becomes lines for the log, few and short; messages survive however a stream cuts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import DecodeError

from dlproxy.instance.process.messages import Done, Frames, NotLoaded, Report, frame
from dlproxy.instance.process.output import BURST_LINES, FINAL_LINES, LAST_LINES, LINES_PER_S, MAX_LINE_BYTES, WHY, OutputLines

BURST = int(BURST_LINES)


def test_lines_are_put_together_again() -> None:
    lines = OutputLines()
    assert lines.feed(b"one\ntw", 0.0) == ["one"]
    assert lines.feed(b"o\n\nthree", 0.0) == ["two"]
    assert lines.feed(b"", 0.0) == ["three"], "what is unfinished at the end counts"
    assert list(lines.last) == ["one", "two", "three"]


@given(st.text(st.sampled_from("ab\n"), max_size=40), st.integers(1, 5))
def test_it_does_not_matter_how_the_bytes_are_cut(text: str, size: int) -> None:
    lines, got = OutputLines(), []
    for start in range(0, len(text), size):
        got += lines.feed(text[start : start + size].encode(), 0.0)
    got += lines.feed(b"", 0.0)
    assert got == [line for line in text.split("\n") if line]


def test_a_long_line_is_cut_and_its_rest_skipped() -> None:
    lines = OutputLines()
    assert lines.feed(b"x" * (MAX_LINE_BYTES + 1), 0.0) == ["x" * MAX_LINE_BYTES + " …"]
    assert lines.feed(b"y" * 10 * MAX_LINE_BYTES, 0.0) == []
    assert lines.feed(b"rest\nnext\n", 0.0) == ["next"]


def test_bytes_that_are_no_text_are_shown_somehow() -> None:
    assert OutputLines().feed(b"a\xffb\r\n", 0.0) == ["a�b"]


def _numbered(start: int, end: int) -> list[str]:
    return [str(number) for number in range(start, end)]


def _printed(start: int, end: int) -> bytes:
    return "".join(f"{number}\n" for number in range(start, end)).encode()


def test_too_many_lines_are_left_out_and_counted() -> None:
    lines = OutputLines()
    assert lines.feed(_printed(0, 10 * BURST), 0.0) == [*_numbered(0, BURST), WHY]
    assert list(lines.last) == _numbered(10 * BURST - LAST_LINES, 10 * BURST)
    assert lines.feed(b"more\n", 0.001) == []
    assert lines.feed(b"again\n", 1.0 / LINES_PER_S + 0.002) == [f"({9 * BURST + 1} lines left out)", "again"]
    assert lines.feed(b"one\n", 1.0 / LINES_PER_S + 0.003) == [], "why is said once"
    assert lines.feed(b"two\n", 3.0 / LINES_PER_S) == ["(1 line left out)", "two"]


@pytest.mark.parametrize("left_out", [0, 1, FINAL_LINES, FINAL_LINES + 1, 50 * FINAL_LINES])
@pytest.mark.parametrize("ending", [b"", b"unfinished"])
def test_the_last_lines_of_a_life_are_logged_whatever_came_before(left_out: int, ending: bytes) -> None:
    lines, total = OutputLines(), BURST + left_out
    got = lines.feed(_printed(0, total) + ending, 0.0) + lines.feed(b"", 0.0)
    shown = _numbered(0, total) + [ending.decode()] * bool(ending)
    hidden = max(len(shown) - BURST - FINAL_LINES, 0)
    why = [WHY] if len(shown) > BURST else []
    note = [f"({hidden} line{'s' * (hidden > 1)} left out)"] if hidden else []
    if ending and not left_out:  # it was not known to be too much before it was known to be the end
        assert got == [*shown[:BURST], WHY, "unfinished"]
    else:
        assert got == [*shown[:BURST], *why, *note, *shown[BURST + hidden :]]


def test_a_traceback_that_ends_a_flood_is_logged_to_its_last_line() -> None:
    trace = ["Traceback (most recent call last):", *(f"  line {number}" for number in range(10)), "ValueError: so it ended"]
    lines = OutputLines()
    lines.feed(b"progress\n" * 10_000, 0.0)
    lines.feed("\n".join(trace).encode() + b"\n", 0.5)
    assert lines.feed(b"", 0.6)[-len(trace) :] == trace
    assert lines.feed(b"", 0.6) == [], "the end may be said twice"
    assert lines.last[-1] == trace[-1]


def test_a_flood_of_a_minute_is_a_page() -> None:
    lines, got = OutputLines(), 0
    for tick in range(600):
        got += len(lines.feed(b"batch done\n" * 100, tick * 0.1))
    assert got <= BURST + 1 + 2 * 60 * LINES_PER_S


def test_blank_lines_cost_nothing() -> None:
    assert OutputLines().feed(b"\n  \n" * 10 * BURST + b"text\n", 0.0) == ["text"]


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5), st.integers(1, 7))
def test_messages_survive_any_cut(texts: list[str], size: int) -> None:
    sent = [NotLoaded(text) for text in texts]
    data = b"".join(map(frame, sent))
    frames, got = Frames(Report), []
    for start in range(0, len(data), size):
        got += frames.feed(data[start : start + size])
    assert got == sent


def test_a_report_keeps_what_it_says() -> None:
    report = Done([((2, 3), 24), ((), 8)], 4096, 0.5, None)
    assert Frames(Report).feed(frame(report)) == [report]


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(DecodeError):
        Frames(Report).feed(b"\x03\0\0\0abc")
