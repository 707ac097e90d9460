"""Models that are Python classes: `my_module:MyModel` or `path/to/file.py:MyModel`.

Called by whatever loads models, and by instance/batch.py to run. Not aware of: frameworks that the class may use.
"""

import asyncio
import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Coroutine, Sequence
from contextlib import nullcontext
from pathlib import Path
from threading import Lock, Thread
from types import ModuleType
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.declared import check_outputs, one_line, signature_of, spec_of, written
from dlproxy.message import Signature, TensorSpec

HOW = (
    'inputs = {"x": "FP32[-1,784]"} and outputs likewise as attributes of the class, '
    "or a method signature(self) that returns both"
)
NO_STREAMS = (
    "predict yields its answer in parts; streams are not served yet, and parts cannot be joined for you, since only the model "
    "knows whether they are more rows, more columns or newer versions: return one complete dict"
)
_TARGET = re.compile(r"(?P<place>.+):(?P<name>[A-Za-z_]\w*)")


class PythonRuntime:
    """One object of the class. `inputs`, `outputs`: the configuration's, for a class that declares none.

    Calls are made one at a time unless the class says `thread_safe = True`: few classes are written for more. The arrays
    that `predict` gets are its own to write to, and those that it gives must not be written to later.
    """

    def __init__(self, path: str, *, inputs: Sequence[TensorSpec] = (), outputs: Sequence[TensorSpec] = ()) -> None:
        self._class = find_class(path)
        self._loop: _Loop | None = None
        self._model = self._made(path)
        self.signature = self._signature(path, inputs, outputs)
        self._input_names = [spec.name for spec in self.signature.inputs]
        self._turn = nullcontext() if getattr(self._model, "thread_safe", False) else Lock()
        self._closed = False

    def run(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """One call of `predict`. Raises RuntimeError for what it raises, ValueError for what it should not have given."""
        batch = {name: array.copy() for name, array in zip(self._input_names, inputs, strict=True)}
        with self._turn:
            try:
                outputs = self._finished(self._model.predict(batch))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # sys.exit() in a model must not end the worker
                raise RuntimeError(f"{self._class.__name__}.predict raised {_located(error, self._class)}") from error
        return check_outputs(self.signature, _arrays(outputs), len(inputs[0]) if inputs[0].shape else 1)

    def close(self) -> None:
        """Call the class's `unload`, if it has one, and stop its event loop. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            if hasattr(self._model, "unload"):
                self._finished(self._model.unload())
        finally:
            if self._loop is not None:
                self._loop.stop()

    def _made(self, path: str) -> Any:
        name = self._class.__name__
        predict = getattr(self._class, "predict", None)
        if not callable(predict):
            raise ModelError(f"{path}: {name} has no method predict(self, batch) that returns a dict of arrays")
        if inspect.isgeneratorfunction(predict) or inspect.isasyncgenfunction(predict):
            raise ModelError(f"{path}: {NO_STREAMS}")
        needed = _needed(self._class)
        if needed:
            raise ModelError(f"{path}: {name}() wants {', '.join(needed)}; dlproxy calls it without arguments")
        step = f"{name}()"
        try:
            model = self._class()
            if hasattr(model, "load"):
                step = f"{name}.load()"
                self._finished(model.load())
        except (Exception, SystemExit) as error:
            raise ModelError(f"{path}: {step} raised {_located(error, self._class)}") from error
        return model

    def _signature(self, path: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Signature:
        model = self._model
        try:
            declared = model.signature() if hasattr(model, "signature") else _attributes(model)
        except (Exception, SystemExit) as error:
            raise ModelError(f"{path}: {self._class.__name__}.signature() raised {_located(error, self._class)}") from error
        if isinstance(declared, Signature):
            declared = ({spec.name: spec for spec in declared.inputs}, {spec.name: spec for spec in declared.outputs})
        if not (isinstance(declared, tuple | list) and len(declared) == 2 and all(isinstance(one, dict) for one in declared)):
            raise ModelError(f"{path}: its signature is {declared!r}; declare {HOW}")
        both = []
        try:
            for kind, own, given in (("inputs", declared[0], inputs), ("outputs", declared[1], outputs)):
                specs = tuple(spec_of(name, one) for name, one in own.items()) or tuple(given)
                if not specs:
                    raise ModelError(f"it declares no {kind}; declare {HOW}")
                if given and tuple(given) != specs:
                    theirs, ours = _listed(specs), _listed(given)
                    raise ModelError(f"its {kind} are {theirs} in the class, but {ours} in the configuration")
                both.append(specs)
            return signature_of(*both, platform="python")
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None

    def _finished(self, result: Any) -> Any:
        """What a call gave; a coroutine is run to its end on the model's own loop, the same for all of its calls."""
        if not inspect.iscoroutine(result):
            return result
        if self._loop is None:
            self._loop = _Loop(self._class.__name__)
        return self._loop.run(result)


class _Loop:
    """An event loop on a thread of its own, since an instance may run batches on the server's loop, where none can nest."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name=f"dlproxy-loop-{name}", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def without_exits() -> tuple[Any, BaseException | None]:
            try:
                return await coroutine, None
            except (SystemExit, KeyboardInterrupt) as error:  # would end the loop, and the next call would wait for ever
                return None, error

        result, error = asyncio.run_coroutine_threadsafe(without_exits(), self._loop).result()
        if error is not None:
            raise error
        return result

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def find_class(path: str) -> type[Any]:
    """Import what the path names. Raises ModelError."""
    match = _TARGET.fullmatch(path)
    if match is None:
        classes = _predicting(_imported(path)) if Path(path).is_file() else []
        example = f"{path}:{classes[0]}" if classes else "my_module:MyModel or path/to/file.py:MyModel"
        raise ModelError(f"{path!r} names no class; write {example}")
    module = _imported(match["place"])
    found = getattr(module, match["name"], None)
    if found is None:
        classes = _predicting(module) or [name for name, one in vars(module).items() if inspect.isclass(one)]
        near = difflib.get_close_matches(match["name"], classes, n=1) or classes[:1]
        hint = f"; did you mean {near[0]}?" if near else ", nor any other class"
        raise ModelError(f"{match['place']} has no class {match['name']}{hint}")
    if not inspect.isclass(found):
        raise ModelError(
            f"{path}: {match['name']} is a {type(found).__name__}; dlproxy wants a class with predict(self, batch)"
        )
    return found


def _imported(place: str) -> ModuleType:
    """The module of that name, or of that file. What stands beside the file, or in the working folder, can be imported."""
    is_file = place.endswith(".py") or os.sep in place
    file = Path(place).resolve()
    if is_file and not file.is_file():
        raise ModelError(f"model file {place} does not exist")
    folder = str(file.parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # at the end: a neighbour called queue.py must not replace the library's
    try:
        return _executed(file) if is_file else importlib.import_module(place)
    except ModuleNotFoundError as error:
        if not is_file and error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise ModelError(f"there is no module {place} in {folder} or among the installed packages") from None
        raise ModelError(f"importing {place} raised {one_line(error)}; install it where dlproxy runs") from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"importing {place} raised {_located(error, file=str(file))}") from error


def _executed(file: Path) -> ModuleType:
    name = f"dlproxy_model_{file.stem}_{crc32(str(file).encode()):08x}"  # two files may have one name
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ModelError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _predicting(module: ModuleType) -> list[str]:
    classes = ((name, one) for name, one in vars(module).items() if inspect.isclass(one))
    return [name for name, one in classes if hasattr(one, "predict")]


def _needed(made: type[Any]) -> list[str]:
    """The arguments without which the class cannot be called."""
    try:
        parameters = inspect.signature(made).parameters.values()
    except ValueError:  # a class written in C may not say; calling it will
        return []
    anything = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in parameters if one.default is one.empty and one.kind not in anything]


def _attributes(model: Any) -> tuple[Any, Any]:
    return getattr(model, "inputs", {}), getattr(model, "outputs", {})


def _arrays(outputs: Any) -> dict[str, NDArray[np.generic]]:
    if inspect.isgenerator(outputs) or inspect.isasyncgen(outputs):
        raise ValueError(NO_STREAMS)
    if not isinstance(outputs, dict):
        raise ValueError(f"predict gave a {type(outputs).__name__}; it must return a dict of output names to numpy arrays")
    for name, array in outputs.items():
        if not isinstance(array, np.ndarray):
            kind = f"{type(array).__module__}.{type(array).__name__}".removeprefix("builtins.")
            raise ValueError(f"output '{name}' is a {kind}; predict must return numpy arrays")
    return outputs


def _located(error: BaseException, owner: type[Any] | None = None, *, file: str = "") -> str:
    """The error in a line, with the last line of the model's own file that it passed through."""
    if owner is not None:
        module = sys.modules.get(owner.__module__)
        file = getattr(module, "__file__", None) or ""
    where, step = "", error.__traceback__
    while step is not None:
        if file and step.tb_frame.f_code.co_filename == file:
            where = f" ({Path(file).name}, line {step.tb_lineno})"
        step = step.tb_next
    if not where and isinstance(error, SyntaxError) and error.lineno:
        where = f" (line {error.lineno})"
    return f"{one_line(error)}{where}"


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {written(spec)}" for spec in specs)
