"""When a call may be sent again: pure numbers."""

import pytest

from dlproxy.client.retries import FIRST_S, MOST_TRIES, Retries


def _retries(share: float = 100.0, draw: float = 1.0) -> Retries:
    made = Retries(share, lambda: draw)
    made.first(0.0)
    return made


def test_pauses_double_and_tries_end() -> None:
    retries = _retries()
    pauses = [retries.pause_s(tries, 0.0, 1e9, 0.0) for tries in range(1, MOST_TRIES)]
    assert pauses == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S, 8 * FIRST_S]
    assert retries.pause_s(MOST_TRIES, 0.0, 1e9, 0.0) is None


@pytest.mark.parametrize(("draw", "pause_s"), [(0.0, FIRST_S / 2), (0.5, FIRST_S * 0.75), (1.0, FIRST_S)])
def test_chance_shortens_a_pause_by_up_to_half(draw: float, pause_s: float) -> None:
    assert _retries(draw=draw).pause_s(1, 0.0, 1e9, 0.0) == pause_s


def test_what_the_server_asked_for_is_waited_for_at_least() -> None:
    assert _retries(draw=0.0).pause_s(1, 3.0, 1e9, 0.0) == 3.0 + FIRST_S / 2


def test_a_call_that_may_have_run_is_not_sent_again() -> None:
    assert _retries().pause_s(1, None, 1e9, 0.0) is None


def test_nothing_is_begun_that_the_deadline_would_cut() -> None:
    assert _retries().pause_s(1, 1.0, 1.0, 0.0) is None


def test_the_budget_is_a_share_of_first_tries_and_a_few() -> None:
    retries = Retries(0.1, lambda: 1.0)
    for _ in range(1000):
        retries.first(5.0)
    allowed = sum(retries.pause_s(1, 0.0, 9.0, 5.0) is not None for _ in range(1000))
    assert allowed == 100 + 30


def test_without_a_share_there_are_no_second_tries() -> None:
    assert _retries(share=0.0).pause_s(1, 0.0, 1e9, 0.0) is None
