"""The event log: a recorded session replays without a difference, a changed lane is noticed, damage is reported in words."""

from collections.abc import Callable
from math import inf
from pathlib import Path

import msgspec
import pytest

from dlproxy.message import Ticket
from dlproxy.policy.events import (
    Arrived,
    BatchDone,
    Cancelled,
    Closing,
    Command,
    Dispatch,
    Event,
    InstanceExpected,
    InstanceLost,
    InstanceUp,
    KnobsChanged,
    TimerFired,
)
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.telemetry.event_log import FORMAT, Header, LogError, Note, Recorder, Replay, read, replay

KNOBS = LaneKnobs(max_batch=4, max_queue_rows=6, slo_s=0.100)
PRIOR = [(1, 0.011), (2, 0.012), (4, 0.014)]


def ticket(number: int, now: float, left_s: float = inf, rows: int = 1, shape: tuple[int, ...] = ()) -> Ticket:
    return Ticket(number, now, now + left_s, rows, 0, "tenant", shape, b"\x00\xff", answer_by=now + left_s)


# One of everything that a lane is told, and everything that it answers
SESSION: list[tuple[float, Event]] = [
    (0.000, Arrived([ticket(1, 0.0)])),  # rejected: nothing is up
    (0.001, InstanceUp("a")),
    (0.002, InstanceUp("b", 2)),
    (0.003, Arrived([ticket(2, 0.003), ticket(3, 0.003), ticket(4, 0.003, rows=3, shape=(3, 224))])),
    (0.004, Arrived([ticket(5, 0.004, 0.050), ticket(6, 0.004), ticket(7, 0.004, 0.060), ticket(8, 0.004, rows=4)])),
    (0.005, Arrived([ticket(9, 0.005), ticket(10, 0.005, 0.030), ticket(11, 0.005, rows=4), ticket(12, 0.005, rows=4)])),
    (0.006, Cancelled(3)),
    (0.007, Cancelled(9)),
    (0.012, BatchDone(1, 0.009, "the model raised ValueError")),
    (0.020, BatchDone(2, 0.0161234567890123)),
    (0.021, InstanceLost("a", "exit status -9")),
    (0.022, KnobsChanged(LaneKnobs(max_batch=2, max_queue_rows=6, max_wait_s=0.001))),
    (0.030, BatchDone(3, 0.010)),
    (0.031, BatchDone(99, 0.010)),
    (0.070, TimerFired()),
    (0.080, BatchDone(4, 0.010)),
    (0.090, BatchDone(5, 0.010)),
    (0.095, InstanceExpected(2.095)),
    (0.100, InstanceLost("b", "exit status -9", crashed=True)),
    (0.200, Closing("the model is being unloaded")),
    (0.300, Arrived([ticket(13, 0.3)])),
    (0.400, InstanceExpected(-inf)),
]


def record(path: Path, header: Header | None = None, lane: Lane | None = None) -> list[list[Command]]:
    """Play SESSION to a lane through a Recorder; returns what it passed on."""
    recorder = Recorder(path, header or Header("digits", KNOBS, PRIOR), lane or Lane(KNOBS, PRIOR))
    answers = [recorder.on(event, now) for now, event in SESSION]
    recorder.close()
    return answers


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "logs" / "digits-1.dlog"  # the folder does not exist yet
    record(path)
    return path


def test_a_recorder_passes_on_what_the_lane_answers(tmp_path: Path) -> None:
    lane = Lane(KNOBS, PRIOR)
    expected = [msgspec.msgpack.encode(lane.on(event, now)) for now, event in SESSION]
    answers = record(tmp_path / "log")
    assert [msgspec.msgpack.encode(commands) for commands in answers] == expected
    assert {type(command).__name__ for commands in answers for command in commands} == {
        "Dispatch",
        "Complete",
        "Reject",
        "WakeAt",
    }, "the session is worth recording"


def test_a_replay_gives_the_recorded_commands(log: Path) -> None:
    assert replay(log) == Replay(len(SESSION), None)


