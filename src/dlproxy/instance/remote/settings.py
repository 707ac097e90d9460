"""What an operator may say about an upstream, beside its address. Read by every other file of this folder."""

from collections.abc import Mapping

from msgspec import Struct

BATCHED_CAPACITY = 2  # one batch computes there while the next is on its way: one alone leaves the model idle for a round trip
SINGLE_CAPACITY = 8  # single requests under way to an upstream that takes no batches: its own queue must not run dry

STREAM_CAPACITY = 256  # answers in parts under way to an upstream, as vLLM has by default: each takes as long as its reader


class RemoteSettings(Struct, frozen=True, kw_only=True):
    """Seconds and bytes. `capacity`: batches under way at a time; 0: 2, or 8 where the upstream takes none, 256 if it streams.

    `batched`, `binary`: whether rows may be gathered and tensors sent as binary; None for what the upstream says of itself.
    `fall`: failed checks in a row that take it out of service (as HAProxy's), if it is not plainly gone. `ca_file`: PEM of
    the authorities to trust, empty for the system's. `cert_file`: PEM of the certificate to show, with its chain; its private
    key may stand there or in `key_file`. `verify_tls` False takes any certificate: for tests only. gRPC is always binary, and
    always verifies. `hop`: the id of this node that goes with every batch; empty: nothing is told of where they came through.
    `zone`: where this node is, empty for not known.
    """

    capacity: int = 0
    connect_timeout_s: float = 2.0
    response_timeout_s: float = 60.0  # nginx's proxy_read_timeout
    max_reply_bytes: int = 256 * 1024 * 1024
    check_interval_s: float = 5.0  # nginx's and Traefik's default lies between 5 and 30 s; HAProxy's is 2 s
    check_timeout_s: float = 2.0
    recheck_s: float = 0.1  # after an error, and the first of the steps by which reconnecting backs off
    fall: int = 2
    batched: bool | None = None
    binary: bool | None = None
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    verify_tls: bool = True
    headers: Mapping[str, str] = {}
    hop: str = ""
    zone: str = ""

    def slots(self, *, batched: bool, streams: bool = False) -> int:
        """Batches under way at a time."""
        return self.capacity or (BATCHED_CAPACITY if batched else STREAM_CAPACITY if streams else SINGLE_CAPACITY)
