"""Clients that wait for their answers: Triton's dynamic batching by concurrency, and TorchServe's loss to a batch delay.

Called by __main__.py and tests. Not aware of: deadlines, arrival processes.
"""

from math import inf

from benchmarks.harness.checks import Check, Outcome, around
from benchmarks.known_results.batch_policies import FixedDelay, lane_with
from benchmarks.known_results.simulating import MODEL, UNBOUNDED, Latencies, calls
from dlproxy.lab.simulate.engine import Call, LoopCosts, SimulatedModel, Simulation
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.policy.balancing import RoundRobin
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane

TRITON_TITLE = "Triton's dynamic batching: answers per second by concurrency"
TRITON_ABOUT = """\
Source: Triton Inference Server, *Optimization* (docs/user_guide/optimization.md): an ONNX Inception model, perf_analyzer at
concurrency 1 to 8 with `dynamic_batching { }`: 66.8, 80.8, 118, 165.2, 194.4, 217.6, 249.8, 272 per second. One instance that
serves half of the clients while the other half queues gives c / (2 L(c / 2)); c = 2 and c = 8 fix the line, L(1) = 12.4 ms
and L(4) = 14.7 ms, and c = 1 what the path takes besides, 2.6 ms. Nothing else is fitted: 3 to 7 are predicted by dlproxy's
Lane. Band: 10 %, as the source prints averages of noisy windows (its 267.8 and 272 are the same setting twice, and c = 4 lies
above the line through its neighbours). Clients start 0.1 ms apart; all at one instant they would stay in one batch of c,
which is quicker (392 per second at c = 8). Without batching the source has 73.2 at c = 2 and more."""
TORCHSERVE_TITLE = "TorchServe's batch delay: rate with batch 8 (or 4) over rate with batch 2"
TORCHSERVE_ABOUT = """\
Source: TorchServe, benchmarks/sample_report.md, MNIST: 4 workers, 10 clients, batch delay 100 ms; batches of at most 1, 2, 4
and 8 rows: 2346, 3261, 2458 and 1640 per second, with 1.06, 1.45, 1.97 and 3.0 ms in the model, so L(b) = 0.79 + 0.28 b ms.
Batches larger than clients / workers leave workers without work. A Lane with a fixed delay of 100 ms must show it (band: 0.1
on either side, as HTTP and the workers' hand-over are not simulated); dlproxy's own, which never waits, must lose no more
than 3 %. Services scatter by 17 %, as the source's quantiles say. With 2 % the clients keep in step and dlproxy's does lose:
7 to 9 %, and 23 % if all start at one instant, for it gives what waits to the first idle instance although others idle too."""

TRITON = {3: 118.0, 4: 165.2, 5: 194.4, 6: 217.6, 7: 249.8}
TWO_CLIENTS, EIGHT_CLIENTS, ONE_CLIENT = 80.8, 272.0, 66.8
TRITON_ROW_S = (8 / EIGHT_CLIENTS / 2 - 2 / TWO_CLIENTS / 2) / 3
TRITON_BASE_S = 2 / TWO_CLIENTS / 2 - TRITON_ROW_S
TRITON_PATH_S = 1 / ONE_CLIENT - TRITON_BASE_S - TRITON_ROW_S
TORCHSERVE = {2: 3261.0, 4: 2458.0, 8: 1640.0}
TORCHSERVE_BASE_S, TORCHSERVE_ROW_S = 0.79e-3, 0.28e-3
DELAY_S = 0.1
WORKERS, CLIENTS = 4, 10
TRITON_NOISE = 0.02
TORCHSERVE_NOISE = 0.17  # log-normal: the 99th percentile of batch 1 is 1.53 ms, the median 1.04
STAGGER_S = 1e-4


class ClosedLoop(Latencies):
    """So many clients, each of which sends its next request when it has the answer to its last."""

    def __init__(self, start_at: float, end_at: float) -> None:
        super().__init__(start_at, end_at)
        self.simulation = Simulation(self, balancer=RoundRobin())

    def answered(self, due_at: float, now: float) -> None:
        super().answered(due_at, now)
        self.simulation.heap.at(now, self._send_again, None)

    def _send_again(self, _: None, now: float) -> None:
        self.simulation.send(Call(MODEL, 1, inf, now), now)


