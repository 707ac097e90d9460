"""Whose certificates are believed. Called by http_channel.py and grpc_channel.py.

Not aware of: connections.
"""

import ssl
from pathlib import Path

from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.runtime import ModelError

BUNDLE = "ca-certificates.crt"  # in the folder of authorities on Debian, Alpine and others: all of them in one file


def context_of(settings: RemoteSettings) -> ssl.SSLContext:
    """Raises ModelError for authorities that cannot be loaded."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
    except OSError as error:  # ssl.SSLError is one
        raise ModelError(f"the authorities of {settings.ca_file} cannot be loaded: {error}") from None
    if not settings.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def authorities_of(settings: RemoteSettings) -> bytes | None:
    """As PEM; None if the system's are not in one file. Raises ModelError as `context_of`."""
    context_of(settings)
    paths = ssl.get_default_verify_paths()
    files = [settings.ca_file] if settings.ca_file else [paths.cafile, paths.capath and str(Path(paths.capath) / BUNDLE)]
    return next((Path(file).read_bytes() for file in files if file and Path(file).is_file()), None)
