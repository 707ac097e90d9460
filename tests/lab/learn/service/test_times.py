"""Times are read as they were written or recorded, and a file that is none says what is wrong with it."""

from pathlib import Path

import numpy as np
import pytest

from dlproxy.lab.learn.experiment import LearnError
from dlproxy.lab.learn.service.times import Times, made_up, times_of, write
from dlproxy.message import Ticket
from dlproxy.policy.events import Arrived, BatchDone, Dispatch, InstanceUp
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.telemetry.event_log import Header, Recorder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    times = made_up(seed=3, count=50)
    write(times, tmp_path / "times.csv")
    again = times_of(tmp_path / "times.csv")
    assert again.names == ("rows", "length", "share")
    np.testing.assert_allclose(again.features, times.features)
    np.testing.assert_allclose(again.seconds, times.seconds)


def test_columns_by_name_products_and_parts() -> None:
    times = Times(("rows", "length"), np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]), np.ones(4))
    assert times.column("length").tolist() == [10, 20, 30, 40]
    assert times.column("rows*length").tolist() == [10, 40, 90, 160]
    assert times.column("share").tolist() == [1, 1, 1, 1]
    assert times.part(0.25, 0.75).column("rows").tolist() == [2, 3]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rows,took\n1,2\n", "give a column 'seconds'"),
        ("seconds\n2\n", "others that it may depend on"),
        ("rows,seconds\n1,two\n", "could not convert"),
        ("rows,seconds\n1,0\n", "seconds above 0"),
        ("rows,seconds\nnan,1\n", "must be finite"),
        ("rows,seconds\n1,2\n3\n", "inhomogeneous"),
        ("", "times.csv"),
    ],
)
def test_a_file_without_times_says_what_is_wrong(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "times.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(LearnError, match=says):
        times_of(path)


def test_a_recording_gives_rows_length_and_seconds_of_each_batch_that_was_answered(tmp_path: Path) -> None:
    knobs = LaneKnobs(max_batch=4)
    lane = Lane(knobs, [(1, 0.01), (4, 0.02)])
    recorder = Recorder(tmp_path / "m.dlog", Header("m", knobs, [(1, 0.01), (4, 0.02)]), lane)
    recorder.on(InstanceUp("i"), 0.0)
    expected = []
    for number, (rows, length, error) in enumerate([(1, 8, None), (2, 16, None), (3, 4, "boom"), (2, 32, None)], start=1):
        now = float(number)
        ticket = Ticket(number, now, rows=rows, length=length, shape_key=(length,))
        (batch,) = [one for one in recorder.on(Arrived([ticket]), now) if isinstance(one, Dispatch)]
        recorder.on(BatchDone(batch.batch_id, 0.01 * number, error), now + 0.5)
        if error is None:
            expected.append((rows, length, 0.01 * number))
    recorder.close()
    times = times_of(tmp_path / "m.dlog")
    assert times.names == ("rows", "length")
    assert [(*row, took) for row, took in zip(times.features.tolist(), times.seconds.tolist(), strict=True)] == expected
