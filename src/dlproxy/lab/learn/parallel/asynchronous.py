"""Data parallel out of step: a parameter server, an actor of Ray, applies each worker's gradient when it comes.

Li et al., "Scaling distributed machine learning with the parameter server" (OSDI 2014); how far workers may be apart:
clocks.py. A worker that is lost is waited for no more, and others compute its batch. Called by workers.py. Not aware of: what
is learnt.
"""

import copy
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayActorError, RayError
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from dlproxy.lab.learn.experiment import LearnError
from dlproxy.lab.learn.networks.fit import finite, optimiser_of, penalty, schedule_of
from dlproxy.lab.learn.parallel.clocks import Clocks
from dlproxy.lab.learn.parallel.ray import connected
from dlproxy.lab.learn.parallel.workers import Parallel

START_S = 120.0

Vector = NDArray[np.float32]


class Batch(NamedTuple):
    """What a worker is to compute: these examples, by weights that so many updates have made."""

    number: int
    updates: int
    weights: Vector
    buffers: list[Any]
    chosen: Any


class Computed(NamedTuple):
    """Its answer. `loss`: the sum over the examples."""

    number: int
    updates: int
    gradient: Vector
    buffers: list[Any]
    loss: float


class Server:
    """The weights. Its methods run in threads of one actor: a worker's `step` waits until it may begin."""

    def __init__(self, bound: float) -> None:
        self._bound = bound
        self._changed = Condition()
        self._workers: set[int] = set()

    def begin(self, network: Any, how: Any, examples: int) -> None:
        self._network = network
        self._weights = [weight for weight in network.parameters() if weight.requires_grad]
        self._optimiser, self._schedule = schedule_of(optimiser_of(network, how), how, examples)
        self._updates = 0

    def epoch(self, batches: list[Any], workers: list[int]) -> None:
        """These are to be computed by these workers."""
        with self._changed:
            self._clocks = Clocks(workers, self._bound)
            self._todo = deque(enumerate(batches))
            self._under_way: dict[int, tuple[int, Any]] = {}
            self._loss = 0.0
            self._stale: list[int] = []

    def step(self, worker: int, computed: Computed | None) -> Batch | None:
        """Take what it has computed, and give it more; None: nothing is left that is not under way."""
        with self._changed:
            if computed is not None:
                self._apply(worker, computed)
            self._changed.wait_for(lambda: not self._todo or self._clocks.may_begin(worker))
            if not self._todo:
                return None
            number, chosen = self._under_way[worker] = self._todo.popleft()
            weights = parameters_to_vector(self._weights).detach().numpy().copy()
            return Batch(number, self._updates, weights, [buffer.clone() for buffer in self._network.buffers()], chosen)

    def _apply(self, worker: int, computed: Computed) -> None:
        if self._under_way.pop(worker, (-1, None))[0] != computed.number:
            return  # it was given up, and another has it
        at, gradient = 0, torch.from_numpy(computed.gradient.copy())
        for weight in self._weights:
            weight.grad = gradient[at : at + weight.numel()].view_as(weight)
            at += weight.numel()
        self._optimiser.step()
        self._schedule.step()
        for buffer, told in zip(self._network.buffers(), computed.buffers, strict=True):
            buffer.copy_(told)
        self._stale.append(self._updates - computed.updates)
        self._updates += 1
        self._loss += computed.loss
        self._clocks.ended(worker)
        self._changed.notify_all()

    def leave(self, worker: int) -> None:
        """It is lost: its batch is another's."""
        with self._changed:
            self._clocks.leave(worker)
            if worker in self._under_way:
                self._todo.appendleft(self._under_way.pop(worker))
            self._changed.notify_all()

    def left(self) -> int:
        """Batches that nobody has computed."""
        with self._changed:
            return len(self._todo) + len(self._under_way)

    def result(self) -> tuple[dict[str, Any], float, list[int]]:
        """Weights, the sum of losses, and of each gradient how many updates had come between."""
        return self._network.state_dict(), self._loss, self._stale


