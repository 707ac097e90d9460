"""dlproxy: a self-tuning inference proxy. The public names are loaded on first use, so that `import dlproxy` stays fast."""

from typing import TYPE_CHECKING, Any

__version__ = "1.0.0"
__all__ = [
    "AsyncClient",
    "Client",
    "ConfigError",
    "Failure",
    "FailureKind",
    "InferenceError",
    "Model",
    "ModelError",
    "Proxy",
    "__version__",
]

if TYPE_CHECKING:
    from dlproxy.client.awaited import AsyncClient
    from dlproxy.client.blocking import Client
    from dlproxy.config import ConfigError
    from dlproxy.instance.runtime import ModelError
    from dlproxy.message import Failure, FailureKind, InferenceError
    from dlproxy.serve.proxy import Model, Proxy

_HOME = {
    "AsyncClient": "dlproxy.client.awaited",
    "Client": "dlproxy.client.blocking",
    "ConfigError": "dlproxy.config",
    "Failure": "dlproxy.message",
    "FailureKind": "dlproxy.message",
    "InferenceError": "dlproxy.message",
    "Model": "dlproxy.serve.proxy",
    "ModelError": "dlproxy.instance.runtime",
    "Proxy": "dlproxy.serve.proxy",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dlproxy' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
