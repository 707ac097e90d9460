"""A model under the autopilot in virtual time: a real lane, driver and control, instances that take their time, policies that
propose what a test says."""

import asyncio
from collections.abc import Callable
from math import inf
from typing import Any

from msgspec.structs import replace

from dlproxy.autopilot.flight import Flight, Mode, Tuned
from dlproxy.autopilot.host import Autopilot
from dlproxy.autopilot.watching import Watch
from dlproxy.config import ModelConfig
from dlproxy.fleet.roster import Roster
from dlproxy.instance.runtime import ModelError
from dlproxy.policy.tuning.protocol import KnobPolicy, Knobs, Proposal, Space, Value
from dlproxy.policy.tuning.window import Window
from dlproxy.policy.watch.detectors import Charts
from dlproxy.serve.control import LaneControl
from dlproxy.serve.tuning import LANE
from dlproxy.testing import FakeInstance
from tests.serve.rig import KNOBS, Reply, Rig, pass_time

OBJECTIVE_S = 0.2
BASE_S, ROW_S = 0.030, 0.001
START_S = 1.5  # to load the model once more


class Says:
    """A KnobPolicy that proposes what a function makes of the present knobs; None: nothing."""

    def __init__(self, propose: Callable[[dict[str, Value]], dict[str, Value] | None], *, harmless: bool = True) -> None:
        self._propose = propose
        self._harmless = harmless
        self.learned: list[tuple[dict[str, Value], bool]] = []

    def act(self, window: Window, knobs: Knobs, space: Space, now: float) -> Proposal | None:
        changes = self._propose(dict(knobs))
        return None if changes is None else Proposal(knobs={**knobs, **changes}, reason="it says so", harmless=self._harmless)

    def learn(self, knobs: Knobs, window: Window, *, kept: bool) -> None:
        self.learned.append((dict(knobs), kept))


class Garage:
    """A fleet of fakes in ways; more threads make batches quicker. `problem`: why no other session can be had."""

    run = "thread"

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.roster = Roster(rig.driver, rig.stats, rig.now)
        self.up: list[FakeInstance] = []
        self.threads = 1
        self.loaded = {1}
        self.problem: Exception | None = None
        self.hangs = False
        self.slow = 1.0
        self.loads = 0
        self._number = 0
        self._ending: list[asyncio.Task[None]] = []
        self.use(1, 1)

    async def scale(self, count: int) -> None:
        self.use(count, self.threads)

    def use(self, instances: int, threads: int) -> None:
        assert threads in self.loaded, "nobody has loaded it so"
        leaving = self.up if threads != self.threads else self.up[instances:]
        staying = [fake for fake in self.up if fake not in leaving]
        self.threads = threads
        for _ in range(instances - len(staying)):
            fake = FakeInstance(f"m-{self._number}", self._rig.runtime, service_s=self._seconds)
            self._number += 1
            staying.append(fake)
            self.roster.add_instance(fake)
        self.up = staying
        for fake in leaving:
            self.roster.retire_instance(fake.name)
            self._ending.append(asyncio.get_running_loop().create_task(fake.stop()))

    async def prepare(self, knobs: Knobs) -> None:
        threads = int(knobs["threads"])
        if threads not in self.loaded:
            await pass_time(START_S)
            if self.problem is not None:
                raise self.problem
            self.loads += 1
            self.loaded.add(threads)

    async def let_go(self) -> None:
        self.loaded = {self.threads}

    def _seconds(self, rows: int) -> float:
        return 1e9 if self.hangs else self.slow * (BASE_S + ROW_S * rows) / self.threads


