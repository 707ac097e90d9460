"""Keeps a model's number of instances in step with its load: samples the lane, asks the policy, scales; wakes what sleeps.

Made by serve/assemble.py for each model whose `autoscale` is on. Not aware of: how instances start, what requests hold.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any

from msgspec import Struct, structs

from dlproxy.config import ModelConfig
from dlproxy.config.paths import SLEEP, parse_devices
from dlproxy.cores import usable_cores
from dlproxy.fleet import Fleet
from dlproxy.instance.runtime.devices import CPU
from dlproxy.message import text_of
from dlproxy.policy.forecast import Forecast
from dlproxy.policy.lane import Lane
from dlproxy.policy.scaling import MISSED, Bounds, Meter, Rule, ScalePolicy, Signal, make_policy
from dlproxy.telemetry.stats import ModelStats

LOOK_S = 0.1  # between two looks at what is in flight, which is 10 us of work
LOOKS = 10  # for a sample, after which the policy is asked
RETRY_S = 30.0  # after a number of instances that could not be had
FIRST_START_S = 1.0  # is assumed of a start as long as none was seen

log = logging.getLogger(__name__)


class Scaled(Struct, frozen=True):
    """What an autoscaler needs of its model. `scale`: raises ConfigError. `expect`: as Driver.expect_instance. `least`: so many
    instances keep something that would be gone with them.
    """

    name: str
    lane: Lane
    stats: ModelStats
    fleet: Fleet
    scale: Callable[[int], Awaitable[None]]
    expect: Callable[[float], None]
    clock: Callable[[], float]
    least: Callable[[], int] = lambda: 0


class Autoscaler:
    """`asleep`: there is no instance, and the next request has one started. `wanted`: instances, those that start included.

    A number that an operator sets is held, until one of the bounds is changed.
    """

    def __init__(self, scaled: Scaled, config: ModelConfig, policy: ScalePolicy) -> None:
        self.asleep = False
        self.wanted = scaled.fleet.way.instances
        self._scaled = scaled
        self._config = config
        self._policy = policy
        self._meter = Meter(scaled.clock())
        self._reason = ""
        self._held: int | None = None
        self._start_s = FIRST_START_S
        self._again_at = -inf
        self._looks = 0
        self._task: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._stopping = self._refusing = False

    @property
    def bounds(self) -> Bounds:
        config = self._config
        if self._held is not None:
            return Bounds(self._held, self._held)
        most = most_instances(config, self._scaled.fleet)
        return Bounds(min(config.min_instances, most), most, config.scale_to_zero_s)

    def start(self) -> None:
        """Look from now on."""
        self._looking = asyncio.get_running_loop().create_task(self._look(), name=f"dlproxy-autoscale-{self._scaled.name}")

    def stop(self) -> None:
        """Decide nothing more. A start that is under way goes on: requests may wait for it."""
        self._stopping = True
        if self._looking is not None:
            self._looking.cancel()

    def configure(self, **bounds: int) -> None:
        """Other values of min_instances and max_instances; a number that was held is let go of."""
        self._config = structs.replace(self._config, **bounds)
        if self._held == 0 and self._config.scale_to_zero_s:
            self._sleep()
        self._held = None

    def hold(self, count: int) -> int:
        """An operator has asked for so many, and brings them up. How many there were, for `release`."""
        before, self.wanted, self._held = self.wanted, count, count
        self._reason = "held, as asked for"
        self.asleep = False
        if not count:
            self._scaled.expect(-inf)
        return before

    def release(self, before: int) -> None:
        """They did not come up."""
        self.wanted, self._held = before, None
        if not before:
            self._sleep()

    def moved(self, count: int) -> None:
        """The fleet has replaced all instances by so many, which run in another way."""
        self.wanted = count

    def wake(self) -> None:
        """A request waits, and there is no instance."""
        if self._task is None and not self._stopping and self._scaled.clock() >= self._again_at:
            self._begin(max(self.bounds.least, 1), "a request came")

    def state(self) -> dict[str, Any]:
        """JSON: what is wanted, and why."""
        bounds = self.bounds
        held, asleep = self._held is not None, self.asleep
        return {
            "wanted": self.wanted,
            "least": bounds.least,
            "most": bounds.most,
            "reason": self._reason,
            "held": held,
            "asleep": asleep,
        }

    # Looking

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self._meter.look(self._scaled.lane.rows_under_way())
                self._looks += 1
                if self._looks >= LOOKS and self._task is None:
                    self._looks = 0
                    self._decide()
            except Exception:  # without this, one fault would end all scaling
                log.exception("model %s: autoscaling could not decide", self._scaled.name)

    def _decide(self) -> None:
        scaled = self._scaled
        if scaled.fleet.way.inline:
            return
        lane, stats, now = scaled.lane, scaled.stats, scaled.clock()
        if self._refusing and now >= self._again_at:
            self._refusing = False
            scaled.expect(inf)
        missed = sum([stats.failures[kind] for kind in MISSED])
        load = self._meter.load(
            now,
            arrived=stats.rows + missed + lane.rows_under_way(),
            missed=missed,
            busy_s=sum([size.batch_s + size.compute_s for size in stats.batch_sizes.values()]),
            instances=self.wanted,
            batch=lane.batching.goal,
            capacity=lane.capacity,
            start_s=self._start_s,
        )
        advice = self._policy.decide(load, self.bounds)
        count = advice.count if advice.count >= self.wanted else min(max(advice.count, scaled.least()), self.wanted)
        if count != self.wanted and self._held is None and now >= self._again_at:
            self._begin(count, advice.reason)

    # Scaling

    def _begin(self, count: int, reason: str) -> None:
        self._task = asyncio.get_running_loop().create_task(self._scale(count, reason))

    async def _scale(self, count: int, reason: str) -> None:
        scaled, before, began_at = self._scaled, self.wanted, self._scaled.clock()
        self.wanted, self._reason = count, reason
        if not count:
            self._sleep()
        log.info("model %s: %d instances instead of %d: %s", scaled.name, count, before, reason)
        try:
            await scaled.scale(count)
        except Exception as error:  # whatever it was, the next try may do better
            self._failed(before, count, error)
        else:
            if count > before:
                self._start_s = scaled.clock() - began_at
            if self._held is None:
                self.asleep = not count
        finally:
            self._task = None
        if self.asleep and scaled.lane.rows_under_way():  # who came while the last one left
            self.wake()

    def _sleep(self) -> None:
        self.asleep = True
        self._scaled.expect(inf)

    def _failed(self, before: int, count: int, error: Exception) -> None:
        if self._stopping or self._held is not None:
            return
        scaled = self._scaled
        log.error("model %s: could not run %d instances; tries again in %g s: %s", scaled.name, count, RETRY_S, text_of(error))
        self.wanted, self._reason = before, f"could not run {count}: {text_of(error)}"
        self._again_at = scaled.clock() + RETRY_S
        self.asleep = not before
        if self.asleep:
            self._refusing = True  # nobody is to wait for what does not start
            scaled.expect(-inf)


def autoscaler(scaled: Scaled, config: ModelConfig, forecast: str | Callable[[], Forecast]) -> Autoscaler | None:
    """As the knobs have it; None where they are off. `forecast`: what fleet/forecasts.py has made of the one that they name."""
    if config.autoscale == "off":
        return None
    name, way = scaled.name, scaled.fleet.way
    most = most_instances(config, scaled.fleet)
    if way.inline:
        log.warning("model %s: autoscale has no effect: it is so quick that it runs on the event loop", name)
    elif max(config.min_instances, config.max_instances) > most:
        log.warning(
            "model %s: autoscaling keeps to %d instances of %d threads, for which there are cores", name, most, way.threads
        )
    return Autoscaler(scaled, config, make_policy(rule_of(config.autoscale, config.target_in_flight), forecast))


def rule_of(signal: Signal, target: float) -> Rule:
    return Rule(signal=signal, target=target, by_rate=signal == "in-flight")


def most_instances(config: ModelConfig, fleet: Fleet) -> int:
    """As many as the knob says, but no more than there are cores for, where it is cores that instances compute on."""
    wanted, way = config.max_instances, fleet.way
    if config.path.startswith(SLEEP) and wanted:
        return wanted
    if fleet.run == "ray":  # whose autoscaler brings nodes, where it has one, for more than there is room for now
        return wanted or max(getattr(fleet, "room", int)(), 1)
    if getattr(fleet, "device", CPU) != CPU:
        return wanted or len(parse_devices(config.device))
    room = max(usable_cores() // max(way.threads, 1), 1)
    return min(wanted, room) if wanted else room