class Worker:
    """Computes gradients, in an actor of its own."""

    def __init__(self, rank: int, threads: int) -> None:
        self._rank = rank
        torch.set_num_threads(threads)

    def pid(self) -> int:
        return os.getpid()

    def begin(self, given: tuple[Any, ...], seed: int) -> None:
        self._network, self._inputs, self._targets, self._loss, self._how, self._augment = given
        self._network = copy.deepcopy(self._network)
        self._weights = [weight for weight in self._network.parameters() if weight.requires_grad]
        torch.manual_seed(seed + self._rank)

    def epoch(self, server: Any) -> None:
        computed: Computed | None = None
        self._network.train()
        while (batch := ray.get(server.step.remote(self._rank, computed))) is not None:
            computed = self._computed(batch)

    def _computed(self, batch: Batch) -> Computed:
        vector_to_parameters(torch.from_numpy(batch.weights.copy()), self._weights)
        for buffer, told in zip(self._network.buffers(), batch.buffers, strict=True):
            buffer.copy_(told)
        inputs, targets = self._inputs[batch.chosen], self._targets[batch.chosen]
        given = inputs if self._augment is None else self._augment(inputs, targets)
        value = self._loss(self._network(given), targets)
        self._network.zero_grad()
        (value + penalty(self._network, self._how)).backward()
        gradient = parameters_to_vector([weight.grad for weight in self._weights]).numpy()
        return Computed(
            batch.number, batch.updates, gradient, list(self._network.buffers()), float(value.detach()) * len(batch.chosen)
        )


class Asynchronous:
    """The workers, for the process that measures, which computes no gradients."""

    leads = True

    def __init__(self, parallel: Parallel, threads: int, tell: Callable[[str], None]) -> None:
        self._tell, self._size = tell, parallel.workers
        self._server: Any = (
            ray.remote(Server).options(num_cpus=0, max_concurrency=parallel.workers + 2).remote(parallel.staleness)
        )
        worker = ray.remote(Worker).options(num_cpus=threads)
        self.workers: dict[int, Any] = {rank: worker.remote(rank, threads) for rank in range(self._size)}
        self._examples, self._seconds, self._stale = 0, 0.0, list[int]()
        try:
            self.pids = dict(
                zip(self.workers, ray.get([one.pid.remote() for one in self.workers.values()], timeout=START_S), strict=True)
            )
        except RayError as error:
            raise LearnError(f"the workers did not start: {str(error).strip().splitlines()[-1]}") from None

    def epochs(self, network: Any, inputs: Any, targets: Any, loss: Any, how: Any, augment: Any) -> Callable[[], float]:
        """Each update is by one batch. Running figures of batch normalisation are those of whoever was last."""
        size = len(targets) if how.batch == "all" else how.batch
        given = ray.put((network, inputs, targets, loss, how, augment))
        ray.get(self._server.begin.remote(network, how, len(targets)))
        self._each("begin", given, torch.initial_seed())

        def epoch() -> float:
            began_at = perf_counter()
            order = torch.randperm(len(targets))
            ray.get(self._server.epoch.remote(list(order.split(size)), list(self.workers)))
            while True:
                self._each("epoch", self._server)
                if not ray.get(self._server.left.remote()):
                    break
            weights, lost, stale = ray.get(self._server.result.remote())
            network.load_state_dict(weights)
            self._examples += len(targets)
            self._seconds += perf_counter() - began_at
            self._stale += stale
            return finite(lost, how) / len(targets)

        return epoch

    def _each(self, method: str, *arguments: Any) -> None:
        """Has every worker do it, and goes on without those that are lost."""
        under_way = {getattr(one, method).remote(*arguments): rank for rank, one in self.workers.items()}
        while under_way:
            (done, *_), _ = ray.wait(list(under_way))
            rank = under_way.pop(done)
            try:
                ray.get(done)
            except RayActorError:
                del self.workers[rank]
                if not self.workers:
                    raise LearnError(
                        "all workers were lost. The same command again goes on after the last seed that is done"
                    ) from None
                self._tell(f"worker {rank + 1} of {self._size} was lost; the others go on")
                ray.get(self._server.leave.remote(rank))

    def figures(self) -> dict[str, float]:
        if not self._seconds:
            return {}
        return {
            "examples a second": self._examples / self._seconds,
            "staleness, mean": float(np.mean(self._stale)),
            "staleness, most": float(np.max(self._stale)),
        }

    def close(self) -> None:
        for actor in (self._server, *self.workers.values()):
            ray.kill(actor)


@contextmanager
def server(parallel: Parallel, threads: int, tell: Callable[[str], None]) -> Iterator[Asynchronous]:
    """Raises LearnError."""
    connected(parallel.ray or "local", cores=parallel.workers * threads)
    workers = Asynchronous(parallel, threads, tell)
    try:
        yield workers
    finally:
        workers.close()
