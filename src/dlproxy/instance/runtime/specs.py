"""What a worker process shall load, as plain data that crosses to it instead of a pickle.

Written by fleet/processes.py, read by instance/process/worker.py. Not aware of: processes, batches.
"""

from importlib import import_module
from typing import Any

from msgspec import Struct

from dlproxy.instance.runtime import ModelError, Runtime
from dlproxy.message import Signature


class PythonSpec(Struct, frozen=True):
    """A class or function `module:name` that, called with `options` by keyword, gives a Runtime.

    For a model's file that is `dlproxy.instance.runtime.formats:open_runtime`. Options are what JSON can say.
    """

    target: str
    options: dict[str, Any] = {}


def load(spec: PythonSpec, **more: Any) -> Runtime:
    """Import the target and call it, with `more` options. Raises ModelError, or what the model's own code raises."""
    module_name, _, name = spec.target.partition(":")
    if not module_name or not name:
        raise ModelError(f"{spec.target!r} names no Python object; write it like package.module:Class")
    try:
        target: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ModelError(f"{spec.target}: {error}; is its folder on the Python path?") from error
    for part in name.split("."):
        if not hasattr(target, part):
            raise ModelError(f"{spec.target}: {target.__name__} has no {part!r}")
        target = getattr(target, part)
    return checked(target(**spec.options, **more), spec.target)


def checked(runtime: Runtime, source: str) -> Runtime:
    """Raises ModelError if what `source` gave is no runtime."""
    if not isinstance(getattr(runtime, "signature", None), Signature) or not callable(getattr(runtime, "run", None)):
        raise ModelError(f"{source} gave a {type(runtime).__name__}, which lacks a Signature or a run method")
    return runtime
