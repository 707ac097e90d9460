"""Watches the models of a process: makes windows of their counters, has policy/watch look at them, and says what is unusual.

Held by host.py where `watch` is not off. Acts on nothing: a flight is told, and decides nothing until all has been calm for a
while. Not aware of: knobs, what the pilot does.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from dlproxy.autopilot.flight import Tuned
from dlproxy.autopilot.telemetry import Telemetry
from dlproxy.config import ConfigError
from dlproxy.instance.integrity import Trust
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.formats import ANY
from dlproxy.instance.runtime.own import read_network
from dlproxy.policy.watch.detectors import SPAN, Charts, Detector, Learnt, Score
from dlproxy.policy.watch.features import NAMES, Seen
from dlproxy.policy.watch.watcher import WINDOW_S, Watcher
from dlproxy.telemetry.stats import CacheCounts, WatchCounts

LOOK_S = 0.2
LOOKS = round(WINDOW_S / LOOK_S)
NO_OBJECTIVE_S = 1.0  # answers of models without one are late after that

log = logging.getLogger(__name__)


class Freezes(Protocol):
    """A flight. Empty: it may decide again."""

    def freeze(self, unusual: str) -> None: ...


class Watched:
    """One model."""

    def __init__(self, tuned: Tuned, flight: Freezes, detector: Detector, at: float) -> None:
        space = tuned.space()
        objective_s = NO_OBJECTIVE_S if isinstance(space, str) else space.objective_s
        self.watcher = Watcher(detector)
        self._tuned, self._flight = tuned, flight
        self._telemetry = Telemetry(tuned.stats, tuned.open_requests, tuned.rows_under_way, objective_s=objective_s, at=at)
        self._counts = tuned.stats.watch = WatchCounts()
        self._cached = _looked_up(tuned.stats.cache)
        self._looks = 0

    def look(self, now: float) -> None:
        """Called every LOOK_S."""
        self._telemetry.look()
        self._looks += 1
        if self._looks < LOOKS:
            return
        self._looks = 0
        tuned, watcher = self._tuned, self.watcher
        knobs = tuned.knobs()
        window = self._telemetry.window(now, up=tuned.up())
        if window.seconds > 2.0 * WINDOW_S:  # the clock jumped, or the loop stood still
            return
        (hits, look_ups), before = _looked_up(tuned.stats.cache), self._cached
        self._cached = hits, look_ups
        changed = watcher.look(
            Seen(window, (knobs["instances"], knobs["threads"]), hits - before[0], look_ups - before[1]), now
        )
        if changed:
            self._tell()

    def accept(self) -> None:
        """What is now is usual."""
        if self.watcher.accept():
            self._tell()

    def fail(self, error: Exception) -> None:
        """It is watched no more; what it froze goes on."""
        log.error("model %s: watching has failed, and ends", self._tuned.name, exc_info=error)
        self.stop()

    def stop(self) -> None:
        self._telemetry.stop()
        self._tuned.stats.watch = None
        self._flight.freeze("")

    def _tell(self) -> None:
        unusual, name = self.watcher.unusual, self._tuned.name
        self._counts.unusual = bool(unusual)
        if unusual:
            self._counts.alarms += 1
            log.warning("model %s: something is unusual: %s", name, unusual)
        else:
            log.info("model %s: nothing is unusual any more", name)
        self._flight.freeze(unusual)


class Watch:
    """All models of a process, and the one task that looks at them while there are any."""

    def __init__(self, clock: Callable[[], float], make_detector: Callable[[], Detector]) -> None:
        self._clock = clock
        self._make_detector = make_detector
        self._watched: dict[Tuned, Watched] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, tuned: Tuned, flight: Freezes) -> None:
        self._watched[tuned] = Watched(tuned, flight, self._make_detector(), self._clock())
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._look(), name="dlproxy-watch")

    def remove(self, tuned: Tuned) -> None:
        watched = self._watched.pop(tuned, None)
        if watched is not None:
            watched.stop()
        if not self._watched and self._task is not None:
            self._task.cancel()
            self._task = None

    def accept(self, tuned: Tuned) -> None:
        """An operator says that what is seen of this model is as it should be."""
        if tuned in self._watched:
            self._watched[tuned].accept()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            now = self._clock()
            for tuned, watched in list(self._watched.items()):
                try:
                    watched.look(now)
                except Exception as error:  # of one model: the others are watched on
                    del self._watched[tuned]
                    watched.fail(error)


def _looked_up(cache: CacheCounts | None) -> tuple[int, int]:
    return (0, 0) if cache is None else (cache.hits + cache.joined, cache.hits + cache.joined + cache.misses)


def make_watch(watch: str, clock: Callable[[], float], trust: Trust = ANY) -> Watch | None:
    """`watch` as in [autopilot]. Raises ConfigError for a file that is no detector of this version."""
    if watch == "off":
        return None
    return Watch(clock, Charts if watch == "charts" else _learnt(watch, trust))


def _learnt(path: str, trust: Trust) -> Callable[[], Detector]:
    """One session for all models: it is asked from the loop, a few dozen microseconds each time."""
    import numpy as np

    try:
        network = read_network(path, trust)
    except ModelError as error:
        raise ConfigError(f"watch: {error}; give off, charts, or a network that was trained for it", "watch") from None
    properties = network.metadata
    known = properties.get("dlproxy.features", "")
    if known != ",".join(NAMES) or properties.get("dlproxy.span") != str(SPAN):
        raise ConfigError(
            f"watch = '{path}' was trained on other features than this version has ({known or 'it names none'}); train it "
            "anew: dlproxy learn train telemetry-autoencoder",
            "watch",
        )

    def score(windows: Sequence[Sequence[float]]) -> float:
        array = np.asarray(windows, np.float32).reshape(1, SPAN, len(NAMES))
        return float(network.run([array])[0][0])

    checked: Score = score
    return partial(Learnt, checked)