class Scene(Rig):
    """`knobs`: what it begins with. The autopilot looks from the first moment on."""

    def __init__(
        self,
        make_policy: Callable[[], KnobPolicy],
        *,
        mode: Mode = "on",
        max_batch: int = 64,
        watch: bool = False,
        **space: Any,
    ) -> None:
        self._jumped_s = 0.0
        loop = asyncio.get_running_loop()
        knobs = replace(KNOBS, max_batch=max_batch, slo_s=OBJECTIVE_S)
        super().__init__(instances=0, knobs=knobs, clock=lambda: loop.time() + self._jumped_s)
        self.garage = Garage(self)
        config = ModelConfig(path="m.onnx", max_batch=max_batch, max_queue_rows=1000, slo="p99=200ms", run="thread")
        self.control = LaneControl(config, self.lane, self.driver, knobs, self.garage, self.garage.roster, 64)  # type: ignore[arg-type]
        self.mode: Mode = mode
        ways = ((1, 1), (2, 1), (1, 2))
        self.space = Space(**{"cores": 2, "max_batch": 64, "ways": ways, "objective_s": OBJECTIVE_S, **space})
        self.tuned = Tuned(
            name="m",
            version="1",
            stats=self.stats,
            mode=lambda: self.mode,
            space=lambda: replace(self.space, pinned=frozenset(self.control.config.pinned)),
            knobs=self.holding,
            cores=lambda: 2,
            instances=lambda: len(self.garage.roster),
            up=lambda: len(self.lane.pool),
            open_requests=lambda: self.driver.open_requests,
            rows_under_way=self.lane.rows_under_way,
            ready=lambda knobs: knobs["threads"] in self.garage.loaded,
            prepare=self.garage.prepare,
            apply=self._apply,
            let_go=self.garage.let_go,
        )
        self.replies: list[Reply] = []
        self.autopilot = Autopilot(self.now, make_policy, watch=Watch(self.now, Charts) if watch else None)
        self.flight: Flight = self.autopilot.add(self.tuned)
        self.control.on_changing = self.flight.hold
        self.control.on_changed = self.flight.renew

    def holding(self) -> dict[str, Value]:
        """The knobs as they are."""
        lane = {name: self.control.holds(name) for name in LANE}
        return {**lane, "instances": max(len(self.garage.up), 1), "threads": self.garage.threads}

    def jump(self, seconds: float) -> None:
        """The clock goes on by so much at once."""
        self._jumped_s += seconds

    @property
    def decided(self) -> list[str]:
        return [decision.kind for decision in self.flight.log]

    async def load(self, seconds: float, rate: float = 40.0, *, until: str = "", timeout_s: float = inf) -> None:
        """At equal intervals, for so long, or until the autopilot has decided this."""
        before = len(self.flight.log)
        for _ in range(round(seconds * rate)):
            self.replies.append(self.send(timeout_s=timeout_s))
            await pass_time(1.0 / rate)
            if until and until in self.decided[before:]:
                return
        assert not until, f"it has decided {self.decided[before:]}"

    async def load_until_it_tries(self, rate: float = 40.0) -> None:
        """Until new knobs hold on trial."""
        before = self.holding()
        for _ in range(round(60.0 * rate)):
            await self.load(1.0 / rate, rate)
            if self.holding() != before:
                return
        raise AssertionError(f"it has tried nothing: {self.flight.state}")

    async def ends_well(self, *, refused: bool = False) -> None:
        """Every request has got its answer, or (`refused`) a refusal; nobody reads counters any more."""
        await pass_time(5.0)
        assert all(reply.answered for reply in self.replies)
        if not refused:
            assert [reply.kind for reply in self.replies if reply.failure is not None] == []
        assert self.is_at_rest()
        self.autopilot.remove(self.tuned)
        assert self.stats.readers == []
        await self.driver.stop(1.0)

    def _apply(self, knobs: Knobs) -> None:
        self.control.tune({name: knobs[name] for name in LANE})
        way = int(knobs["instances"]), int(knobs["threads"])
        if way != (len(self.garage.up), self.garage.threads):
            self.garage.use(*way)


def once(**changes: Value) -> Callable[[dict[str, Value]], dict[str, Value] | None]:
    """These knobs, until they hold."""
    return lambda knobs: None if changes.items() <= knobs.items() else dict(changes)


def broken(knobs: dict[str, Value]) -> dict[str, Value] | None:
    raise ZeroDivisionError("of nothing")


NO_MEMORY = ModelError("no memory for a second session")
