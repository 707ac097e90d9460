"""Records what a lane was told and what it answered, and replays such a recording against a fresh lane.

Because a lane decides from events alone, a replay gives the very commands of the live run: an incident can be run again.
Called by serve/assemble.py when `event_log` is set. Format: length-prefixed msgpack, first a Header, then Entries.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from dlproxy.policy.cost import Point
from dlproxy.policy.events import Command, Event
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane

log = logging.getLogger(__name__)

FORMAT = 3  # lanes of older ones decided by other rules, and gave no reasons


class LogError(Exception):
    """A recording that cannot be begun or read; the message says where it breaks off or what it is instead."""


class Header(Struct):
    """How the recorded lane was made, and on what it ran: `threads` of each instance, `cores` of the machine; 0: not known, or
    not here.
    """

    model: str
    knobs: LaneKnobs
    prior: list[tuple[int | float, ...]]
    format: int = FORMAT
    threads: int = 0
    cores: int = 0


class Note(Struct, tag="note"):
    """What became of an instance that the lane does not hear of, such as a start that failed; a replay passes over it."""

    instance: str
    change: str
    reason: str = ""


class Entry(Struct, array_like=True):
    """One event, its time on the lane's clock, and the lane's answer. A note has no answer."""

    at: float
    event: Event | Note
    commands: list[Command]


_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(Header).decode
_decode_entry = msgspec.msgpack.Decoder(Entry).decode


class Recorder:
    """Stands before Lane.on and writes every call to a file. Raises LogError if the file cannot be opened."""

    def __init__(self, path: Path, header: Header, lane: Lane) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("wb")
        except OSError as error:
            raise LogError(f"cannot record to {path}: {error.strerror}") from None
        self._lane = lane
        self._recording = True
        self._write(_encode(header))

    def on(self, event: Event, now: float) -> list[Command]:
        commands = self._lane.on(event, now)
        if self._recording:
            self._write(_encode(Entry(now, event, commands)))
        return commands

    def note(self, note: Note, now: float) -> None:
        """Keep it among the events."""
        if self._recording:
            self._write(_encode(Entry(now, note, [])))

    def close(self) -> None:
        """Events that come later are passed on and not recorded."""
        try:
            self._file.close()
        except OSError as error:
            self._give_up(error)
        self._recording = False

    def _write(self, record: bytes) -> None:
        try:
            self._file.write(len(record).to_bytes(4, "little") + record)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """A full disk ends the recording, not the service."""
        if self._recording:
            log.error("the recording %s ends here: %s", self._file.name, error.strerror)
        self._recording = False


def read(path: Path) -> tuple[Header, Iterator[Entry]]:
    """The recording's header and its entries, one by one; what is damaged raises LogError when it is reached."""
    records = _records(path)
    try:
        header = _decode_header(next(records))
    except StopIteration:
        raise LogError(f"{path} is not a dlproxy event log: it is empty") from None
    except msgspec.DecodeError as error:
        raise LogError(f"{path} is not a dlproxy event log: {error}") from None
    if header.format != FORMAT:
        why = "its lane decided by rules that have changed since" if header.format < FORMAT else "a later version wrote it"
        raise LogError(f"{path} has format {header.format}, this version reads {FORMAT}: {why}")
    return header, _entries(path, records)


def _entries(path: Path, records: Iterator[bytes]) -> Iterator[Entry]:
    for number, record in enumerate(records, start=1):
        try:
            yield _decode_entry(record)
        except msgspec.DecodeError as error:
            raise LogError(f"{path}: entry {number} is damaged: {error}") from None


class Replay(Struct):
    """Outcome of a replay: how many entries were read, notes included, and the first that differed, if one did."""

    entries: int
    first_difference: str | None


def replay(path: Path, make_lane: Callable[[LaneKnobs, list[Point]], Lane] = Lane) -> Replay:
    """Feed the recorded events to a fresh lane and compare its commands, byte for byte. Raises LogError."""
    header, entries = read(path)
    lane = make_lane(header.knobs, [*header.prior])
    count = 0
    for entry in entries:
        count += 1
        if isinstance(entry.event, Note):
            continue
        commands = lane.on(entry.event, entry.at)
        if _encode(commands) != _encode(entry.commands):
            return Replay(count, f"entry {count} ({type(entry.event).__name__}): live {entry.commands}, replayed {commands}")
    return Replay(count, None)


def _records(path: Path) -> Iterator[bytes]:
    """The header and then the entries, still encoded."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise LogError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        left = path.stat().st_size
        entry = 0  # 0 is the header
        while prefix := file.read(4):
            size = int.from_bytes(prefix, "little")
            left -= 4
            if size > left:  # also keeps a wrong length from claiming gigabytes
                where = f"in the middle of entry {entry}" if entry else "within its header, if it is a dlproxy event log"
                raise LogError(f"{path} breaks off {where}")
            yield file.read(size)
            left -= size
            entry += 1
