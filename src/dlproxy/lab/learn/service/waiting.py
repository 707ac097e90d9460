"""Jobs in virtual time whose order or whose server is chosen by what they are predicted to take. Called by training.py.

The queues are the lanes' own (policy/queueing), of jobs that are served one by one. Not aware of: how predictions come about.
"""

from collections import deque
from collections.abc import Sequence
from heapq import heapreplace
from math import inf
from typing import Literal

import numpy as np

from dlproxy.lab.learn.service.times import Numbers
from dlproxy.message import Ticket
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing import make_queue

Discipline = Literal["fcfs", "sjf", "hrrn"]
STARVATION = 100.0  # mean service times after which SJF serves by age


def queued(
    at: Sequence[float], seconds: Sequence[float], predicted: Sequence[float], discipline: Discipline, servers: int
) -> Numbers:
    """Latencies of jobs that arrive `at`, take `seconds` and are `predicted` to take so long, at servers with one queue."""
    knobs = LaneKnobs(discipline=discipline, starvation_s=STARVATION * sum(seconds) / len(seconds))
    queue = make_queue(knobs, lambda rows, length: predicted[length])
    free = [0.0] * servers
    latencies = np.zeros(len(at))
    come = 0
    for _ in range(len(at)):
        now = free[0] if len(queue) else max(free[0], at[come])
        while come < len(at) and at[come] <= now:
            queue.push(Ticket(come, at[come], shape_key=(come,), length=come), now)
            come += 1
        (ticket,) = queue.pop(1, now)
        latencies[ticket.id] = now + seconds[ticket.id] - at[ticket.id]
        heapreplace(free, now + seconds[ticket.id])
    return latencies


def balanced(at: Sequence[float], seconds: Sequence[float], predicted: Sequence[float], servers: int) -> Numbers:
    """Latencies where each job goes at once to the server on which least is predicted to be left, which serves in turn.

    With the same prediction for all that is least connections, but for what is left of the job that runs.
    """
    lines: list[deque[tuple[float, float, float]]] = [deque() for _ in range(servers)]  # (begins, ends, predicted)
    latencies = np.zeros(len(at))
    for job, now in enumerate(at):
        least, chosen = inf, lines[0]
        for line in lines:
            while line and line[0][1] <= now:
                line.popleft()
            left = sum([max(expected - max(now - begins, 0.0), 0.0) for begins, _, expected in line])
            if left < least:
                least, chosen = left, line
        begins = chosen[-1][1] if chosen else now
        chosen.append((begins, begins + seconds[job], predicted[job]))
        latencies[job] = begins + seconds[job] - now
    return latencies
