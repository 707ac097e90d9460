"""What is kept of a tuning, and when it may go on from there."""

from pathlib import Path

import pytest

from dlproxy.lab.tune.search.problem import Outcome, Point, TuneError
from dlproxy.lab.tune.search.state import Calibrated, Lived, Simulated, State
from tests.lab.tune.search.fixtures import ONE, TWO, line

WHAT = {"model": "m.onnx", "objective": "0.02 s"}
POINT, OUTCOME = Point(ONE, 8, 0.001), Outcome(100.0, 0.5, 1e6)


def _filled(path: Path) -> State:
    state = State(path, WHAT)
    state.keep(Calibrated(ONE, line()))
    state.keep(Calibrated(TWO, None, "it does not start"))
    state.keep(Simulated(POINT, OUTCOME))
    state.keep(Lived(POINT, 100.0, 4.0, 1, OUTCOME, 1 << 20, OUTCOME, line()))
    return state


def test_everything_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "state"
    before, after = _filled(path), State(path, WHAT, resume=True)
    assert after.calibrated == before.calibrated
    assert after.simulated == before.simulated == {POINT: OUTCOME}
    assert after.lived == before.lived
    assert after.live(POINT, 100.0, 2.5, 1) == before.lived[0]
    assert after.live(POINT, 100.0, 8.0, 1) is None
    assert after.live(POINT, 100.0, 2.5, 2) is None


def test_a_line_that_was_cut_off_is_left_out_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "state"
    _filled(path)
    path.write_bytes(path.read_bytes()[:-30])
    state = State(path, WHAT, resume=True)
    assert state.lived == []
    state.keep(Simulated(Point(TWO, 1), OUTCOME))
    assert len(State(path, WHAT, resume=True).simulated) == 2


def test_without_resume_it_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "state"
    _filled(path)
    assert State(path, WHAT).simulated == {}
    assert State(path, WHAT, resume=True).calibrated == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "nothing to resume"), (b"", "can be resumed"), (b'{"type":"simulated"}\n', "can be resumed")],
)
def test_what_is_no_state_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "state"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TuneError, match=said):
        State(path, WHAT, resume=True)


def test_of_another_tuning_says_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "state"
    _filled(path)
    with pytest.raises(TuneError, match=r"its objective is 0\.02 s, not 0\.05 s"):
        State(path, {**WHAT, "objective": "0.05 s"}, resume=True)


def test_done_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    _filled(path).forget()
    assert not path.exists()
    State(None, WHAT).forget()
