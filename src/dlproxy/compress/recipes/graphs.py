"""ONNX graphs as recipes read, try and write them; what none of them can take is refused here, in words.

Called by the recipes beside it. Everything is written below the recipe's folder, and the same graph always as the same bytes.
Not aware of: what a recipe changes.
"""

import io
import logging
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from dlproxy.compress.data import Array, Dataset
from dlproxy.compress.recipe import Context, Made, RecipeError, Source, Step
from dlproxy.instance.runtime import TELEMETRY_OFF

os.environ.setdefault(*TELEMETRY_OFF)

import onnx
import onnxruntime as ort
from onnx import inliner, numpy_helper, version_converter
from onnx.external_data_helper import load_external_data_for_model

Graph = onnx.GraphProto
Node = onnx.NodeProto
Model = onnx.ModelProto
Answers = list[list[Array]]

MOST_BYTES = 2_000_000_000  # protobuf's limit, less room for what a recipe adds
LEAST_OPSET, NEWER_OPSET = 13, 17  # scales by channel came with 13 (QuantizeLinear of the ONNX specification)
CONTRIB = "com.microsoft"
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", CONTRIB)  # whose operators ONNX Runtime has without a library of the user's
QUANTISED = (
    "QuantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "QLinearConv",
    "QLinearMatMul",
    "MatMulNBits",
)
MOST_DEFAULTS = 16  # more inputs than this with a default are an exporter's weights, as in instance/runtime/onnx.py
FACES = {"inputs": "get_inputs", "outputs": "get_outputs", "defaults": "get_overridable_initializers"}
_QUIET = 4  # ONNX Runtime's severity "fatal": everything else reaches us as an exception


@contextmanager
def library(doing: str) -> Iterator[None]:
    """Others' code: what it prints and logs is dropped, and what it raises becomes a RecipeError that begins with `doing`."""
    disabled, handlers = logging.root.manager.disable, logging.root.handlers[:]
    logging.disable(logging.CRITICAL)
    ort.set_default_logger_severity(_QUIET)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except RecipeError:
        raise
    except MemoryError:
        raise RecipeError(f"{doing}: there is not enough memory") from None
    except Exception as error:  # of any type and any length
        raise RecipeError(f"{doing}: {_in_a_line(error)}") from error
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def read(source: Source, *, upgrade: bool = False, quantised: bool = True, flow: bool = True) -> Model:
    """The graph with its weights. `upgrade`: to an opset that quantisers know. Without `quantised` or `flow`, models that are
    quantised or have control flow are refused, too. Raises RecipeError.
    """
    with library(f"{source.onnx.name} cannot be read as an ONNX model"):
        model = onnx.load(source.onnx, load_external_data=False)
    size = source.onnx.stat().st_size + sum(_outside(model, source.onnx.parent).values())
    if size > MOST_BYTES:
        raise RecipeError(f"the model takes {size / 1e9:.1f} GB; recipes that work on ONNX files take at most 2 GB")
    with library("weights that lie beside the model cannot be read"):
        load_external_data_for_model(model, str(source.onnx.parent))
    if model.functions:
        with library("its functions cannot be written out"):
            model = inliner.inline_local_functions(model)
    nodes = list(every_node(model.graph))
    foreign = next((node for node in nodes if node.domain not in DOMAINS), None)
    if foreign is not None:
        raise RecipeError(
            f"it has a custom operator, {foreign.op_type} of '{foreign.domain}', which only its own library knows"
        )
    inside = next((node for node in nodes if subgraphs(node)), None)
    if not flow and inside is not None:
        raise RecipeError(f"it has control flow ({inside.op_type}), into which this recipe cannot look")
    done = next((node for node in nodes if node.op_type in QUANTISED), None)
    if not quantised and done is not None:
        raise RecipeError(f"it is quantised already ({done.op_type})")
    _drop_listed_weights(model)
    return _upgraded(model) if upgrade and opset(model) < LEAST_OPSET else model


def _outside(model: Model, folder: Path) -> dict[str, int]:
    """Files beside the model that hold its weights, with their sizes."""
    tensors = [weight for graph in every_graph(model.graph) for weight in graph.initializer]
    names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return {name: (folder / name).stat().st_size for name in names if (folder / name).exists()}


