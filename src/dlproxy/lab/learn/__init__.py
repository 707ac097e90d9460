"""Networks that are trained here: reference ones, and those that forecast load, watch telemetry and turn knobs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlproxy.lab.learn.agent.environment import ProxyEnv

__all__ = ["ProxyEnv"]


def __getattr__(name: str) -> Any:
    """ProxyEnv needs gymnasium, which not everybody has who imports this package."""
    if name != "ProxyEnv":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dlproxy.lab.learn.agent.environment import ProxyEnv

    return ProxyEnv
