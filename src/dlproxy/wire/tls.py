"""What the ports show and ask for in a TLS handshake, and certificates that are renewed while they serve.

Made by serve/server.py. Not aware of: protocols above TLS.
"""

import asyncio
import logging
import os
import ssl
from functools import partial

from dlproxy.config import ConfigError
from dlproxy.config.security import TlsConfig

log = logging.getLogger(__name__)

LOOK_S = 1.0  # how often the files are looked at
HTTP, GRPC = "http/1.1", "h2"  # what ALPN calls the protocols above

_MODES = {"off": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


class Certificates:
    """Of one server. New files hold for new connections; those that cannot be used are logged, and change nothing."""

    def __init__(self, config: TlsConfig) -> None:
        """Raises ConfigError for files that cannot be used."""
        self._config = config
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._renewed: dict[str, ssl.SSLContext] = {}
        self._files = [file for file in (config.cert, config.key, config.client_ca) if file]
        self._seen = self._state()
        self._loaded()
        self._next: asyncio.TimerHandle | None = None

    def context(self, protocol: str) -> ssl.SSLContext:
        """For a port that speaks this protocol."""
        if protocol not in self._contexts:
            self._contexts[protocol] = self._loaded(protocol)
            self._contexts[protocol].sni_callback = partial(self._begin, protocol)  # called whatever the client names
        return self._contexts[protocol]

    def _begin(self, protocol: str, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        renewed = self._renewed.get(protocol)
        if renewed is not None:
            connection.context = renewed

    def watch(self) -> None:
        """Follow the files until `close`."""
        self._look()
        self._next = asyncio.get_running_loop().call_later(LOOK_S, self.watch)

    def close(self) -> None:
        if self._next is not None:
            self._next.cancel()

    def _look(self) -> None:
        state = self._state()
        if state == self._seen:
            return
        self._seen = state
        try:
            # New ones: authorities can be added to a context, but not be taken away.
            self._renewed = {protocol: self._loaded(protocol) for protocol in self._contexts}
            log.info("the certificate %s is renewed", self._config.cert)
        except ConfigError as error:
            log.error("the certificate stays as it was: %s", error)

    def _loaded(self, protocol: str = HTTP) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")  # of TLS 1.2; those of 1.3 are all right
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols([protocol])
        context.verify_mode = _MODES[self._config.clients]
        if self._config.clients != "off":  # whoever resumes a session does not prove who they are: their proof may have expired
            context.minimum_version = ssl.TLSVersion.TLSv1_3  # sessions of 1.2 cannot be left out
            context.num_tickets = 0
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        config = self._config
        try:
            context.load_cert_chain(config.cert, config.key or None, password=_no_password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            named = config.cert if not config.key else f"{config.cert} with {config.key}"
            raise ConfigError(f"[tls] {named} cannot be used: {_why(error)}", "cert") from None
        if config.clients != "off":
            try:
                context.load_verify_locations(config.client_ca)
            except OSError as error:
                raise ConfigError(f"[tls] client_ca {config.client_ca!r} cannot be used: {_why(error)}", "client_ca") from None

    def _state(self) -> list[tuple[int, int, int]]:
        found = []
        for file in self._files:
            try:
                state = os.stat(file)
                found.append((state.st_mtime_ns, state.st_ino, state.st_size))
            except OSError:
                found.append((0, 0, 0))
        return found


def _no_password() -> bytes:
    raise ValueError("the private key has a password, which is not supported")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or str(error)).lower().replace("_", " ")
        return "it is no PEM file with a certificate and its key" if reason in ("no start line", "pem lib") else reason
    return getattr(error, "strerror", None) or str(error)
