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
