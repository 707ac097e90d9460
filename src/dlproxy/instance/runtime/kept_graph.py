"""A model's graph as ONNX Runtime has optimised it: loaded from disk if it is there, else written there if that pays.

Called by onnx.py, for models on the CPU that are neither signed nor encrypted. The weights lie beside the graph, packed as
kernels want them, and are mapped: processes that load the same model share them. Not aware of: where graphs are kept.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import thread_time
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.graphs import GRAPH, WEIGHTS, Graphs, Key

PAYS = 1.25  # a load must be so much quicker
CLEARLY = 4.0  # so much longer than with the kept graph no load takes for writing it (measured: 1.3 to 2.7)
TRIED = 4  # requests of which the answers are compared
NOTHING = "no inputs are known by which to compare answers"

_UNREAD = {  # by the optimiser, which makes the same of a model whatever they are
    *("intra_op_num_threads", "inter_op_num_threads", "optimized_model_filepath"),
    *("log_severity_level", "log_verbosity_level", "logid", "enable_profiling", "profile_file_prefix"),
}

Array = NDArray[np.generic]
Open = Callable[[Path, Any], Any]
Run = Callable[[Any, Sequence[Array]], Sequence[Array]]


class KeptGraph:
    """Of one model. `open`: makes a session of a file and options, or raises ModelError; `options`: makes new ones."""

    def __init__(self, graphs: Graphs, model: Path, options: Callable[[], Any], open: Open) -> None:
        self._graphs, self._model, self._options, self._open = graphs, model, options, open
        self._made: Path | None = None
        self._key: Key | None = None
        self._plain_s = 0.0

    def load(self) -> Any:
        """A session: of the kept graph, or of the model. Raises ModelError."""
        key = self._key = self._graphs.key(self._model, settings_of(self._options()))
        if key is None:
            return self._open(self._model, self._options())
        found = self._graphs.find(key)
        if found is not None:
            try:
                return self._loaded(found)
            except ModelError as error:
                self._graphs.remove(key, str(error))
        self._made = self._graphs.begin(key)
        if self._made is not None:
            try:
                began_s = thread_time()
                session = self._open(self._model, _writing(self._options(), self._made))
                self._plain_s = thread_time() - began_s
                return session
            except ModelError as error:  # the disk is full, or the model is none
                self._graphs.refuse(key, self._made, str(error))
                self._made = None
        return self._open(self._model, self._options())

    def prove(self, session: Any, run: Run, requests: Sequence[Sequence[Array]]) -> Any:
        """Keep what `load` has written if it loads quicker and answers these as the session does, to the last bit.

        `run`: of any session. Returns the session to go on with: one that has written its graph holds the weights twice.
        """
        made, self._made = self._made, None
        if made is None or self._key is None:
            if requests and self._key is not None:
                self._graphs.forgive(self._key, NOTHING)
            return session
        try:
            why, other, kept_s = self._tried(made, session, run, requests)
        except Exception as error:  # a model that fails on them fails without a kept graph, too
            why, other, kept_s = str(error), None, 0.0
        if why:
            self._graphs.refuse(self._key, made, why)
            try:
                return self._open(self._model, self._options())
            except ModelError:  # it was taken away meanwhile
                return session
        self._graphs.keep(self._key, made, plain_s=self._plain_s, kept_s=kept_s)
        return other

    def give_up(self) -> None:
        """What was written and not proven goes."""
        made, self._made = self._made, None
        if made is not None:
            self._graphs.discard(made)

    def _tried(self, made: Path, session: Any, run: Run, requests: Sequence[Sequence[Array]]) -> tuple[str, Any, float]:
        """Why it is not to be kept, empty if it is; a session of it, and the seconds that it took to load."""
        if not requests:
            return NOTHING, None, 0.0
        began_s = thread_time()
        other = self._loaded(made / GRAPH)
        kept_s = thread_time() - began_s
        if _ends(session) != _ends(other):
            return "its inputs or outputs changed", None, kept_s
        for inputs in requests[:TRIED]:
            pairs = zip(run(session, inputs), run(other, inputs), strict=True)
            if not all(_same(one, another) for one, another in pairs):
                return "its answers changed", None, kept_s
        if kept_s * CLEARLY > self._plain_s:
            began_s = thread_time()
            self._open(self._model, self._options())
            self._plain_s = thread_time() - began_s
        if kept_s * PAYS > self._plain_s:
            return f"it loads in {kept_s * 1e3:.0f} ms, and without in {self._plain_s * 1e3:.0f} ms", None, kept_s
        return "", other, kept_s

    def _loaded(self, graph: Path) -> Any:
        options = self._options()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it has been done
        return self._open(graph, options)


def settings_of(options: Any) -> dict[str, object]:
    """All that decides what the optimiser makes of a model: the build of ONNX Runtime, its providers, the options."""
    names = [name for name in dir(options) if not name.startswith("_") and name not in _UNREAD]
    values = {name: getattr(options, name) for name in names}
    told = {name: str(value) for name, value in values.items() if not callable(value)}
    return {"version": ort.__version__, "build": ort.get_build_info(), "providers": ort.get_available_providers(), **told}


def _writing(options: Any, folder: Path) -> Any:
    options.optimized_model_filepath = str(folder / GRAPH)
    for name, value in (
        ("optimized_model_external_initializers_file_name", WEIGHTS),
        ("optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(f"session.{name}", value)
    return options


def _ends(session: Any) -> list[tuple[str, str, object]]:
    nodes = [*session.get_inputs(), *session.get_overridable_initializers(), *session.get_outputs()]
    return [(node.name, node.type, node.shape) for node in nodes]


def _same(one: Array, other: Array) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(np.array_equal(one, other)) if one.dtype.hasobject else one.tobytes() == other.tobytes()
