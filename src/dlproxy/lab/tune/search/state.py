"""What a tuning has found so far, a line of JSON for each measurement, so that one that was interrupted can go on.

Written by tune.py and trials.py after each evaluation. Not aware of: what the measurements mean.
"""

from pathlib import Path
from typing import TypeAlias

import msgspec
from msgspec import Struct

from dlproxy.lab.tune.search.problem import Layout, Outcome, Point, TuneError
from dlproxy.lab.tune.search.times import Times

FORMAT = 1


class Header(Struct, tag="problem"):
    """What was tuned, by name: a state of another problem is of no use."""

    what: dict[str, str]
    format: int = FORMAT


class Calibrated(Struct, tag="calibrated"):
    """Batch times of one layout; `problem`: why there are none."""

    layout: Layout
    times: Times | None = None
    problem: str = ""


class Simulated(Struct, tag="simulated"):
    point: Point
    outcome: Outcome


class Lived(Struct, tag="live"):
    """A live run of so many seconds; `seed`: of its arrivals. `memory_bytes`: resident, of the server and its workers.
    `times`: what it taught.
    """

    point: Point
    rate: float
    seconds: float
    seed: int
    outcome: Outcome
    memory_bytes: int
    predicted: Outcome
    times: Times | None = None


Record: TypeAlias = Header | Calibrated | Simulated | Lived
_decode = msgspec.json.Decoder(Record).decode


class State:
    """The measurements by what was measured. Kept in a file if there is one."""

    def __init__(self, path: Path | None, what: dict[str, str], *, resume: bool = False) -> None:
        """Raises TuneError if there is nothing to resume, or of another problem, or the file cannot be written."""
        self.calibrated: dict[Layout, Calibrated] = {}
        self.simulated: dict[Point, Outcome] = {}
        self.lived: list[Lived] = []
        self._path = path
        if path is None:
            return
        try:
            lines = self._read(path, what) if resume else [msgspec.json.encode(Header(what))]
            path.write_bytes(b"".join(line + b"\n" for line in lines))
        except OSError as error:
            raise TuneError(f"cannot keep what was found in {path}: {error.strerror}") from None

    def keep(self, record: Calibrated | Simulated | Lived) -> None:
        """Note it, here and in the file."""
        self._note(record)
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(record) + b"\n")

    def live(self, point: Point, rate: float, seconds: float, seed: int) -> Lived | None:
        """A run of this point with these arrivals that lasted so long."""
        for run in self.lived:
            if run.point == point and (run.rate, run.seed) == (rate, seed) and run.seconds >= 0.99 * seconds:
                return run
        return None

    def forget(self) -> None:
        """The tuning is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self, path: Path, what: dict[str, str]) -> list[bytes]:
        if not path.exists():
            raise TuneError(f"there is nothing to resume: {path} does not exist; leave out --resume")
        kept: list[bytes] = []
        for line in path.read_bytes().split(b"\n"):
            try:
                record = _decode(line)
            except msgspec.DecodeError:
                continue  # the last line of a run that was killed
            if isinstance(record, Header):
                self._check(path, record, what)
            elif not kept:
                break
            else:
                self._note(record)
            kept.append(line)
        if not kept:
            raise TuneError(f"{path} holds no tuning that can be resumed; leave out --resume")
        return kept

    def _check(self, path: Path, header: Header, what: dict[str, str]) -> None:
        differing = [name for name, value in what.items() if header.what.get(name) != value]
        if header.format != FORMAT or differing:
            name = differing[0] if differing else "format"
            said, is_ = header.what.get(name, str(header.format)), what.get(name, str(FORMAT))
            raise TuneError(f"{path} is of another tuning: its {name} is {said}, not {is_}; leave out --resume")

    def _note(self, record: Calibrated | Simulated | Lived) -> None:
        if isinstance(record, Calibrated):
            self.calibrated[record.layout] = record
        elif isinstance(record, Simulated):
            self.simulated[record.point] = record.outcome
        else:
            self.lived.append(record)