def rate(lane: Lane, times: Fitted, *, clients: int, instances: int = 1, path_s: float = 0.0, seconds: float = 20.0) -> float:
    """Answers per second, without the first tenth of the time. Clients start one after another, as threads do."""
    start_at = seconds / 10
    tally = ClosedLoop(start_at, seconds)
    model = SimulatedModel(MODEL, lane, times, [f"instance-{number}" for number in range(instances)])
    tally.simulation.add("node", [model], LoopCosts(path_s=path_s))
    tally.simulation.run(calls([number * STAGGER_S for number in range(clients)]), drain_s=seconds)
    return tally.ok / (seconds - start_at)


def run(seed: int, size: float = 1.0) -> Outcome:
    """Both; `size` scales the simulated time."""
    triton, triton_requests = _triton(seed, 20.0 * size)
    torchserve, torchserve_requests = _torchserve(seed, 6.0 * size)
    return Outcome([*triton, *torchserve], int(triton_requests + torchserve_requests))


def _triton(seed: int, seconds: float) -> tuple[list[Check], float]:
    def measure(clients: int, max_batch: int = 128) -> float:
        line = [(rows, TRITON_BASE_S + TRITON_ROW_S * rows) for rows in (1, 64)]
        lane = Lane(LaneKnobs(max_batch=max_batch, max_queue_rows=UNBOUNDED), line)
        times = Fitted(TRITON_BASE_S, TRITON_ROW_S, cv=TRITON_NOISE, seed=seed)
        return rate(lane, times, clients=clients, path_s=TRITON_PATH_S, seconds=seconds)

    measured = {clients: measure(clients) for clients in range(1, 9)}
    serial = measure(8, max_batch=1)
    published = {1: ONE_CLIENT, 2: TWO_CLIENTS, **TRITON, 8: EIGHT_CLIENTS}
    checks = []
    for clients, expected in published.items():
        low, high = around(expected, relative=0.1)
        note = "" if clients in TRITON else "fitted"
        checks.append(Check(f"c = {clients}", low, high, measured[clients], TRITON_TITLE, expected, digits=1, note=note))
    gain = EIGHT_CLIENTS / TWO_CLIENTS
    low, high = around(gain, relative=0.1)
    checks.append(Check("c = 8 over the same without batching", low, high, measured[8] / serial, TRITON_TITLE, gain))
    return checks, seconds * (sum(measured.values()) + serial)


def _torchserve(seed: int, seconds: float) -> tuple[list[Check], float]:
    def times() -> Fitted:
        return Fitted(TORCHSERVE_BASE_S, TORCHSERVE_ROW_S, cv=TORCHSERVE_NOISE, seed=seed)

    line = [(rows, TORCHSERVE_BASE_S + TORCHSERVE_ROW_S * rows) for rows in (1, 64)]
    delayed, own = (
        {
            batch: rate(
                lane_with(FixedDelay(batch, DELAY_S))
                if is_delayed
                else Lane(LaneKnobs(max_batch=batch, max_queue_rows=UNBOUNDED), line),
                times(),
                clients=CLIENTS,
                instances=WORKERS,
                seconds=seconds,
            )
            for batch in TORCHSERVE
        }
        for is_delayed in (True, False)
    )
    checks = []
    for batch in (4, 8):
        expected = TORCHSERVE[batch] / TORCHSERVE[2]
        low, high = around(expected, absolute=0.1)
        checks.append(Check(f"batch {batch}, delay 100 ms", low, high, delayed[batch] / delayed[2], TORCHSERVE_TITLE, expected))
    checks += [Check(f"batch {batch}, dlproxy", 0.97, inf, own[batch] / own[2], TORCHSERVE_TITLE, 1.0) for batch in (4, 8)]
    return checks, seconds * (sum(delayed.values()) + sum(own.values()))
