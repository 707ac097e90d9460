"""The table's rows for who may connect, and how that is proven. Taken in by knobs.py; not aware of: models, sockets."""

from typing import Annotated, Literal

from msgspec import Struct

from dlproxy.config.limits import BurstS, Concurrent, RequestsPerS, RowsPerS
from dlproxy.config.traits import Only
from dlproxy.config.traits import knob as _knob

_WITH_TLS = (Only("cert", but=("",)),)
_WITH_TOKENS = (Only("jwks", but=("",)),)


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
    """[auth]: how clients prove who they are. Where nothing is said here, everybody may do everything."""

    keys: Annotated[
        str, _knob("file of API keys, which `dlproxy keys` writes; changes hold within a second; empty: there are none")
    ] = ""
    jwks: Annotated[
        str,
        _knob("file or URL of the public keys of those who sign tokens (a JSON Web Key Set); empty: no tokens are taken"),
    ] = ""
    jwt_issuer: Annotated[str, _knob("issuer that a token must have (iss)", only=_WITH_TOKENS)] = ""
    jwt_audience: Annotated[str, _knob("audience that a token must be for (aud)", only=_WITH_TOKENS)] = ""
    jwt_algorithms: Annotated[
        list[str], _knob("how tokens may be signed, whatever they say themselves; empty: RS256, ES256", only=_WITH_TOKENS)
    ] = []
    anonymous: Annotated[
        Literal["none", "metrics", "infer"],
        _knob("what clients may do that prove nothing; metrics: see metrics; infer: that, ask models and see which there are"),
    ] = "none"

    @property
    def asks(self) -> bool:
        """Whether anybody has to prove anything; certificates ask by themselves."""
        return bool(self.keys or self.jwks)


class GrantConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[grants.NAME]: what somebody may do who has shown a certificate, a token or a Unix account. The first that fits holds.

    Its quota is for each one whom it fits.
    """

    who: Annotated[
        str, _knob("cert:NAME by the common name, token:NAME by the subject, unix:NUMBER by the user id; * is any text")
    ]
    scopes: Annotated[list[str], _knob("what for: infer, read, metrics, admin; empty: infer")] = []
    models: Annotated[list[str], _knob("with which models: names, or patterns in which * is any text; empty: all")] = []
    tenant: Annotated[str, _knob("whose quota and share the requests use; empty: as each request says")] = ""
    requests_per_s: RequestsPerS = 0.0
    rows_per_s: RowsPerS = 0.0
    burst_s: BurstS = 1.0
    concurrent: Concurrent = 0


class IntegrityConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[integrity]: which models may be loaded, and what decrypts them."""

    trusted: Annotated[
        list[str],
        _knob(
            "files of the public keys that models are signed with; every model then needs a manifest by one of them "
            "(`dlproxy models sign`); empty: what lies there is loaded"
        ),
    ] = []
    master_key: Annotated[
        str,
        _knob(
            "where the key is that decrypts models (`dlproxy models encrypt`): file:PATH, env:NAME or command:WORDS, whose "
            "output it is; empty: there is none"
        ),
    ] = ""
    pickle: Annotated[
        Literal["refuse", "allow"],
        _knob(
            "models that can run code when they are read: what torch.save writes, pickles and compiled code in .pt2, lambdas "
            "in .keras; allow: whoever wrote them can do anything here"
        ),
    ] = "refuse"
