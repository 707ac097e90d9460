"""What a live run's event log tells a simulation: how long batches took, and, replayed, what became of every request.

Called by lab/simulate/run.py, cli/simulate.py, lab/tune and benchmarks/fidelity. Not aware of: nodes, arrival processes.
"""

from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dlproxy.lab.report.result import Result, Tally, make_result
from dlproxy.lab.simulate.service_times import Sample
from dlproxy.message import Ticket
from dlproxy.policy.events import Arrived, BatchDone, Complete, Dispatch, InstanceLost, Reject
from dlproxy.telemetry.event_log import Header, LogError, read, replay


class Batches:
    """The batches of a recording that gave answers, in the order of their ends, and when its requests came, in theirs.

    `first_at`: when the first of the batches began, on the recorded clock; all other instants count from it. `beside`: how many
    ran when each began, itself included.
    """

    def __init__(self, path: Path) -> None:
        header, entries = read(path)
        self.header: Header = header
        running: dict[int, tuple[str, int, float, int]] = {}
        ended_at: dict[str, float] = {}
        samples: list[Sample] = []
        self.beside: list[int] = []
        arrivals: list[float] = []
        inline = header.knobs.max_batch_s < inf  # the bound that only models on the event loop have
        for entry in entries:
            if isinstance(entry.event, Arrived):
                arrivals += [ticket.arrived_at for ticket in entry.event.tickets if ticket.of_client and not ticket.follows]
            elif isinstance(entry.event, BatchDone) and entry.event.batch_id in running:
                instance, rows, begun_at, beside = running.pop(entry.event.batch_id)
                service_s = entry.event.service_s
                if inline:  # it may have waited for the sockets' turn after its dispatch, which the simulated loop does too
                    begun_at = entry.at - service_s
                idle_s = max(begun_at - ended_at.get(instance, begun_at), 0.0)
                ended_at[instance] = entry.at
                if entry.event.error is None:
                    hand_over_s = max(entry.at - begun_at - service_s, 0.0)
                    samples.append(Sample(rows, service_s, hand_over_s, idle_s, begun_at))
                    self.beside.append(beside)
            elif isinstance(entry.event, InstanceLost):
                running = {number: batch for number, batch in running.items() if batch[0] != entry.event.instance}
            for command in entry.commands:
                if isinstance(command, Dispatch) and command.tickets[0].of_client:
                    rows = sum(ticket.rows for ticket in command.tickets)
                    running[command.batch_id] = (command.instance, rows, entry.at, len(running) + 1)
        if not samples:
            raise LogError(f"{path} holds no batch that was answered: there are no service times to learn from it")
        self.first_at = min(sample.at_s for sample in samples)
        self.samples = [sample._replace(at_s=sample.at_s - self.first_at) for sample in samples]
        self.arrivals = np.sort(np.array(arrivals) - self.first_at)


class _Requests:
    """Counts clients' requests, each once: those that were split begin with their first part, and end with their last one or
    the first that fails.
    """

    def __init__(self) -> None:
        self._unanswered: dict[int, int] = {}  # rows of those that were split

    def begin(self, ticket: Ticket) -> bool:
        """Whether a request comes with this ticket."""
        if ticket.of_client and ticket.id == ticket.part_of:
            self._unanswered[ticket.id] = ticket.whole_rows
        return ticket.of_client and not ticket.follows

    def answer(self, ticket: Ticket) -> bool:
        """Whether a request is answered with it."""
        if not ticket.part_of or ticket.part_of not in self._unanswered:
            return ticket.of_client and not ticket.part_of
        self._unanswered[ticket.part_of] -= ticket.rows
        return not self._unanswered[ticket.part_of]

    def fail(self, ticket: Ticket) -> bool:
        """Whether a request fails with it."""
        if not ticket.part_of:
            return ticket.of_client
        return self._unanswered.pop(ticket.part_of, 0) > 0


def answers(path: Path) -> NDArray[np.float64]:
    """A row for each request that was answered: when the lane heard of it, and after how many seconds its batch was done."""
    return np.array(
        [
            (ticket.arrived_at, entry.at - ticket.arrived_at)
            for entry in read(path)[1]
            for command in entry.commands
            if isinstance(command, Complete)
            for ticket in command.tickets
            if ticket.of_client
        ]
    )


def replayed(path: Path, *, objective_s: float | None = None) -> Result:
    """Replay a recording and report it: latencies are those of the lane, from arrival to completion. Raises LogError.

    A difference between the replayed commands and the live ones is the result's first warning.
    """
    header, entries = read(path)
    span = [entry.at for entry in entries]
    if not span:
        raise LogError(f"{path} holds no events")
    start_at, end_at = span[0], span[-1]
    tally = Tally(start_at, end_at + 1e-9, objective_s)
    sizes: dict[int, int] = {}
    requests = _Requests()
    for entry in read(path)[1]:
        if isinstance(entry.event, Arrived):
            for ticket in filter(requests.begin, entry.event.tickets):
                tally.sent_one(ticket.arrived_at, entry.at)
        for command in entry.commands:
            if isinstance(command, Complete):
                for ticket in filter(requests.answer, command.tickets):
                    tally.answered(ticket.arrived_at, entry.at)
            elif isinstance(command, Reject):
                if requests.fail(command.ticket):
                    tally.failed(command.failure.kind.value, command.ticket.arrived_at, entry.at)
            elif isinstance(command, Dispatch) and command.tickets[0].of_client:
                rows = sum(ticket.rows for ticket in command.tickets)
                sizes[rows] = sizes.get(rows, 0) + 1
    setup = {"log": path.name, "model": header.model, "max_batch": header.knobs.max_batch, "slo_s": header.knobs.slo_s}
    result = make_result(tally, kind="replay", started="", target=header.model, setup=setup)
    result.batch_sizes = dict(sorted(sizes.items()))
    outcome = replay(path)
    result.setup["entries"] = outcome.entries
    if outcome.first_difference is not None:
        result.warnings = [f"the replay differs from the recording at {outcome.first_difference}"]
    return result
