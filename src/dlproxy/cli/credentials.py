"""Who a command is for the server that it asks, and whose certificates it believes: options that commands share.

An API key is no option of its own: other users of a machine see command lines. Not aware of: what is asked.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ssl


class Credentials(NamedTuple):
    """`api_key`: or a token; empty for none. Files: PEM, empty for none."""

    api_key: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    @property
    def tls(self) -> "ssl.SSLContext":
        """For connections to the server. Raises ConfigError."""
        from dlproxy.config import ConfigError
        from dlproxy.instance.remote.settings import RemoteSettings
        from dlproxy.instance.remote.tls import context_of
        from dlproxy.instance.runtime import ModelError

        try:
            return context_of(RemoteSettings(ca_file=self.ca_file, cert_file=self.cert_file, key_file=self.key_file))
        except ModelError as error:
            raise ConfigError(str(error)) from None


def add_credentials(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """`again`: of an action, whose command has them too."""
    group = parser.add_argument_group("who asks")
    default = argparse.SUPPRESS if again else None
    for option, text in (
        ("--api-key-file", "file with the API key or token to send (else the environment variable DLPROXY_API_KEY)"),
        ("--ca", "authorities that sign the server's certificate, PEM (default: this system's)"),
        ("--cert", "certificate to show, with its chain, PEM"),
        ("--key", "its private key, PEM (default: in the certificate's file)"),
    ):
        group.add_argument(option, type=Path, metavar="FILE", default=default, help=text)


def credentials_of(args: argparse.Namespace) -> Credentials:
    """Raises ConfigError."""
    from dlproxy.config.secrets import KEY_VARIABLE, checked_key, read_key

    file = args.api_key_file
    key = os.environ.get(KEY_VARIABLE, "") if file is None else read_key(str(file), "--api-key-file")
    files = [str(path or "") for path in (args.ca, args.cert, args.key)]
    return Credentials(checked_key(key, KEY_VARIABLE) if key else "", *files)
