"""What operators do by the control port, told to the dashboard once it is done: they stand before what does it.

Put together by serve/server.py. Not aware of: who an operator is, what becomes of what they want.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from dlproxy.policy.planner import VersionState
from dlproxy.wire.dashboard.events import Kind
from dlproxy.wire.operations import Operations, Pilots

Tell: TypeAlias = Callable[[str, Kind, str], None]
"""A model's name (empty: of all of them), and what was done, in words."""

LONGEST = 300  # letters
KNOBS = ("set", "scale", "pin", "unpin")
BY_THEMSELVES = ("load", "unload")  # whose versions come and go, which is told


class ToldOperations:
    """An Operations."""

    def __init__(self, inner: Operations, tell: Tell) -> None:
        self._inner = inner
        self._tell = tell

    def states(self) -> Sequence[VersionState]:
        return self._inner.states()

    async def act(self, name: str, action: str, arguments: Mapping[str, Any]) -> None:
        await self._inner.act(name, action, arguments)
        if action not in BY_THEMSELVES:
            self._tell(name, "knobs" if action in KNOBS else "canary", f"an operator: {_in_words(action, arguments)}")


class ToldPilots:
    """A Pilots."""

    def __init__(self, inner: Pilots, tell: Tell) -> None:
        self._inner = inner
        self._tell = tell
        self.states = inner.states

    def pause(self, name: str = "") -> None:
        self._inner.pause(name)
        self._tell(name, "autopilot", "an operator pauses the autopilot")

    def resume(self, name: str = "") -> None:
        self._inner.resume(name)
        self._tell(name, "autopilot", "an operator has the autopilot go on")

    async def challenge(self, challenger: str, name: str = "") -> None:
        await self._inner.challenge(challenger, name)
        self._tell(
            name, "autopilot", f"an operator has it challenged by {challenger}" if challenger else "nothing challenges it"
        )


def _in_words(action: str, arguments: Mapping[str, Any]) -> str:
    told: list[str] = []
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            told += [f"{key} = {each}" for key, each in value.items()]
        elif isinstance(value, list):
            told += map(str, value)
        elif value not in ("", None):
            told.append(f"{name} {value}")
    return f"{action} {', '.join(told)}".rstrip()[:LONGEST]
