"""The audit log: who changed what, and who was refused, from where, when, and how it ended. One for all ports of a server.

Called by every protocol; where the records go is up to logging (cli/logs.py). Not aware of: files, protocols.
"""

import logging
from collections.abc import Callable
from time import monotonic

from msgspec import Struct

from dlproxy.config.secrets import hidden
from dlproxy.hosts import client_of
from dlproxy.message import ANONYMOUS, Failure, FailureKind, Principal

REFUSALS = (FailureKind.UNAUTHENTICATED, FailureKind.FORBIDDEN, FailureKind.QUOTA)
WINDOW_S = 10.0  # in which refusals that are alike are written once, and then counted
MOST_KINDS = 20  # of refusals in a window; further ones are only counted
MOST_SHOWN = 300  # characters of any text of a client

log = logging.getLogger("dlproxy.audit")


class _Alike(Struct):
    """Refusals of one client for one reason; `more` of them are not written."""

    who: str
    address: str
    outcome: str
    more: int = 0


class Audit:
    """A flood of refusals fills neither disk nor time: of those that are alike, the first is written, then their number."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._began_at = 0.0
        self._window: dict[tuple[str, str, FailureKind], _Alike] = {}
        self._others = 0

    def deed(self, who: Principal, address: str, what: str, outcome: str) -> None:
        """Something that is for operators was done, or failed."""
        _write(_name(who), address, what, outcome)

    def refusal(self, failure: Failure, address: str, what: str, who: Principal = ANONYMOUS) -> None:
        """`what`: the method and path, without what may hold secrets, such as a query."""
        self.flush()
        name, outcome = _name(who), f"refused: {failure.message}"
        key = (name, client_of(address), failure.kind)
        alike = self._window.get(key)
        if alike is not None:
            alike.more += 1
        elif len(self._window) >= MOST_KINDS:
            self._others += 1
        else:
            if not self._window:
                self._began_at = self._clock()
            self._window[key] = _Alike(name, address, outcome)
            _write(name, address, what, outcome)

    def flush(self, *, now: bool = False) -> None:
        """Called now and then: write how many were left out, if it is time. `now`: whether it is or not."""
        if not self._window or not (now or self._clock() - self._began_at >= WINDOW_S):
            return
        window, others = self._window, self._others
        self._window, self._others = {}, 0
        for alike in window.values():
            if alike.more:
                _write(alike.who, alike.address, f"{alike.more} more requests", alike.outcome)
        if others:
            _write("others", "elsewhere", f"{others} more requests", "refused")


def shown(text: str) -> str:
    """A text of a client as it can stand in any log: short, on one line, without control characters and known secrets."""
    text = hidden(text)[:MOST_SHOWN]
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _name(who: Principal) -> str:
    return who.name or "anonymous"


def _write(who: str, address: str, what: str, outcome: str) -> None:
    told = {"who": shown(who), "from": shown(address) or "unix", "what": shown(what), "outcome": shown(outcome)}
    log.info("%(who)s from %(from)s: %(what)s: %(outcome)s", told, extra={"request": told})