def _drop_listed_weights(model: Model) -> None:
    """Among the inputs, where old exporters listed them: there they are no constants."""
    weights = {weight.name for weight in model.graph.initializer}
    listed = [one for one in model.graph.input if one.name in weights]
    if model.ir_version < 4 or len(listed) > MOST_DEFAULTS:
        model.ir_version = max(model.ir_version, 4)
        for one in listed:
            model.graph.input.remove(one)


def _upgraded(model: Model) -> Model:
    with library(f"its opset {opset(model)} is too old for this recipe, and onnx cannot convert it to {NEWER_OPSET}"):
        newer: Model = version_converter.convert_version(model, NEWER_OPSET)
    newer.ir_version = max(newer.ir_version, 8)
    return newer


def opset(model: Model) -> int:
    """Of ONNX's own operators."""
    return max((int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx")), default=1)


def subgraphs(node: Node) -> list[Graph]:
    """Of If, Loop and Scan."""
    return [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs) if graph.node or graph.output]


def every_node(graph: Graph) -> Iterator[Node]:
    """Those inside of others included."""
    for one in every_graph(graph):
        yield from one.node


def every_graph(graph: Graph) -> Iterator[Graph]:
    """It, and those inside of its nodes."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from every_graph(inner)


def constants(model: Model) -> dict[str, onnx.TensorProto]:
    """Tensors of the outer graph that nothing can change, by name; those of Constant nodes included."""
    inputs = {one.name for one in model.graph.input}
    found = {weight.name: weight for weight in model.graph.initializer if weight.name not in inputs}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def drop_unused(model: Model) -> None:
    """Weights and constants that nothing reads any more."""
    read_names = {name for node in every_node(model.graph) for name in node.input}
    read_names |= {one.name for graph in every_graph(model.graph) for one in graph.output}
    kept = [weight for weight in model.graph.initializer if weight.name in read_names]
    nodes = [node for node in model.graph.node if node.op_type != "Constant" or node.output[0] in read_names]
    replace(model.graph.initializer, kept)
    replace(model.graph.node, nodes)


def replace(field: Any, items: Sequence[Any]) -> None:
    """All elements of a repeated field of protobuf."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)


def use_contrib(model: Model) -> None:
    """Operators of ONNX Runtime's own may stand in it."""
    if all(one.domain != CONTRIB for one in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(CONTRIB, 1))


def name_nodes(model: Model) -> None:
    """Give names to those without, or with one that is taken: nodes are chosen by name."""
    taken = set[str]()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}:{number}"
        taken.add(node.name)


def write(model: Model, path: Path) -> Path:
    """One file, in the same order whatever hash seed the libraries ran with."""
    graph = model.graph
    for field in (graph.initializer, graph.value_info, graph.sparse_initializer):
        replace(field, sorted(field, key=lambda one: one.name if hasattr(one, "name") else one.values.name))
    replace(model.opset_import, sorted(model.opset_import, key=lambda one: one.domain))
    replace(model.metadata_props, sorted(model.metadata_props, key=lambda one: one.key))
    with library("the new model cannot be written"):
        path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def optimise(model: Model, context: Context, name: str, level: str) -> Model:
    """By ONNX Runtime: "BASIC" stays within ONNX's own operators, "EXTENDED" uses its fused ones, of the CPU."""
    raw, made = context.folder / f"{name}.before.onnx", context.folder / f"{name}.after.onnx"
    write(model, raw)
    options = _options(1)
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(made)
    with library("ONNX Runtime cannot optimise it"):
        ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
        optimised = onnx.load(made)
    raw.unlink()
    made.unlink()
    return optimised


def prepared(source: Source, context: Context, name: str, **refuse: bool) -> Model:
    """As quantisers want it: an opset that they know, constants folded, shapes where they can be told, every node named."""
    model = optimise(read(source, upgrade=True, **refuse), context, name, "BASIC")
    with library("the shapes inside of it cannot be told"):
        model = onnx.shape_inference.infer_shapes(model)
    name_nodes(model)
    return model


def open_session(model: Path | Model, threads: int = 1) -> Any:
    """On the CPU, silent. Raises RecipeError."""
    given = model.SerializeToString() if isinstance(model, Model) else str(model)
    with library("ONNX Runtime cannot load it"):
        return ort.InferenceSession(given, _options(threads), providers=["CPUExecutionProvider"])


def _options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _QUIET
    return options


