"""The table's rows for who may connect, and how that is proven. Taken in by knobs.py; not aware of: models, sockets."""

from typing import Annotated, Literal

from msgspec import Struct

from dlproxy.config.traits import Only
from dlproxy.config.traits import knob as _knob

_WITH_TLS = (Only("cert", but=("",)),)


class TlsConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[tls]: the server's certificate, and whose certificates clients must show."""

    cert: Annotated[
        str,
        _knob(
            "file of the certificate that all ports show, with its chain (PEM); when it changes, new connections get the new "
            "one; empty: no TLS"
        ),
    ] = ""
    key: Annotated[str, _knob("file of its private key (PEM); empty: it stands in the certificate's", only=_WITH_TLS)] = ""
    clients: Annotated[
        Literal["off", "optional", "required"],
        _knob("whether clients show certificates of their own", only=_WITH_TLS),
    ] = "off"
    client_ca: Annotated[
        str,
        _knob("file of the authorities that sign clients' certificates (PEM)", only=(Only("clients", but=("off",)),)),
    ] = ""


class AuthConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[auth]: who may ask. Without `keys`, everybody may do everything."""

    keys: Annotated[
        str, _knob("file of API keys, which `dlproxy keys` writes; changes hold within a second; empty: none are asked for")
    ] = ""
    anonymous: Annotated[
        Literal["none", "metrics", "infer"],
        _knob(
            "what clients without a key may do; metrics: see metrics; infer: that, ask models and see which there are",
            only=(Only("keys", but=("",)),),
        ),
    ] = "none"
