"""What the keeper of gateways and a gateway say to each other over their socket: small MessagePack frames.

Called by process.py and gateway.py. Not aware of: processes, event loops, requests.
"""

from msgspec import Struct

from dlproxy.config import Config, ModelConfig
from dlproxy.fleet.lent import Lent
from dlproxy.instance.integrity import Trust
from dlproxy.policy.quota import Charge

Sockets = dict[str, int]
"""Descriptors by the knobs of their ports."""


class Begin(Struct, tag="begin", array_like=True):
    """The first order: serve, and say Ready or Failed. `places`: what to listen on, of every gateway; `control`: the same for
    its own control port. `follows`: serve what the store has, not what the configuration names. `slot` of `slots`: this process
    among all that may hold leases of workers.
    """

    config: Config
    number: int
    places: list[Sockets]
    control: int
    follows: bool
    slot: int
    slots: int


class Adopt(Struct, tag="adopt", array_like=True):
    """Accept connections of this place, too, whose gateway has gone; with `back` no longer."""

    place: int
    back: bool = False


class Follow(Struct, tag="follow", array_like=True):
    """Look at what is wanted now, and say Followed when it is so, or was tried."""

    number: int


class Reload(Struct, tag="reload", array_like=True):
    """The configuration is this one now; answered by Followed."""

    config: Config
    number: int


class Drain(Struct, tag="drain", array_like=True):
    """Finish what is under way, and end."""


class Charged(Struct, tag="charged", array_like=True):
    """Both ways: what tenants and keys were charged elsewhere since this was told last."""

    charges: list[Charge]


class Ready(Struct, tag="ready", array_like=True):
    """It serves. `lines`: what was found out about its models, for whoever starts it."""

    lines: list[str]


class Failed(Struct, tag="failed", array_like=True):
    """It cannot serve, and ends."""

    reason: str


class Counted(Struct, tag="counted", array_like=True):
    """Its metrics now: every few seconds, and once more when everything is answered, before it ends."""

    page: str


class Followed(Struct, tag="followed", array_like=True):
    """What was ordered under this number is done. `problem`: what stood against it; empty: nothing."""

    number: int
    problem: str = ""


class Borrow(Struct, tag="borrow", array_like=True):
    """It wants the worker processes of this model, which all gateways share; answered by Loan or NoLoan."""

    number: int
    name: str
    config: ModelConfig
    trust: Trust
    graphs: str


class GiveBack(Struct, tag="give_back", array_like=True):
    """It uses this loan no more."""

    loan: int


class Loan(Struct, tag="loan", array_like=True):
    """What was asked for under this number."""

    number: int
    lent: Lent


class NoLoan(Struct, tag="no_loan", array_like=True):
    """There are no such workers."""

    number: int
    reason: str


Order = Begin | Adopt | Follow | Reload | Drain | Charged | Loan | NoLoan
Report = Ready | Failed | Followed | Counted | Charged | Borrow | GiveBack
