"""Models that are Python classes: `my_module:MyModel` or `path/to/file.py:MyModel`.

Called by whatever loads models, and by instance/batch.py to run. Not aware of: frameworks that the class may use.
"""

import asyncio
import inspect
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, closing, nullcontext
from functools import partial
from itertools import islice
from threading import Lock, Thread
from types import AsyncGeneratorType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from dlproxy.instance.integrity.files import ModelFiles
from dlproxy.instance.runtime import TELEMETRY_OFF, ModelError, alone
from dlproxy.instance.runtime.classes import find_class, located, sources
from dlproxy.instance.runtime.declared import check_outputs, signature_of, spec_of, written
from dlproxy.instance.runtime.memory_modules import MemoryModules
from dlproxy.instance.runtime.partial_answers import AnswerError, Parts, arrays_of
from dlproxy.message import InSequence, Signature, TensorSpec

Array = NDArray[np.generic]

HOW = (
    'inputs = {"x": "FP32[-1,784]"} and outputs likewise as attributes of the class, '
    "or a method signature(self) that returns both"
)


LOOKED_AT = 16  # parts of an answer that warm-up sees of a class that streams: there may be no end


class PythonRuntime:
    """One object of the class. `inputs`, `outputs`: the configuration's, for a class that declares none. `files`: of the model,
    to be imported from memory.

    Calls are made one at a time unless the class says `thread_safe = True`: few classes are written for more. The arrays
    that `predict` gets are its own to write to, and those that it returns must not be written to later. A class with
    `streams = True` answers in the parts that `predict` yields, by `steps`; `run` joins the first of them.

    One whose `predict` has a parameter `sequences` keeps the state of sequences: it gets an InSequence for each row.
    """

    def __init__(
        self,
        path: str,
        *,
        inputs: Sequence[TensorSpec] = (),
        outputs: Sequence[TensorSpec] = (),
        files: ModelFiles | None = None,
    ) -> None:
        os.environ.setdefault(*TELEMETRY_OFF)  # for whatever its file imports
        self._class = find_class(path, files)
        self._file: str | None = getattr(sys.modules.get(self._class.__module__), "__file__", None)
        self._paths: list[str] | None = None
        self._modules: Any = None
        if files is not None:
            self._paths, self._file = files.paths, str(files.folder / files.main)
            self._modules = getattr(sys.modules.get(self._class.__module__), "__loader__", None)
        self._loop: _Loop | None = None
        self._model = self._made(path)
        self.signature = self._declared = self._signature(path, inputs, outputs)
        self._input_names = [spec.name for spec in self.signature.inputs]
        self._turn = nullcontext() if getattr(self._model, "thread_safe", False) else Lock()
        self._closed = False

    @property
    def files(self) -> list[str]:
        """The class's, and those of whatever it has imported from beside or below that."""
        return sources(self._file) if self._paths is None else self._paths

    def run(self, inputs: Sequence[Array], sequences: Sequence[InSequence] = ()) -> list[Array]:
        """One call of `predict`. Raises RuntimeError for what it raises, ValueError for what it should not have given."""
        predict = self._predict(inputs, sequences)
        return check_outputs(self.signature, self._called(partial(self._answer, predict)))

    def steps(self, inputs: Sequence[Array], sequences: Sequence[InSequence] = ()) -> Iterator[list[Array]]:
        """What `predict` yields, one by one, each with all outputs. Raises as `run` does."""
        predict = self._predict(inputs, sequences)
        given = self._called(lambda: self._finished(predict()))
        number = 0
        try:
            while (part := self._called(partial(self._next_of, given, number))) is not _END:
                number += 1
                try:
                    outputs = check_outputs(self.signature, arrays_of(part))
                except ValueError as error:
                    raise AnswerError(f"part {number} of the answer: {error}") from None
                yield [array.copy() for array in outputs]  # the model may go on writing to them
        finally:
            self._called(partial(self._end, given))

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
            if isinstance(self._modules, MemoryModules):
                self._modules.close()

    def _predict(self, inputs: Sequence[Array], sequences: Sequence[InSequence]) -> Callable[[], Any]:
        """The call of `predict` for this batch; rows of no sequence, as warm-up's, are each one of its own."""
        batch = {name: array.copy() for name, array in zip(self._input_names, inputs, strict=True)}
        if not self.signature.told_sequences:
            return partial(self._model.predict, batch)
        if not sequences:
            first = next(iter(batch.values()))
            sequences = [alone(place) for place in range(len(first) if self._declared.batched else 1)]
        return partial(self._model.predict, batch, sequences=list(sequences))

    def _made(self, path: str) -> Any:
        name = self._class.__name__
        predict = getattr(self._class, "predict", None)
        if not callable(predict):
            raise ModelError(f"{path}: {name} has no method predict(self, batch) that gives a dict of arrays")
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
            raise ModelError(f"{path}: {step} raised {located(error, self._file)}") from error
        return model

    def _signature(self, path: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Signature:
        model = self._model
        try:
            declared = model.signature() if hasattr(model, "signature") else _attributes(model)
        except (Exception, SystemExit) as error:
            raise ModelError(f"{path}: {self._class.__name__}.signature() raised {located(error, self._file)}") from error
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
            signature = signature_of(*both, platform="python")
            streams, told = bool(getattr(model, "streams", False)), _takes_sequences(model.predict)
            return msgspec.structs.replace(signature, streams=streams, told_sequences=told)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None

    def _called(self, call: Callable[[], Any]) -> Any:
        """What a call into the class gives, in its turn. Raises RuntimeError for what it raises."""
        with self._turn:
            try:
                return call()
            except (KeyboardInterrupt, AnswerError):
                raise
            except BaseException as error:  # sys.exit() in a model must not end the worker
                raise RuntimeError(f"{self._class.__name__}.predict raised {located(error, self._file)}") from error

    def _next_of(self, given: Any, number: int) -> Any:
        """The part after so many others; what `predict` gives at once is its only one."""
        if inspect.isasyncgen(given):
            return self._finished(_next_awaited(given))
        if inspect.isgenerator(given):
            return next(given, _END)
        return _END if number else given

    def _end(self, given: Any) -> None:
        if inspect.isasyncgen(given):
            self._finished(_closed(given))
        elif inspect.isgenerator(given):
            given.close()

    def _answer(self, predict: Callable[[], Any]) -> dict[str, Array]:
        """What `predict` gives: a dict, at once or awaited, or the parts that it yields, joined."""
        given = self._finished(predict())
        if not (inspect.isgenerator(given) or inspect.isasyncgen(given)):
            return arrays_of(given)
        parts = Parts(self._declared)  # warm-up may turn batching off, but rows stay on axis 0
        most = LOOKED_AT if self._declared.streams else None
        if inspect.isasyncgen(given):
            self._finished(_add_all(given, parts, most))
        else:
            with closing(given):
                for part in islice(given, most):
                    parts.add(part)
        return parts.joined()

    def _finished(self, result: Any) -> Any:
        """What a call gave; a coroutine is run to its end on the model's own loop, the same for all of its calls."""
        if not inspect.iscoroutine(result):
            return result
        if self._loop is None:
            self._loop = _Loop(self._class.__name__)
        return self._loop.run(result)


_END = object()  # in place of a part: there are no more


async def _next_awaited(yielded: AsyncGeneratorType[Any, Any]) -> Any:
    return await anext(yielded, _END)


async def _closed(yielded: AsyncGeneratorType[Any, Any]) -> None:
    await yielded.aclose()


async def _add_all(yielded: AsyncGeneratorType[Any, Any], parts: Parts, most: int | None) -> None:
    async with aclosing(yielded):
        async for part in yielded:
            parts.add(part)
            if most is not None and parts.count >= most:
                return


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


def _needed(made: type[Any]) -> list[str]:
    """The arguments without which the class cannot be called."""
    try:
        parameters = inspect.signature(made).parameters.values()
    except ValueError:  # a class written in C may not say; calling it will
        return []
    anything = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in parameters if one.default is one.empty and one.kind not in anything]


def _takes_sequences(predict: Callable[..., Any]) -> bool:
    try:
        return "sequences" in inspect.signature(predict).parameters
    except ValueError:  # as above
        return False


def _attributes(model: Any) -> tuple[Any, Any]:
    return getattr(model, "inputs", {}), getattr(model, "outputs", {})


def _listed(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {written(spec)}" for spec in specs)