def test_what_is_read_is_what_was_recorded(log: Path) -> None:
    header, entries = read(log)
    assert (header.model, header.knobs, header.prior) == ("digits", KNOBS, PRIOR)
    lane = Lane(KNOBS, PRIOR)
    for (at, event), entry in zip(SESSION, entries, strict=True):
        assert entry.at == at
        assert msgspec.msgpack.encode(entry.event) == msgspec.msgpack.encode(event)
        assert msgspec.msgpack.encode(entry.commands) == msgspec.msgpack.encode(lane.on(event, at))


def test_notes_stand_among_the_events_and_change_no_replay(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "log", Header("digits", KNOBS, PRIOR), Lane(KNOBS, PRIOR))
    note = Note("c", "failed_to_start", "out of memory")
    for now, event in SESSION:
        recorder.on(event, now)
        recorder.note(note, now)
    recorder.close()
    recorder.note(note, 1.0)
    _, entries = read(tmp_path / "log")
    kept = list(entries)
    assert [entry.at for entry in kept[1::2]] == [at for at, _ in SESSION]
    assert all(entry.event == note and not entry.commands for entry in kept[1::2])
    assert replay(tmp_path / "log") == Replay(2 * len(SESSION), None)
    changed = replay(tmp_path / "log", Renames)
    assert changed.first_difference is not None
    assert changed.first_difference.startswith("entry 7 (Arrived)"), "entries are counted as they stand in the log"


def test_entries_are_read_one_by_one_up_to_what_is_damaged(log: Path) -> None:
    log.write_bytes(log.read_bytes()[: ends(log)[3] + 7])
    _, entries = read(log)
    assert [next(entries).at for _ in range(3)] == [at for at, _ in SESSION[:3]]
    with pytest.raises(LogError, match="breaks off in the middle of entry 4"):
        next(entries)


def test_a_header_that_cannot_be_read_is_said_so_at_once(tmp_path: Path) -> None:
    (tmp_path / "text.dlog").write_text("dear diary")
    for path, message in (
        (tmp_path / "text.dlog", "within its header"),
        (tmp_path, "cannot be read"),
        (tmp_path / "no", "cannot be"),
    ):
        with pytest.raises(LogError, match=message):
            read(path)


def test_a_session_without_events_replays(tmp_path: Path) -> None:
    Recorder(tmp_path / "log", Header("digits", KNOBS, PRIOR), Lane(KNOBS, PRIOR)).close()
    assert replay(tmp_path / "log") == Replay(0, None)


def test_a_replay_makes_the_lane_as_it_was_recorded(log: Path) -> None:
    made: list[tuple[LaneKnobs, list[tuple[int, float]]]] = []

    def make_lane(knobs: LaneKnobs, prior: list[tuple[int, float]]) -> Lane:
        made.append((knobs, prior))
        return Lane(knobs, prior)

    assert replay(log, make_lane).first_difference is None
    assert made == [(KNOBS, PRIOR)]


class Renames(Lane):
    """Decides the same and gives another reason."""

    def on(self, event: Event, now: float) -> list[Command]:
        commands = super().on(event, now)
        for command in commands:
            if isinstance(command, Dispatch):
                command.reason = "because"
        return commands


@pytest.mark.parametrize(
    ("make_lane", "entry"),
    [
        pytest.param(lambda knobs, prior: Lane(msgspec.structs.replace(knobs, max_batch=1), prior), 5, id="smaller batches"),
        pytest.param(lambda knobs, prior: Lane(msgspec.structs.replace(knobs, max_queue_rows=5), prior), 5, id="smaller queue"),
        pytest.param(lambda knobs, prior: Lane(knobs, [(1, 1.0), (2, 2.0)]), 5, id="another calibration"),
        pytest.param(Renames, 4, id="another reason"),
    ],
)
def test_a_changed_lane_is_noticed_at_the_first_entry_that_differs(
    log: Path, make_lane: Callable[[LaneKnobs, list[tuple[int, float]]], Lane], entry: int
) -> None:
    outcome = replay(log, make_lane)
    assert outcome.first_difference is not None
    assert outcome.entries == entry
    assert outcome.first_difference.startswith(f"entry {entry} ({type(SESSION[entry - 1][1]).__name__}): live ")


