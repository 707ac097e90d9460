"""What somebody with a certificate, a token or a Unix account may do: the rules of [grants].

Called by desk.py. Not aware of: how anything is proven.
"""

from collections.abc import Mapping

from dlproxy.config import ConfigError
from dlproxy.config.security import GrantConfig
from dlproxy.message import Grant, Principal, Quota, Scope, fits
from dlproxy.policy.quota import quota_of

KINDS = ("cert", "token", "unix")
NOTHING = Grant(frozenset(), ())
SCOPES: tuple[Scope, ...] = ("infer", "read", "metrics", "admin")


class Rules:
    """The first rule whose `who` fits holds; whom none fits may do nothing."""

    def __init__(self, grants: Mapping[str, GrantConfig]) -> None:
        """Raises ConfigError."""
        self._rules: list[tuple[str, str, Grant, str, Quota | None]] = []
        for rule, config in grants.items():
            kind, _, pattern = config.who.partition(":")
            if kind not in KINDS or not pattern:
                kinds = ", ".join(f"{kind}:NAME" for kind in KINDS)
                raise ConfigError(f"[grants.{rule}] who = {config.who!r} is not understood; it is one of {kinds}", "who")
            unknown = sorted(set(config.scopes) - set(SCOPES))
            if unknown:
                raise ConfigError(f"[grants.{rule}] there is no scope '{unknown[0]}'; scopes are {', '.join(SCOPES)}", "scopes")
            scopes = frozenset(scope for scope in SCOPES if scope in (config.scopes or SCOPES[:1]))
            try:
                quota = quota_of(config.requests_per_s, config.rows_per_s, config.burst_s, config.concurrent)
            except ValueError as error:
                raise ConfigError(f"[grants.{rule}] {error}, or 0 for no limit") from None
            self._rules.append((kind, pattern, Grant(scopes, tuple(config.models) or ("*",)), config.tenant, quota))

    def principal(self, kind: str, name: str, scopes: frozenset[str] | None = None) -> Principal:
        """`scopes`: what a token says that it is for."""
        for one, pattern, grant, tenant, quota in self._rules:
            if one == kind and fits(pattern, name):
                if scopes is not None:
                    grant = Grant(frozenset(scope for scope in grant.scopes if scope in scopes), grant.models)
                return Principal(f"{kind}:{name}", tenant, grant, quota)
        return Principal(f"{kind}:{name[:100]}", grant=NOTHING)
