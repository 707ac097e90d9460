"""Whether somebody may do something: the one question that every door asks. Not aware of: who proves what."""

from dlproxy.message import Failure, FailureKind, InferenceError, Principal, Scope

HEALTH = frozenset(
    (
        *(b"/v2/health/live", b"/v2/health/ready", b"/grpc.health.v1.Health/Check", b"/grpc.health.v1.Health/Watch"),
        *(b"/inference.GRPCInferenceService/ServerLive", b"/inference.GRPCInferenceService/ServerReady"),
    )
)
"""What load balancers ask, and everybody may."""


def demand(principal: Principal, scope: Scope, model: str = "") -> None:
    """Raises InferenceError FORBIDDEN."""
    grant = principal.grant
    if grant is None or grant.allows(scope, model):
        return
    who = f"'{principal.name}'" if principal.name else "a client without an API key"
    about = f" with model '{model}'" if model and scope in grant.scopes else ""
    raise InferenceError(Failure(FailureKind.FORBIDDEN, f"{who} may not do this{about}: the scope '{scope}' is needed"))
