"""Where the instances of one model run: on the event loop, on threads, in worker processes, on other servers.

start.py chooses. Not aware of: lanes, requests, protocols.
"""

from typing import TYPE_CHECKING, Protocol

from dlproxy.instance.trial import Way
from dlproxy.instance.warmup import Calibration
from dlproxy.message import Signature

if TYPE_CHECKING:
    from dlproxy.fleet.roster import Roster


class Fleet(Protocol):
    """The instances of one model, started."""

    signature: Signature
    calibration: Calibration
    run: str
    """As the knob has it, of auto what became of it; upstream for other servers."""
    way: Way
    """Both may change while serving. No threads: what runs elsewhere takes no cores here."""
    most_rows: int | None
    """Rows that no batch may exceed, whatever the knob says."""

    def attach(self, roster: "Roster") -> None:
        """The roster, and through it the driver, hears of every instance from now on, beginning with how each is."""
        ...

    async def scale(self, count: int) -> None:
        """Keep so many. Returns when they are up, or gone. Raises ConfigError, ModelError."""
        ...

    def elsewhere_bytes(self) -> int:
        """What its instances hold of this machine's memory outside of this process. Blocks for a moment."""
        ...

    async def stop(self) -> None:
        """End what the driver has not stopped yet, and let go of the weights."""
        ...

    def describe(self) -> str:
        """Where they run, in words for the start-up report."""
        ...
