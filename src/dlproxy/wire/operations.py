"""What operators can have done with models, whichever door they come by: the control port, the repository routes of protocols.

Carried out by serve/operations.py. Not aware of: HTTP.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dlproxy.policy.planner import VersionState


class Operations(Protocol):
    """Called on the event loop."""

    def states(self) -> Sequence[VersionState]:
        """Every version that is wanted or there."""
        ...

    async def act(self, name: str, action: str, arguments: Mapping[str, Any]) -> None:
        """Do it, and return once it is done. Cancelling gives up waiting, not what is being done.

        Raises ConfigError for what makes no sense, InferenceError NOT_FOUND for a model or an action that there is not, and
        ModelError for what could not be loaded.
        """
        ...


class Pilots(Protocol):
    """The autopilot, as operators see it. Called on the event loop. `name`: of one model, else of all; raises InferenceError if
    it is not served.
    """

    def states(self, name: str = "") -> list[dict[str, Any]]:
        """JSON: what it does with each model; of one with all that it knows."""
        ...

    def pause(self, name: str = "") -> None:
        """It decides nothing any more."""
        ...

    def resume(self, name: str = "") -> None: ...

    async def challenge(self, challenger: str, name: str = "") -> None:
        """This policy, or agent's file, is asked beside what tunes it. Raises ConfigError, ModelError."""
        ...


class ResultCaches(Protocol):
    """The answers that are remembered, as operators see them. Called on the event loop. `name`: of one model, else of all."""

    def states(self, name: str = "") -> list[dict[str, Any]]:
        """JSON of each version that remembers some: what it keeps, and what that did."""
        ...

    def clear(self, name: str = "") -> int:
        """Forget them; returns how many there were."""
        ...


class ModelRepository(Protocol):
    """What clients of the inference port may have done: load by name what lies in the server's repository, and no more.

    All that wait raise InferenceError, also where the server does not allow it. `explicit`: it does.
    """

    explicit: bool

    def states(self) -> Sequence[VersionState]:
        """Every version that is wanted or there."""
        ...

    async def index(self) -> Sequence[VersionState]:
        """Every version that lies there or is served."""
        ...

    async def load(self, name: str, overrides: Mapping[str, Any] | None) -> None:
        """Serve what the repository has of it now; `overrides` as Triton's model configuration. Returns when it is up."""
        ...

    async def unload(self, name: str) -> None:
        """Returns when it is gone."""
        ...
