"""Live runs as their event logs have them: the requests, to be sent once more through simulated lanes, and what became of them.

Called by lab/simulate/what_if.py. Not aware of: knobs that differ from the recorded ones, nodes, reports.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from statistics import fmean, median

from msgspec import Struct

from dlproxy.lab.report.result import Result, Tally, make_result, model_result
from dlproxy.lab.simulate.engine import Call
from dlproxy.lab.simulate.recording import Batches
from dlproxy.lab.simulate.service_times import FEWEST, Sample
from dlproxy.message import Ticket
from dlproxy.policy.cost import LatencyModel
from dlproxy.policy.events import (
    Arrived,
    BatchDone,
    Cancelled,
    Closing,
    Complete,
    Dispatch,
    FirstPart,
    InstanceLost,
    InstanceRetired,
    InstanceUp,
    KnobsChanged,
    Reject,
)
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.telemetry.event_log import Entry, LogError, read

SUFFIX = ".dlog"
LONGEST_S = 1e9  # no clock of a run goes further
SLOWED = 0.3  # of what sharing the cores would add to a batch: less is noise


class Asked(Struct):
    """One recorded request: when the lane heard of it, and when its client left or it ended, if it did; `failure`: how."""

    ticket: Ticket
    heard_at: float
    left_at: float = inf
    ended_at: float = inf
    failure: str = ""


class RecordedRun:
    """One model's part of a live run, on the recorded clock. Raises LogError.

    `knobs`: those that held last. `instances`: how many were up, on average. `samples`: of batches that had the cores they
    need. `notes`: what a simulation of this run leaves out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header, entries = read(path)
        self.model = header.model
        self.threads, self.cores = max(header.threads, 1), header.cores if header.threads else 0
        self.prior = header.prior
        self.knobs: LaneKnobs = header.knobs
        self.asked: dict[int, Asked] = {}
        self.capacity = 1
        self._sizes: Counter[int] = Counter()
        self._batches: list[tuple[float, float]] = []  # when they ended, and how long they took
        self._begun: set[int] = set()
        self._up: dict[str, bool] = {}
        self._counts: list[tuple[float, int]] = []  # of instances that are up, from so when on
        self._changes = self._failed = self._others = 0
        self._closing = self._in_parts = False
        if not (_are_possible(header.knobs) and all(point[0] >= 1 and 0.0 < point[-1] < LONGEST_S for point in header.prior)):
            raise LogError(f"{path}: its header is damaged: knobs or times of the calibration are impossible")
        latest = -LONGEST_S
        for number, entry in enumerate(entries, start=1):
            if not _is_possible(entry, latest):
                raise LogError(f"{path}: entry {number} is damaged: its times or sizes are impossible")
            latest = entry.at
            self._take(entry)
        if not self.asked:
            raise LogError(f"{path} holds no request of a client")
        self.first_at = min(asked.ticket.arrived_at for asked in self.asked.values())
        self.last_at = max(asked.heard_at for asked in self.asked.values())
        self.instances = max(round(self._mean_instances()), 1)
        batches = Batches(path)
        self.inline = self.knobs.max_batch_s < inf
        self.arrivals, self.largest = batches.arrivals, max(sample.rows for sample in batches.samples)
        if not self._slowed(batches):
            self.cores = 0
        self.samples = [*self._alone(batches), *self._larger(batches.samples)]

    @property
    def notes(self) -> list[str]:
        """What a simulation of it leaves out, in words."""
        counts = {count for at, count in self._counts if self.first_at <= at <= self.last_at}
        said = {
            f"{self.model}: instances came and went; simulated with {self.instances} throughout": bool(
                counts - {self.instances}
            ),
            f"{self.model}: knobs were changed {self._changes} times; simulated with the last ones throughout": self._changes,
            f"{self.model}: {self._failed} batches failed; none does in the simulation": self._failed,
            f"{self.model}: {self._others} requests of no client (comparisons, shadows) are left out": self._others,
            f"{self.model}: answers came in parts; the simulation answers with all of them": self._in_parts,
            f"{self.model}: its batches took turns with other models' on the cores, which is left out": self.knobs.arbitrated,
        }
        return [note for note, holds in said.items() if holds]

    @property
    def disturbance(self) -> float:
        """How many times as long as the median of their size one batch in a hundred took, the way to the lane included."""
        by_size: dict[int, list[float]] = {}
        for sample in self.samples:
            by_size.setdefault(sample.rows, []).append(sample.service_s + sample.hand_over_s)
        factors = sorted(seconds / median(sized) for sized in by_size.values() for seconds in sized)
        return factors[int(len(factors) * 0.99)]

    def _take(self, entry: Entry) -> None:
        event = entry.event
        if isinstance(event, Arrived):
            self._others += sum(not ticket.of_client for ticket in event.tickets)
            if not self._closing:
                self.asked |= {ticket.id: Asked(ticket, entry.at) for ticket in event.tickets if ticket.of_client}
        elif isinstance(event, BatchDone):
            if event.batch_id in self._begun:
                self._begun.remove(event.batch_id)
                self._batches.append((entry.at, event.service_s))
                self._failed += event.error is not None
        elif isinstance(event, Cancelled):
            if event.ticket_id in self.asked:
                self.asked[event.ticket_id].left_at = entry.at
        elif isinstance(event, InstanceUp | InstanceLost | InstanceRetired):
            self._up[event.instance] = isinstance(event, InstanceUp)
            self._counts.append((entry.at, sum(self._up.values())))
            self.capacity = event.capacity if isinstance(event, InstanceUp) else self.capacity
        elif isinstance(event, KnobsChanged):
            self.knobs = event.knobs
            self._changes += 1
        self._closing |= isinstance(event, Closing)
        self._in_parts |= isinstance(event, FirstPart)
        for command in entry.commands:
            if isinstance(command, Dispatch) and command.tickets[0].of_client:
                self._sizes[sum(ticket.rows for ticket in command.tickets)] += 1
                self._begun.add(command.batch_id)
            elif isinstance(command, Complete):
                for ticket in command.tickets:
                    self._end(ticket, entry.at, "")
            elif isinstance(command, Reject):
                self._end(command.ticket, entry.at, command.failure.kind.value)

    def _end(self, ticket: Ticket, at: float, failure: str) -> None:
        asked = self.asked.get(ticket.id)
        if asked is not None and asked.ended_at == inf:
            asked.ended_at, asked.failure = at, failure

    def _mean_instances(self) -> float:
        """Over the time in which requests came."""
        counts = [(min(max(at, self.first_at), self.last_at), count) for at, count in self._counts]
        spans = zip(counts, [*(at for at, _ in counts[1:]), self.last_at], strict=False)
        total = sum(count * (until - at) for (at, count), until in spans)
        length_s = self.last_at - counts[0][0] if counts else 0.0
        return total / length_s if length_s > 0.0 else max((count for _, count in counts), default=1)

    def _slowed(self, batches: Batches) -> bool:
        """Whether batches took longer where threads outnumbered the cores: no, if they compute elsewhere or only wait.

        True where too few were so many.
        """
        apart: dict[int, list[float]] = {}
        crowded: list[tuple[Sample, float]] = []
        for sample, beside in zip(batches.samples, batches.beside, strict=True):
            factor = beside * self.threads / self.cores if self.cores else 0.0
            if factor > 1.0:
                crowded.append((sample, factor))
            else:
                apart.setdefault(sample.rows, []).append(sample.service_s)
        usual_s = {rows: median(sized) for rows, sized in apart.items()}
        known = [(sample.service_s / usual_s[sample.rows], factor) for sample, factor in crowded if sample.rows in usual_s]
        if len(known) < FEWEST:
            return True
        return median((took - 1.0) / (factor - 1.0) for took, factor in known) > SLOWED

    def _alone(self, batches: Batches) -> list[Sample]:
        """What batches would have taken, had each had the cores for its threads."""
        if not self.cores:
            return batches.samples
        return [
            sample._replace(service_s=sample.service_s / max(beside * self.threads / self.cores, 1.0))
            for sample, beside in zip(batches.samples, batches.beside, strict=True)
        ]

    def _larger(self, samples: Sequence[Sample]) -> list[Sample]:
        """Batches larger than any that ran, as calibration measured them, as much slower as the largest that ran were."""
        prior = [(int(point[0]), point[-1]) for point in self.prior]
        largest = [sample for sample in samples if sample.rows == self.largest]
        if not any(rows > self.largest for rows, _ in prior):
            return []
        slower = fmean(sample.service_s for sample in largest) / LatencyModel(prior).mean(self.largest)
        hand_over_s = median(sample.hand_over_s for sample in largest)
        return [Sample(rows, seconds * slower, hand_over_s) for rows, seconds in prior if rows > self.largest]

    def tally_into(self, tallies: Sequence[Tally], loop_s: float) -> None:
        """What became of the requests, in the order of time; each came so long before it was written down."""
        events: list[tuple[float, bool, Asked]] = [(asked.heard_at, False, asked) for asked in self.asked.values()]
        events += [(asked.ended_at, True, asked) for asked in self.asked.values() if asked.ended_at < inf]
        for at, ended, asked in sorted(events, key=lambda event: event[:2]):
            came_at = max(asked.ticket.arrived_at - loop_s, self.first_at)
            for tally in tallies:
                if not ended:
                    tally.sent_one(came_at, at)
                elif asked.failure:
                    tally.failed(asked.failure, came_at, at)
                else:
                    tally.answered(came_at, at)

    @property
    def rows(self) -> tuple[int, int]:
        """Of the smallest and the largest request."""
        every = [asked.ticket.rows for asked in self.asked.values()]
        return min(every), max(every)

    @property
    def sizes(self) -> Counter[int]:
        """Batches of each size in rows."""
        return self._sizes

    def usage(self, end_at: float) -> dict[str, float]:
        """Of an average instance until then: as SimulatedInstance has it."""
        length_s = end_at - self.first_at
        busy_s = sum(max(min(end_at - (at - seconds), seconds), 0.0) for at, seconds in self._batches)
        return {"utilisation": busy_s / length_s / self.instances if length_s > 0.0 else 0.0}


