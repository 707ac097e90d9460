"""Handlers of what is for operators, whose answers are told to the audit log. Used by http/routes.py and grpc/services.py.

Not aware of: routes, what a handler does.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from dlproxy.wire.http.exchange import Exchange, what_of


def audited(handler: Callable[..., None]) -> Callable[..., None]:
    """The same, but its answer is told."""

    def handle(exchange: Exchange, **groups: str) -> None:
        if not isinstance(exchange, _Told):  # it may come twice, if its model was to be loaded first
            exchange.__class__ = _telling(type(exchange))  # type: ignore[arg-type]  # mypy: a class with __slots__ does not hash
        handler(exchange, **groups)

    return handle


class _Told(Exchange):
    """Whose answer is told."""

    __slots__ = ()


@cache
def _telling(kind: type[Exchange]) -> type[Exchange]:
    class Telling(_Told, kind):  # type: ignore[misc, valid-type]
        __slots__ = ()

        def reply(self, status: int, *arguments: Any, **more: Any) -> None:
            super().reply(status, *arguments, **more)
            connection = self.connection
            what = what_of(self.method, self.target)
            connection.server.audit.deed(self.principal, connection.address, what, f"answered {status}")

    return Telling
