"""Whether somebody may do something, and see a model: the questions that every door asks. Not aware of: who proves what."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

from dlproxy.message import Failure, FailureKind, InferenceError, Principal, Scope

HEALTH = frozenset(
    (
        *(b"/v2/health/live", b"/v2/health/ready", b"/grpc.health.v1.Health/Check", b"/grpc.health.v1.Health/Watch"),
        *(b"/inference.GRPCInferenceService/ServerLive", b"/inference.GRPCInferenceService/ServerReady"),
    )
)
"""What load balancers ask, and everybody may."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Model = TypeVar("Model", bound=_Named)


def demand(principal: Principal, scope: Scope, model: str | None = "") -> None:
    """Raises InferenceError FORBIDDEN, and says the same whether there is such a model or not: ask before it is looked for.

    `model`: empty for what is about no single one: who changes that must be allowed all; what tells of several leaves out
    those that are not `seen`. None: whoever answers will ask for the one that is named later.
    """
    grant = principal.grant
    if grant is None:
        return
    to_all = scope == "admin" and model == ""
    if grant.allows(scope, model or "") and not (to_all and "*" not in grant.models):
        return
    who = f"'{principal.name}'" if principal.name else "a client without an API key"
    about = f" with model '{model}'" if model and grant.allows(scope) else " with all models" if to_all else ""
    raise InferenceError(Failure(FailureKind.FORBIDDEN, f"{who} may not do this{about}: the scope '{scope}' is needed"))


def seen(models: Iterable[Model], principal: Principal, scope: Scope = "read") -> list[Model]:
    """Those of them that it may know of."""
    grant = principal.grant
    return list(models) if grant is None else [model for model in models if grant.allows(scope, model.name)]