def test_a_wrong_header_is_noticed_too(tmp_path: Path) -> None:
    record(tmp_path / "log", header=Header("digits", msgspec.structs.replace(KNOBS, max_batch=1), PRIOR))
    assert replay(tmp_path / "log").first_difference is not None


def ends(log: Path) -> list[int]:
    """Where the header and each entry end, in bytes from the start."""
    data, ends, at = log.read_bytes(), [], 0
    while at < len(data):
        at += 4 + int.from_bytes(data[at : at + 4], "little")
        ends.append(at)
    return ends


def test_a_log_cut_between_entries_replays_as_far_as_it_goes(log: Path) -> None:
    data = log.read_bytes()
    for entries, end in enumerate(ends(log)):
        log.write_bytes(data[:end])
        assert replay(log) == Replay(entries, None)


def test_a_log_cut_anywhere_else_says_in_which_entry(log: Path) -> None:
    data, bounds = log.read_bytes(), ends(log)
    for length in range(1, len(data), 11):
        if length not in bounds:
            log.write_bytes(data[:length])
            entry = sum(end < length for end in bounds)
            where = f"in the middle of entry {entry}" if entry else "within its header, if it is a dlproxy event log"
            with pytest.raises(LogError, match=f"breaks off {where}$"):
                replay(log)


def framed(*records: bytes) -> bytes:
    return b"".join(len(record).to_bytes(4, "little") + record for record in records)


HEADER = msgspec.msgpack.encode(Header("digits", KNOBS, PRIOR))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "is not a dlproxy event log: it is empty", id="empty"),
        pytest.param(b"\x00", "breaks off within its header, if it is a dlproxy event log", id="one byte"),
        pytest.param(b"\xff" * 100, "breaks off within its header, if it is a dlproxy event log", id="a length of 4 GiB"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", "breaks off within its header, if it is a dlproxy event log", id="text"),
        pytest.param(framed(b""), "is not a dlproxy event log: ", id="an empty record"),
        pytest.param(framed(b"\xc1" * 9), "is not a dlproxy event log: ", id="not msgpack"),
        pytest.param(
            framed(msgspec.msgpack.encode({"name": 1})), "is not a dlproxy event log: ", id="something else's msgpack"
        ),
        pytest.param(framed(HEADER, b"\xc1"), "entry 1 is damaged: ", id="an entry that is not msgpack"),
        pytest.param(
            framed(HEADER, msgspec.msgpack.encode([0.0, {"type": "birthday"}, []])), "entry 1 is damaged: ", id="unknown event"
        ),
        pytest.param(
            framed(HEADER, msgspec.msgpack.encode(["now", {"type": "timer"}, []])),
            "entry 1 is damaged: ",
            id="time is no number",
        ),
        pytest.param(
            framed(msgspec.msgpack.encode(Header("digits", KNOBS, PRIOR, format=FORMAT + 1))),
            f"has format {FORMAT + 1}, this version reads {FORMAT}: a later version wrote it",
            id="a later format",
        ),
        pytest.param(
            framed(msgspec.msgpack.encode(Header("digits", KNOBS, PRIOR, format=2))),
            f"has format 2, this version reads {FORMAT}: its lane decided by rules that have changed since",
            id="an older format",
        ),
    ],
)
def test_what_is_no_log_is_refused_in_words(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "some.dlog"
    path.write_bytes(data)
    with pytest.raises(LogError) as caught:
        replay(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert not str(caught.value).endswith(": "), "a reason is given"


def test_a_calibration_by_length_is_kept(tmp_path: Path) -> None:
    by_length: list[tuple[int | float, ...]] = [(1, 8, 0.011), (2, 32, 0.012)]
    record(tmp_path / "log", header=Header("digits", KNOBS, by_length), lane=Lane(KNOBS, by_length))
    assert read(tmp_path / "log")[0].prior == by_length
    assert replay(tmp_path / "log").first_difference is None
