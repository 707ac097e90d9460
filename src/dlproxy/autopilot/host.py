"""The autopilot of a process: one task looks at every model that it tunes; operators pause it, ask it, and read its log.

Held by serve/models.py, asked by the control port. Not aware of: what turns knobs, HTTP.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from dlproxy.autopilot.agents import Agents, MakeSide
from dlproxy.autopilot.flight import LOOK_S, Flight, Tuned
from dlproxy.autopilot.records import Records
from dlproxy.autopilot.shares import SharedTurns
from dlproxy.autopilot.watching import Watch
from dlproxy.config import ConfigError
from dlproxy.cores import usable_cores
from dlproxy.message import Failure, FailureKind, InferenceError
from dlproxy.policy.tuning.protocol import KnobPolicy
from dlproxy.policy.tuning.rules import Rules
from dlproxy.policy.tuning.window import Window

log = logging.getLogger(__name__)

NEWEST = 20  # decisions that the overview has of a model
FILES_EVERY = round(10.0 / LOOK_S)  # looks: so often agents' files are looked at


class Autopilot:
    """Everything happens on one event loop. `make_policy`: of each model its own; or `agents` make it. `record`: the folder
    where what is seen is written down, if any. `watch`: what tells that something is unusual with a model, tuned or not.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        make_policy: Callable[[], KnobPolicy] = Rules,
        *,
        agents: Agents | None = None,
        record: Path | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._clock = clock
        self._watch = watch
        self._make_policy = make_policy if agents is None else agents.make
        self._agents = agents
        self._record = record
        self._looks = 0
        self._reading: asyncio.Task[None] | None = None
        self._flights: dict[Tuned, Flight] = {}
        self._task: asyncio.Task[None] | None = None
        self._paused = False  # all, those to come included
        self._shared = SharedTurns(usable_cores, clock)

    # Models

    def add(self, tuned: Tuned) -> Flight:
        """It is looked at from now on, if it is to be tuned."""
        records = None if self._record is None else Records(self._record, f"{tuned.name}-{tuned.version}")
        flight = self._flights[tuned] = Flight(tuned, self._make_policy, self._clock, records)
        if self._paused:
            flight.pause()
        if self._watch is not None:
            self._watch.add(tuned, flight)
        self.look_on()
        return flight

    def remove(self, tuned: Tuned) -> None:
        """Nothing of it is turned any more."""
        flight = self._flights.pop(tuned, None)
        if flight is not None:
            if self._watch is not None:
                self._watch.remove(tuned)
            flight.stop()
            self._shared.forget(flight)
        self.look_on()

    def look_on(self) -> None:
        """There is a task while there is a pilot. Called whenever there may be one more or less."""
        needed = any(flight.pilot is not None for flight in self._flights.values())
        if needed and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._look(), name="dlproxy-autopilot")
        elif not needed and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            now = self._clock()
            self._looks += 1
            if self._agents is not None and self._looks % FILES_EVERY == 0 and (self._reading is None or self._reading.done()):
                self._reading = asyncio.get_running_loop().create_task(self._read_again(self._agents), name="dlproxy-agents")
            windows = {}
            rests = self._shared.trying
            for flight in list(self._flights.values()):
                try:
                    window = flight.look(now, rests=rests)
                except Exception as error:  # of one model: the others go on
                    flight.fail(error)
                else:
                    if window is not None:
                        windows[flight] = window
            if windows and not self._paused:
                self._look_at_all(windows, now)

    def _look_at_all(self, windows: Mapping[Flight, Window], now: float) -> None:
        unusual = next((flight for flight in windows if flight.unusual), None)
        try:
            if unusual is None:
                self._shared.look(windows, now)
            else:
                self._shared.hold(f"something is unusual with model {unusual.tuned.name}", now)
        except Exception:
            log.exception("the autopilot could not share out the cores, and gives all models alike from now on")
            self._shared.end()

    async def _read_again(self, agents: Agents) -> None:
        """Files of agents that are others than they were."""
        for challenger in await asyncio.to_thread(agents.changed):
            self._enter(challenger, list(self._flights.values()))
            agents.enter(challenger)

    def _enter(self, challenger: MakeSide | None, flights: Sequence[Flight]) -> None:
        for flight in flights:
            flight.challenge(None if challenger is None else challenger())

    # Operators

    async def challenge(self, challenger: str, name: str = "") -> None:
        """This policy or agent's file challenges what tunes the model (empty: all, also those to come); empty: nothing does.

        Raises ConfigError, ModelError, InferenceError.
        """
        flights, agents = self._found(name), self._agents
        if agents is None:
            raise ConfigError("what tunes these models takes no challenger")
        made = await asyncio.to_thread(agents.read, challenger)
        self._enter(made, flights)
        if not name:
            agents.enter(made)

    def states(self, name: str = "") -> list[dict[str, Any]]:
        """JSON of every model that is served; of one with its whole log and what it knows. Raises InferenceError."""
        flights = self._found(name)
        if not name:
            return [flight.shown(most=NEWEST) for flight in flights]
        return [
            {**flight.shown(most=len(flight.log)), "explanation": msgspec.to_builtins(flight.explanation())}
            for flight in flights
        ]

    def pause(self, name: str = "") -> None:
        """Decide nothing of this model (empty: of any). Raises InferenceError."""
        for flight in self._found(name):
            flight.pause()
        self._paused = self._paused or not name

    def resume(self, name: str = "") -> None:
        """What is unusual now is usual from now on. Raises InferenceError."""
        for flight in self._found(name):
            if self._watch is not None:
                self._watch.accept(flight.tuned)
            flight.resume()
        self._paused = self._paused and bool(name)

    def _found(self, name: str) -> list[Flight]:
        found = [flight for flight in self._flights.values() if name in ("", flight.tuned.name)]
        if name and not found:
            message = f"there is no model '{name}' that the autopilot could tune"
            raise InferenceError(Failure(FailureKind.NOT_FOUND, message))
        return found
