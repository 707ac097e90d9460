"""What is kept of a study, a line of JSON for its day and one for each turn of a side: all figures can be made of it again.

Written by run.py, read by figures.py and page.py. Not aware of: how anything was measured.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from dlproxy.lab.report.result import ResultError

FORMAT = 1


class DayRecord(Struct, kw_only=True, tag="day"):
    """`at_s`, `kind`, `picture`, `right`: of each request, `right` the number of its category. `busiest_rps`: what the
    shop's own server answers at most, by which the load was chosen. `service_ms`: of each model on one core, alone, one
    picture at a time, and of "pixels", a JPEG to the model's input.
    """

    format: int = FORMAT
    case: str
    started: str
    machine: dict[str, Any]
    cores: int
    seed: int
    length_s: float
    sale_s: tuple[float, float]
    mean_rps: float
    busiest_rps: float
    objective_ms: float
    service_ms: dict[str, float]
    at_s: list[float]
    kind: list[int]
    picture: list[int]
    right: list[int]


class Turn(Struct, kw_only=True, tag="turn"):
    """One side's day. `latency_ms`: of each request, -1 without an answer; `answer`: the number of a category, or below 0 why
    there is none (replay.py). `cores`: that the server had busy in each second; `others`: that
    other programs had, on average. `rows`: that each model computed. `decisions`: (s, model, words).
    """

    round: int
    side: str
    steps: list[str]
    latency_ms: list[float]
    answer: list[int]
    variants: dict[str, int]
    errors: dict[str, int]
    said: dict[str, str]
    cores: list[float]
    others: float
    rows: dict[str, int]
    hits: int
    decisions: list[tuple[float, str, str]]
    generator_share: float
    late_p99_ms: float


class Study(Struct, kw_only=True):
    """As far as it came."""

    day: DayRecord
    turns: list[Turn]

    def sides(self) -> list[str]:
        """Names, in the order of their first turns."""
        return list(dict.fromkeys(turn.side for turn in self.turns))

    def of(self, side: str) -> dict[int, Turn]:
        """Its turns by their rounds."""
        return {turn.round: turn for turn in self.turns if turn.side == side}


def append(path: Path, record: DayRecord | Turn) -> None:
    """One more line; a day begins the file anew. Raises ResultError."""
    try:
        with path.open("wb" if isinstance(record, DayRecord) else "ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")
    except OSError as error:
        raise ResultError(f"cannot write {path}: {error.strerror}") from None


def load(path: Path) -> Study:
    """Raises ResultError."""
    try:
        records = list(_read(path))
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ResultError(f"{path} is no record of a case study: {error}") from None
    if not records or not isinstance(records[0], DayRecord) or records[0].format != FORMAT:
        raise ResultError(f"{path} is no record of a case study of this version: it does not begin with a day")
    return Study(day=records[0], turns=[one for one in records[1:] if isinstance(one, Turn)])


def _read(path: Path) -> Iterator[DayRecord | Turn]:
    decoder = msgspec.json.Decoder(DayRecord | Turn)
    for line in path.read_bytes().splitlines():
        yield decoder.decode(line)
