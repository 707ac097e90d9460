"""Data parallel in step: each worker computes the gradient of its part of every batch, and all descend their mean.

All-reduce by torch.distributed (gloo). Each worker does all of the training by itself, from the same seed, so that all have
the same weights to the bit. Called by workers.py and worker.py. Not aware of: what is learnt.
"""

import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from time import perf_counter, sleep
from typing import IO, Any, Protocol

import msgspec
import torch
import torch.distributed as dist
from msgspec import Struct

from dlproxy.lab.learn.experiment import Experiment, LearnError
from dlproxy.lab.learn.networks.fit import finite, optimiser_of, penalty, schedule_of
from dlproxy.lab.learn.parallel.workers import Parallel

PATIENCE_S = 60.0  # with a worker that says nothing while others wait for its gradient
START_S = 120.0
LOOK_S = 0.05


class Task(Struct, frozen=True, kw_only=True):
    """What a worker other than the first is told."""

    experiment: Experiment
    seeds: list[int]
    threads: int
    rank: int
    size: int
    host: str
    port: int


class Group:
    """Workers in step, of which this process is one. `lost`: why, as far as whoever started the others knows. `pids`: of the
    others, where they are processes of this machine.
    """

    def __init__(
        self, rank: int, size: int, store: dist.TCPStore, lost: Callable[[], str] = str, pids: Sequence[int] = ()
    ) -> None:
        self.rank, self.size, self.leads = rank, size, rank == 0
        self.pids = pids
        self._lost = lost
        self._examples, self._seconds = 0, 0.0
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=PATIENCE_S))

    def epochs(self, network: Any, inputs: Any, targets: Any, loss: Any, how: Any, augment: Any) -> Callable[[], float]:
        """Orders of examples are the same in all workers, and those that one worker alone would draw; other chance is each
        one's own. Batch normalisation sees each worker's part of a batch; its running figures are the mean.
        """
        size = len(targets) if how.batch == "all" else how.batch
        optimiser, schedule = schedule_of(optimiser_of(network, how), how, len(targets))
        order = torch.Generator()
        order.set_state(torch.get_rng_state())
        if self.rank:
            torch.manual_seed(torch.initial_seed() + self.rank)
        flat = _gradients(network)

        def step(chosen: Any) -> float:
            mine, share = chosen[self.rank :: self.size], 0.0
            flat.zero_()
            value = torch.zeros(())
            if len(mine):
                given = inputs[mine] if augment is None else augment(inputs[mine], targets[mine])
                share = len(mine) / len(chosen)
                value = loss(network(given), targets[mine])
                (value * share + penalty(network, how) / self.size).backward()
            elif how.l1 or how.l2:
                (penalty(network, how) / self.size).backward()
            flat[-1] = value.detach() * share
            self._sum(flat)
            optimiser.step()
            schedule.step()
            return float(flat[-1])

        def epoch() -> float:
            began_at = perf_counter()
            network.train()
            lost = 0.0
            for chosen in torch.randperm(len(targets), generator=order).split(size):
                lost += step(chosen) * len(chosen)
            for buffer in network.buffers():
                if buffer.is_floating_point():
                    self._sum(buffer)
                    buffer /= self.size
            self._examples += len(targets)
            self._seconds += perf_counter() - began_at
            return finite(lost, how) / len(targets)

        return epoch

    def _sum(self, tensor: Any) -> None:
        try:
            dist.all_reduce(tensor)
        except RuntimeError as error:
            why = self._lost() or str(error).splitlines()[0]
            raise LearnError(
                f"a worker was lost: {why}. The same command again goes on after the last seed that is done"
            ) from None

    def figures(self) -> dict[str, float]:
        return {"examples a second": self._examples / self._seconds} if self._seconds else {}

    def close(self) -> None:
        dist.destroy_process_group()


def _gradients(network: Any) -> Any:
    """All gradients in one vector, of which each weight's is a view, and a place more, for the loss: one all-reduce a step."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    flat = torch.zeros(sum(weight.numel() for weight in weights) + 1)
    at = 0
    for weight in weights:
        weight.grad = flat[at : at + weight.numel()].view_as(weight)
        at += weight.numel()
    return flat


# The others


class Started(Protocol):
    """Another worker."""

    def ended(self) -> str:
        """Why it has; empty while it runs."""
        ...

    def stop(self) -> None: ...


class Process:
    """A worker as a process of this machine."""

    def __init__(self, task: Task) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop
        command = [sys.executable, "-m", "dlproxy.lab.learn.parallel.worker"]
        self._rank, self._size = task.rank, task.size
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=self._errors, start_new_session=True)
        self.pid = self._process.pid
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended already, and `ended` says why
            self._process.stdin.write(msgspec.json.encode(task))
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def ended(self) -> str:
        code = self._process.poll()
        if code is None:
            return ""
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        return f"worker {self._rank + 1} of {self._size} {how}" + (f": {said[-1]}" if said else "")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()


@contextmanager
def group(parallel: Parallel, experiment: Experiment, seeds: Sequence[int], threads: int) -> Iterator[Group]:
    """This process as the first of the workers, and the others. Raises LearnError."""
    size, others = parallel.workers, list[Started]()
    start: Callable[[Task], Started] = Process
    host = "127.0.0.1"
    if parallel.ray:
        from dlproxy.lab.learn.parallel.ray import Actor, address, connected

        connected(parallel.ray, cores=size * threads)
        start, host = Actor, address()
    store = dist.TCPStore(host, 0, size, is_master=True, wait_for_workers=False)
    whole = Task(experiment=experiment, seeds=list(seeds), threads=threads, rank=0, size=size, host=host, port=store.port)
    try:
        for rank in range(1, size):
            others.append(start(msgspec.structs.replace(whole, rank=rank)))
        _until_there(store, size, others)
        pids = [other.pid for other in others if isinstance(other, Process)]
        one = Group(0, size, store, lambda: _why(others), pids)
        try:
            yield one
        finally:
            one.close()
    finally:
        for other in others:
            other.stop()


def joined(task: Task) -> Group:
    """This process as another of the workers."""
    store = dist.TCPStore(task.host, task.port, task.size, is_master=False, timeout=timedelta(seconds=START_S))
    store.set(f"there {task.rank}", socket.gethostname())
    return Group(task.rank, task.size, store)


def _until_there(store: dist.TCPStore, size: int, others: list[Started]) -> None:
    until = perf_counter() + START_S
    while not store.check([f"there {rank}" for rank in range(1, size)]):
        why = next(filter(None, (other.ended() for other in others)), "")
        if not why and perf_counter() > until:
            why = f"not all were there within {START_S:g} s"
        if why:
            raise LearnError(f"the workers did not start: {why}")
        sleep(LOOK_S)


def _why(others: list[Started]) -> str:
    """Who has ended; it may take a moment until that is known."""
    for _ in range(20):
        if found := [why for other in others if (why := other.ended())]:
            return "; ".join(found)
        sleep(LOOK_S)
    return ""
