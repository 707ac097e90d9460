"""Whose certificates are believed, and which one is shown. Called by http_channel.py, grpc_channel.py and the Python client.

Not aware of: connections.
"""

import ssl
from pathlib import Path

from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.runtime import ModelError

BUNDLE = "ca-certificates.crt"  # in the folder of authorities on Debian, Alpine and others: all of them in one file


def context_of(settings: RemoteSettings) -> ssl.SSLContext:
    """Raises ModelError for authorities, and a certificate of our own, that cannot be loaded."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file or None)
    except OSError as error:  # ssl.SSLError is one
        raise ModelError(f"the authorities of {settings.ca_file} cannot be loaded: {error}") from None
    if settings.cert_file:
        try:
            context.load_cert_chain(settings.cert_file, settings.key_file or None, password=_no_password)
        except (OSError, ValueError) as error:
            named = f"{settings.cert_file} with {settings.key_file}" if settings.key_file else settings.cert_file
            raise ModelError(f"the certificate {named} cannot be used: {error}") from None
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


def shown_of(settings: RemoteSettings) -> tuple[bytes | None, bytes | None]:
    """Private key and certificate to show, as PEM; Nones for none. Raises ModelError as `context_of`."""
    if not settings.cert_file:
        return None, None
    context_of(settings)
    return Path(settings.key_file or settings.cert_file).read_bytes(), Path(settings.cert_file).read_bytes()


def _no_password() -> bytes:
    raise ValueError("its private key has a password, which is not supported")