def batches(session: Any, examples: Dataset, most_rows: int) -> Iterator[dict[str, Array]]:
    """What the session is fed: as many rows at a time as it takes; a rest that fills no batch of a fixed size is left out."""
    first = session.get_inputs()[0].shape
    fixed = first[0] if first and isinstance(first[0], int) and first[0] > 0 else 0
    names = {one.name for one in session.get_inputs()}
    rows = fixed or most_rows
    for start in range(0, len(examples), rows):
        part = examples.rows(slice(start, start + rows)).inputs
        if not fixed or all(len(array) == fixed for array in part.values()):
            yield {name: array for name, array in part.items() if name in names}


def answer(session: Any, examples: Dataset, most_rows: int) -> Answers:
    """All outputs of every batch. Raises RecipeError."""
    with library("it cannot be run on the training data"):
        answers: Answers = [session.run(None, feed) for feed in batches(session, examples, most_rows)]
    if not answers:
        raise RecipeError("there are fewer training examples than the model takes in one batch")
    return answers


def distance(right: Answers, given: Answers) -> float:
    """How far answers are from the original's: the root of the squared error over the squared answer, of integers and texts
    the share that differs, the mean over outputs; infinite where something is no number.
    """
    found = []
    for one, other in zip(zip(*right, strict=True), zip(*given, strict=True), strict=True):
        if one[0].dtype.kind != "f":
            found.append(float(np.mean([np.mean(a != b) for a, b in zip(one, other, strict=True)])))
            continue
        off = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(one, other, strict=True))
        size = sum(float(np.square(a.astype(np.float64)).sum()) for a in one)
        found.append(float(np.sqrt(off / size)) if size else float(off > 0))
    mean = float(np.mean(found))
    return mean if np.isfinite(mean) else float("inf")


def changed(before: Model, after: Model) -> bool:
    """Whether other operators stand in it, or in another number."""
    names = [
        sorted(node.op_type for node in every_node(model.graph) if node.op_type != "Constant") for model in (before, after)
    ]
    return names[0] != names[1]


def count(model: Model, ops: Collection[str]) -> int:
    """Nodes of these kinds, those inside of others included."""
    return sum(node.op_type in ops for node in every_node(model.graph))


def finish(model: Model, source: Source, context: Context, name: str, steps: Sequence[Step], notes: Sequence[str] = ()) -> Made:
    """Write a candidate, once it is shown to load, to take and give what the original does, and to answer a batch with numbers.

    Raises RecipeError.
    """
    drop_unused(model)
    _keep_faces(model, source)
    path = write(model, context.folder / f"{name}.onnx")
    session, original = open_session(path, context.threads), open_session(source.onnx, context.threads)
    for kind, ask in FACES.items():
        faces = [[(one.name, one.type, one.shape) for one in getattr(of, ask)()] for of in (original, session)]
        if faces[0] != faces[1] and not (kind == "defaults" and len(faces[0]) > MOST_DEFAULTS):
            raise RecipeError(f"its {kind} would no longer be what they are: {faces[1]} for {faces[0]}")
    few = context.training.rows(slice(0, context.most_batch))
    right, given = (answer(of, few, context.most_batch) for of in (original, session))
    if not np.isfinite(distance(right, right)):
        raise RecipeError("on training data the original answers with what is no number (NaN or infinite)")
    if not np.isfinite(distance(right, given)):
        raise RecipeError("it would answer with what is no number (NaN or infinite)")
    return Made(path, list(steps), list(notes))


def _keep_faces(model: Model, source: Source) -> None:
    """Inputs and outputs as the original describes them: libraries rename open sizes, or lose them."""
    original = onnx.load(source.onnx, load_external_data=False).graph
    for ours, theirs in ((model.graph.input, original.input), (model.graph.output, original.output)):
        described = {one.name: one for one in theirs}
        replace(ours, [described.get(one.name, one) for one in ours])


def step(name: str, by: str = "onnxruntime", **settings: Any) -> Step:
    """`by`: "onnx", "onnxruntime" or "dlproxy"; its version is added."""
    versions: dict[str, Callable[[], str]] = {"onnx": lambda: onnx.__version__, "onnxruntime": lambda: ort.__version__}
    return Step(name, f"{by} {versions.get(by, _our_version)()}", settings)


def _our_version() -> str:
    from dlproxy import __version__

    return __version__


def array_of(tensor: onnx.TensorProto) -> Array:
    return np.asarray(numpy_helper.to_array(tensor))
