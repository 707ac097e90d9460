"""What the server and the process that holds its Ray client say to each other: small MessagePack frames.

Called by cluster.py and broker.py. Not aware of: models, batches, sockets.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct


class Demand(Struct, frozen=True, array_like=True):
    """What one actor takes of its node. `strategy`: Ray's, SPREAD or DEFAULT, or STRICT_SPREAD or STRICT_PACK of a placement
    group called `group` of `bundles` such demands, in which the actor has number `bundle`.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    resources: Mapping[str, float] = {}
    strategy: str = "SPREAD"
    group: str = ""
    bundles: int = 0
    bundle: int = 0

    def amounts(self) -> dict[str, float]:
        """By Ray's names, without what is zero."""
        return {name: amount for name, amount in {"CPU": self.cpus, "GPU": self.gpus, **self.resources}.items() if amount}


class Node(Struct, frozen=True, array_like=True):
    """A living node. `leaves_at`: seconds since the epoch at which it will be gone; 0: nobody says when; None: it stays."""

    name: str
    host: str
    resources: Mapping[str, float]
    leaves_at: float | None = None


class Join(Struct, tag="join", array_like=True):
    """The first order: HOST:PORT, "auto", or "local": a cluster of our own with so many cores. Answered by Joined or Apart."""

    address: str
    cores: int


class Place(Struct, tag="place", array_like=True):
    """Start actor `number`, which talks to whoever knows `token`; answered by Placed, at some time, or Ended."""

    number: int
    name: str
    token: bytes
    demand: Demand


class End(Struct, tag="end", array_like=True):
    """Kill the actor, wherever it is. Not answered."""

    number: int


class Disband(Struct, tag="disband", array_like=True):
    """Remove a placement group, if there is one. Not answered."""

    group: str


class Joined(Struct, tag="joined", array_like=True):
    """The cluster can be used. `folder`: of one that was started for us, and ends with us; else empty."""

    folder: str


class Apart(Struct, tag="apart", array_like=True):
    """The cluster cannot be used; the process ends."""

    reason: str


class Nodes(Struct, tag="nodes", array_like=True):
    """All nodes that live, whenever that has changed."""

    nodes: Sequence[Node]


class Placed(Struct, tag="placed", array_like=True):
    """Actor `number` listens there. `version`: of dlproxy."""

    number: int
    host: str
    port: int
    node: str
    version: str


class Ended(Struct, tag="ended", array_like=True):
    """Actor `number` is gone, or was never there, in Ray's words."""

    number: int
    reason: str


Order = Join | Place | End | Disband
Report = Joined | Apart | Nodes | Placed | Ended
