"""The file of a recording: a heading, then a line of JSON for each message of the dashboard's feed, at last the slow requests.

Written by cli/record.py and the case study, read by player.py. Not aware of: HTTP, how it is played.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from msgspec import Raw, Struct

from dlproxy.lab.report.result import ResultError

FORMAT = 1

Told: TypeAlias = dict[str, Any]


class RecordingError(ResultError):
    """A file that is no recording, or cannot be read; the message says why."""


class Heading(Struct, kw_only=True, tag="recording"):
    """`where`: the control port that was asked."""

    where: str
    format: int = FORMAT


class Whole(Struct, tag="whole"):
    """All there is: of the first message, and of the first after the server was away."""

    told: Told

    @property
    def at(self) -> float:
        return float(self.told["at"])


class Delta(Struct, tag="delta"):
    """What is other than in the message before."""

    told: Told

    @property
    def at(self) -> float:
        return float(self.told["at"])


class Requests(Struct, tag="requests"):
    """That were slow or failed, as GET /why tells of them."""

    told: list[Told]


Frame: TypeAlias = Whole | Delta


class Recording(Struct):
    """`frames`: one or more, the first is whole."""

    where: str
    frames: Sequence[Frame]
    requests: Sequence[Told] = ()


class Writer:
    """`path` is written as it comes, so that what is there when everything ends can be read. All raise ResultError."""

    def __init__(self, path: Path, where: str) -> None:
        self.path = path
        self.frames = 0
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise self._wrong(error) from None
        self._put(Heading(where=where))

    def frame(self, event: str, data: bytes) -> None:
        """A message of the feed: its event, and its JSON."""
        self._put({"type": event, "told": Raw(data)})
        self.frames += 1

    def close(self, requests: Sequence[Told] = ()) -> None:
        if requests:
            self._put(Requests(list(requests)))
        self._file.close()

    def _put(self, line: object) -> None:
        try:
            self._file.write(msgspec.json.encode(line) + b"\n")
        except OSError as error:
            raise self._wrong(error) from None

    def _wrong(self, error: OSError) -> ResultError:
        return ResultError(f"cannot write {self.path}: {error.strerror or error}")


def load(path: Path) -> Recording:
    """What is in a file; a last line that was cut short is left out. Raises RecordingError."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror or error}") from None
    decoder = msgspec.json.Decoder(Heading | Whole | Delta | Requests)
    try:
        found = [decoder.decode(line) for line in lines[:-1]]  # after the last break is what was cut short, or nothing
        frames: list[Frame] = [one for one in found if isinstance(one, Whole | Delta) and one.at > 0.0]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise RecordingError(f"{path} is no recording: {error}; dlproxy record writes one") from None
    if not found or not isinstance(found[0], Heading) or found[0].format != FORMAT:
        raise RecordingError(f"{path} is no recording of this version; dlproxy record writes one")
    if not frames or not isinstance(frames[0], Whole):
        raise RecordingError(f"{path} has nothing to show: the server told nothing while it was recorded")
    requests = [request for one in found if isinstance(one, Requests) for request in one.told]
    return Recording(where=found[0].where, frames=frames, requests=requests)