def find_logs(paths: Sequence[Path]) -> list[Path]:
    """The event logs at these paths, those of folders included. Raises LogError."""
    found: list[Path] = []
    for path in paths:
        logs = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not logs:
            raise LogError(f"{path} holds no event log (*{SUFFIX})")
        found += logs
    return list(dict.fromkeys(found))


class RecordedRuns:
    """The models of one server together. Raises LogError for logs of several runs of one model or at different times."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.runs: dict[str, RecordedRun] = {}
        for path in find_logs(paths):
            run = RecordedRun(path)
            if run.model in self.runs:
                raise LogError(f"{path} is of model {run.model}, as is {self.runs[run.model].path}; give one log of each model")
            self.runs[run.model] = run
        runs = list(self.runs.values())
        self.first_at = min(run.first_at for run in runs)
        self.last_at = max(run.last_at for run in runs)
        for run in runs:
            if run.last_at < max(other.first_at for other in runs):
                raise LogError(f"{run.path} ends before another begins: they are not of one run of a server")

    @property
    def duration_s(self) -> float:
        """From the first request to the last."""
        return self.last_at - self.first_at + 1e-9

    @property
    def count(self) -> int:
        return sum(len(run.asked) for run in self.runs.values())

    def result(self, objective_s: float | None, loop_s: float = 0.0) -> Result:
        """What really happened. Latencies are the lane's: from when the loop began to read a request to its batch's end."""
        end_at = self.first_at + self.duration_s
        tally = Tally(self.first_at, end_at, objective_s)
        own = {
            name: Tally(self.first_at, end_at, run.knobs.slo_s if objective_s is None else objective_s)
            for name, run in self.runs.items()
        }
        sizes: Counter[int] = Counter()
        for name, run in self.runs.items():
            one = Tally(self.first_at, end_at, objective_s)
            run.tally_into([one, own[name]], loop_s)
            tally.merge(one)
            sizes += run.sizes
        logs = ", ".join(run.path.name for run in self.runs.values())
        result = make_result(tally, kind="recording", started="", target=", ".join(self.runs), setup={"log": logs})
        result.batch_sizes = dict(sorted(sizes.items()))
        result.instances = {name: run.usage(end_at) for name, run in self.runs.items()}
        if len(own) > 1:
            result.models = {name: model_result(each) for name, each in own.items()}
        return result

    def calls(self, speed: float, slo_s: Mapping[str, float | None], *, loop_s: float | None) -> Iterator[Call]:
        """The requests in order, `speed` times as fast, from time 0. `slo_s`: objectives that differ from the recorded ones.

        `loop_s`: what the simulated loop takes to read one, which the recorded one had done when it wrote down the arrival;
        None: it takes no time, and what the recorded loop heard of at once is heard of at once.
        """
        every = [(name, asked) for name, run in self.runs.items() for asked in run.asked.values()]
        for name, one in sorted(every, key=_heard_at if loop_s is None else _arrived_at):
            ticket = one.ticket
            heard_at, waited_s = (one.heard_at - self.first_at) / speed, one.heard_at - ticket.arrived_at
            if loop_s is not None:
                heard_at, waited_s = max((ticket.arrived_at - self.first_at) / speed - loop_s, 0.0), 0.0
            patience_s = ticket.answer_by - ticket.arrived_at
            timeout_s = ticket.deadline_at - ticket.arrived_at
            if name in slo_s:
                timeout_s = min(patience_s, slo_s[name] or inf)
            yield Call(
                name,
                ticket.rows,
                timeout_s,
                heard_at - waited_s,
                ticket.length,
                patience_s,
                one.left_at - ticket.arrived_at,
                heard_at,
                ticket,
            )


def _is_possible(entry: Entry, latest: float) -> bool:
    """Whether a lane can have been told that, after what it was told before."""
    if not latest <= entry.at < LONGEST_S:
        return False
    if isinstance(entry.event, BatchDone):
        return 0.0 <= entry.event.service_s < LONGEST_S
    if isinstance(entry.event, KnobsChanged):
        return _are_possible(entry.event.knobs)
    return not isinstance(entry.event, Arrived) or all(
        -LONGEST_S < ticket.arrived_at <= entry.at
        and ticket.rows >= 1
        and ticket.length >= 1
        and all(-LONGEST_S < at < LONGEST_S or at == inf for at in (ticket.deadline_at, ticket.answer_by))
        for ticket in entry.event.tickets
    )


def _are_possible(knobs: LaneKnobs) -> bool:
    return (knobs.slo_s is None or 1e-9 < knobs.slo_s < LONGEST_S) and (
        1e-9 < knobs.max_batch_s < LONGEST_S or knobs.max_batch_s == inf
    )


def _heard_at(named: tuple[str, Asked]) -> float:
    return named[1].heard_at


def _arrived_at(named: tuple[str, Asked]) -> float:
    return named[1].ticket.arrived_at
