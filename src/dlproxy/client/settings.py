"""What may be said about a client when it is made. Read by the other files of this folder."""

from msgspec import Struct

from dlproxy.instance.remote.settings import RemoteSettings


class ClientSettings(Struct, frozen=True, kw_only=True):
    """`connections`: over HTTP at most so many at a time; a call beyond them waits for one.

    `timeout_s`: of calls that name none, and of each part of an answer after the first. `retry_budget`: second tries as a share
    of first ones, 0 for none.
    """

    remote: RemoteSettings
    connections: int
    timeout_s: float
    retry_budget: float
