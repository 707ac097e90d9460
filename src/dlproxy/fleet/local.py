"""Instances of one model in this process: on the event loop or on threads. Which of them, and how many, is measured.

At start on samples or made-up inputs, then on what clients sent. Made by fleet/start.py. Not aware of: lanes, protocols.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from math import inf

import msgspec

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.cores import usable_cores
from dlproxy.fleet.names import instance_name, number_of
from dlproxy.fleet.roster import Roster
from dlproxy.fleet.warm_model import WarmModel, choose_way, device_of, is_open, open_like, room, try_ways
from dlproxy.instance import Instance
from dlproxy.instance.batch import gather
from dlproxy.instance.inline import InlineInstance
from dlproxy.instance.padding import without_padding
from dlproxy.instance.runtime import ModelError, Runtime
from dlproxy.instance.runtime.devices import CPU, in_words, instance_maker
from dlproxy.instance.runtime.formats import format_of
from dlproxy.instance.thread import ThreadInstance
from dlproxy.instance.trial import INLINE_BELOW_S, SHARED_ABOVE_S, Inputs, Measured, Way, measure_again
from dlproxy.instance.warmup import Calibration
from dlproxy.message import Request, Signature

TRIED_AGAIN = 8  # of the requests that clients sent: a trial takes time from them
OTHERWISE = 2.0  # times quicker or slower than what was tried before: then all is tried again

log = logging.getLogger(__name__)


class LocalFleet:
    """Instances that share a loaded model: sessions take concurrent calls, and the weights exist once on each device.

    `warm`: the model on each of the configured devices.
    """

    most_rows: int | None = None

    def __init__(self, name: str, config: ModelConfig, warm: Sequence[WarmModel]) -> None:
        signatures = [one.runtime.signature for one in warm]
        self.signature = min(signatures, key=lambda signature: (signature.batched, signature.pads))
        for one in warm:
            one.runtime.signature = self.signature
        self.calibration = warm[0].calibration
        self.way = warm[0].way
        self.run = _run(self.way)
        self.on_moved: Callable[[Way], None] | None = None
        """Called, on the event loop, when instances run in another way from now on."""
        self._name = name
        self._config = config
        self._warm = list(warm)
        self._instances: dict[str, Instance] = {}
        self._next = 0  # the number of the next instance, once the way has changed
        self._roster: Roster | None = None
        self._changing = asyncio.Lock()
        self._stopping = False
        self._moving: asyncio.Task[None] | None = None
        self._beside: dict[int, Runtime] = {}  # loaded with other numbers of threads than those that run, for the autopilot
        self._ending: set[asyncio.Task[None]] = set()  # instances that were taken out, until their last batch has ended
        self._tuned = False  # the autopilot has had another way prepared: nothing else looks for a better one
        self._shown = False  # service has shown what warm-up had not, and that is remembered

    def attach(self, roster: Roster) -> None:
        self._roster = roster
        for number in range(self.way.instances):
            self._add(number)

    async def scale(self, count: int) -> None:
        if self.way.inline:
            raise ConfigError(f"model {self._name} runs on the event loop, one batch at a time: set run = 'thread' for more")
        async with self._changing:  # a name is free again when its instance has finished its last batch
            if self._stopping:
                raise ModelError(f"{self._name} is being stopped")
            await self._ended()
            for number in range(count):
                if instance_name(self._name, number) not in self._instances:
                    self._add(number)
            leaving = [name for name in self._instances if number_of(name) >= count]
            await asyncio.gather(*(self._remove(name) for name in leaving))
            self._config = msgspec.structs.replace(
                self._config, instances=max(count, 1)
            )  # so many are wanted, whatever is measured

    def elsewhere_bytes(self) -> int:
        return 0

    async def stop(self) -> None:
        self._stopping = True
        if self._moving is not None:
            self._moving.cancel()
        async with self._changing:
            instances, self._instances = self._instances, {}
            await asyncio.gather(*(instance.stop() for instance in instances.values()))
            await self._ended()
            runtimes = [*(one.runtime for one in self._warm), *self._beside.values()]
            self._warm, self._beside = [], {}  # with the runtimes go the weights
        while runtimes:
            await _close(runtimes.pop())

    @property
    def device(self) -> str:
        """Where the instances compute, or the first of them."""
        return self._warm[0].device

    def describe(self) -> str:
        count = self.way.instances
        where = in_words([one.device for one in self._warm])
        return ("inline on the event loop" if self.way.inline else f"on {count} thread{'s' * (count > 1)}") + where

    def rows_are_not_independent(self, reason: str) -> None:
        """Service has shown it: the next start is to know."""
        warm = self._warm[0]
        signature = msgspec.structs.replace(self.signature, batched=False)
        known = warm.calibration.known
        calibration = Calibration(warm.calibration.points[:1], False, f"{reason} (seen in service): batching is off", known)
        self._remember(signature, calibration)

    def padding_changes_answers(self, reason: str) -> None:
        """The same of requests of different lengths."""
        calibration = self._warm[0].calibration
        warning = "; ".join(filter(None, (calibration.warning, f"{reason} (seen in service): padding is off")))
        self._remember(without_padding(self.signature), msgspec.structs.replace(calibration, warning=warning))

    def _remember(self, signature: Signature, calibration: Calibration) -> None:
        warm = self._warm[0]
        self._shown = True
        if warm.memory is not None:
            warm.memory.keep(warm.key, warm.as_found(signature, calibration))

    # Another way, while serving

    def try_again(self, requests: Sequence[Request]) -> bool:
        """Clients have sent these: find out whether the way it runs is right for them, and change it if it is not.

        Returns whether to try once more, with later ones: others had the cores whenever it was tried.

        On the loop its own batches tell: a trial beside them has cold caches, and takes disturbance for its time.
        """
        if self._tuned or (self.way.inline and not self._slow_inline()):
            return False
        if self._moving is None or self._moving.done():
            self._moving = asyncio.get_running_loop().create_task(self._try_again(requests))
        return self._is_guess()

    def _is_guess(self) -> bool:
        return self._warm[0].disturbed and self._config.instances < 2  # else so many are wanted, whatever is measured

    def _slow_inline(self) -> bool:
        return any(isinstance(instance, InlineInstance) and instance.slow for instance in self._instances.values())

    def may_move(self) -> bool:
        """Whether anything about the way is left to be measured."""
        warm = self._warm[0]
        narrow = warm.threads == (self._config.threads or 1)  # of several threads the processor time does not tell
        return warm.device == CPU and narrow and self._config.run == "auto" and is_open(self._config)

    async def _try_again(self, requests: Sequence[Request]) -> None:
        warm = self._warm[0]
        real = [gather(self.signature, [request]) for request in requests[:TRIED_AGAIN]]
        again = msgspec.structs.replace(warm)
        try:
            await asyncio.to_thread(self._tried, again, real)
        except Exception as error:  # a request that the model refuses, memory for a second session: it runs on as it does
            log.warning("model %s: could not be tried on its clients' requests: %s", self._name, error)
            return
        if self._tuned:
            return
        if again.way != self.way:
            await self._move(again)
        elif warm.disturbed and not again.disturbed:
            self._warm = [again]
            if not self._shown:
                await asyncio.to_thread(again.remember)

    def _tried(self, warm: WarmModel, real: Sequence[Inputs]) -> None:
        """Nothing is changed where requests take about what those took that the way was found with, unless that was a guess."""
        if self._is_guess():
            surely = msgspec.structs.replace(warm)
            try_ways(self._config, surely, real, patience_s=0.0)
            if not surely.disturbed:
                warm.runtime, warm.threads, warm.way, warm.found = surely.runtime, surely.threads, surely.way, surely.found
                return
        before = warm.found or _only_single(warm.calibration)
        now = measure_again(real, warm.runtime, before, room(self._config))
        quick = now.slow_s < (SHARED_ABOVE_S if warm.way.inline else INLINE_BELOW_S)
        if warm.way.inline is not quick or not before.narrow_cpu_s / OTHERWISE < now.narrow_s < before.narrow_cpu_s * OTHERWISE:
            choose_way(self._config, warm, now)

    def _leave_the_loop(self, seconds: float) -> None:
        """A batch held the event loop for too long: the next ones run on a thread, before anything is measured."""
        if self.way.inline and self._config.run == "auto" and (self._moving is None or self._moving.done()):
            log.warning(
                "model %s: a batch held the event loop for %.1f ms: it runs on a thread from now on", self._name, seconds * 1e3
            )
            warm = self._warm[0]
            way = Way(inline=False, instances=1, threads=warm.threads)
            away = msgspec.structs.replace(warm, way=way)
            self._moving = asyncio.get_running_loop().create_task(self._move(away))

    async def _move(self, warm: WarmModel) -> None:
        """New instances take over before those that run in the old way leave, so that no request is without one."""
        async with self._changing:
            leaving = list(self._instances)
            self._next = max(number_of(name) for name in leaving) + 1 if leaving else 0
            self._warm, self.way, self.run = [warm], warm.way, _run(warm.way)
            for _ in range(warm.way.instances):
                self._add(self._next)
                self._next += 1
            if self.on_moved is not None:
                self.on_moved(warm.way)
            if not self._shown:
                await asyncio.to_thread(warm.remember)
            log.info("model %s: runs %s, %d thread(s) each", self._name, self.describe(), warm.threads)
            await asyncio.gather(*(self._remove(name) for name in leaving))

    def _add(self, number: int) -> None:
        name = instance_name(self._name, number)
        runtime = self._warm[number % len(self._warm)].runtime
        instance: Instance
        if self.way.inline:
            instance = InlineInstance(name, runtime, self._leave_the_loop)
        else:
            instance = (instance_maker(device_of(self._config, number)) or ThreadInstance)(name, runtime)
        self._instances[name] = instance
        assert self._roster is not None
        self._roster.add_instance(instance)

    async def _remove(self, name: str) -> None:
        assert self._roster is not None
        instance = self._instances.pop(name, None)
        if instance is not None:  # else the autopilot was here meanwhile
            self._roster.retire_instance(name)
            await instance.stop()

    # Ways of the autopilot's choice

    @property
    def present(self) -> tuple[int, int]:
        """Instances, and threads of each, that run now."""
        return len(self._instances), self.way.threads

    def ways(self, *, sessions: bool) -> tuple[tuple[int, int], ...]:
        """What `use` takes, the present one first. `sessions`: also those for which the model has to be loaded once more."""
        instances, threads = self.present
        present = max(instances, 1), threads
        if self.way.inline or len(self._warm) > 1 or self.device != CPU:
            return (present,)
        cores = usable_cores()
        sizes = [1 << power for power in range(cores.bit_length())]
        others = sizes if sessions and self._threads_pay() else [threads]
        return tuple(dict.fromkeys([present, *((one, each) for each in others for one in sizes if one * each <= cores)]))

    def _threads_pay(self) -> bool:
        try:
            return format_of(self._config.path, pickle=True).threads_pay
        except ModelError:  # its file has gone since
            return False

    def is_ready(self, threads: int) -> bool:
        """Whether `use` may be called for so many."""
        return threads == self.way.threads or threads in self._beside

    async def prepare(self, threads: int) -> None:
        """Have the model loaded with so many threads, beside what runs. Raises ModelError, and whatever loading raises."""
        async with self._changing:
            if self._stopping:
                raise ModelError(f"{self._name} is being stopped")
            self._tuned = True
            if not self.is_ready(threads):
                self._beside[threads] = await asyncio.to_thread(open_like, self._warm[0], self._config, threads)

    def use(self, instances: int, threads: int) -> None:
        """Run so from now on; what takes batches in the old way ends those that it has. `prepare` comes first."""
        if self._stopping or (instances, threads) == self.present:
            return
        leaving = list(self._instances)
        if threads == self.way.threads:
            leaving = leaving[instances:]
        else:
            warm = self._warm[0]
            self._beside[self.way.threads] = warm.runtime
            self._warm = [msgspec.structs.replace(warm, runtime=self._beside.pop(threads), threads=threads)]
        self.way = msgspec.structs.replace(self.way, instances=instances, threads=threads)
        for _ in range(instances - (len(self._instances) - len(leaving))):
            self._next = max(self._next, *(number_of(name) + 1 for name in self._instances), 0)
            self._add(self._next)
            self._next += 1
        assert self._roster is not None
        for name in leaving:
            self._roster.retire_instance(name)
            task = asyncio.get_running_loop().create_task(self._instances.pop(name).stop())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        if self.on_moved is not None:
            self.on_moved(self.way)

    async def let_go(self) -> None:
        """Only the present way is needed from now on."""
        async with self._changing:
            await self._ended()
            runtimes, self._beside = list(self._beside.values()), {}
        while runtimes:
            await _close(runtimes.pop())

    async def _ended(self) -> None:
        await asyncio.gather(*self._ending)


async def _close(runtime: Runtime) -> None:
    close = getattr(runtime, "close", None)
    if close is not None:
        await asyncio.to_thread(close)


def _run(way: Way) -> str:
    """As the knob has it."""
    return "inline" if way.inline else "thread"


def _only_single(calibration: Calibration) -> Measured:
    """Of a model that was so quick that nothing was tried."""
    single_s = calibration.single_s or 0.0
    return Measured(single_s, single_s, single_s, inf, inf)
