"""The recipe static-int8: ranges of activations found beforehand, on training data; operators that suffer stay in floats.

ONNX Runtime's quantiser writes QuantizeLinear and DequantizeLinear pairs (QDQ), which ONNX Runtime fuses. In the table of
recipes. Not aware of: labels; how right it stays is told by how far its answers are from the original's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from dlproxy.compress.data import Dataset
from dlproxy.compress.recipe import Context, Made, RecipeError, Source
from dlproxy.compress.recipes.cpu import is_x86, weight_bits
from dlproxy.compress.recipes.graphs import (
    Answers,
    Model,
    answer,
    batches,
    constants,
    distance,
    finish,
    library,
    open_session,
    prepared,
    step,
    write,
)
from dlproxy.compress.recipes.sensitivity import Left, groups_of, leave_out

LEAST_EXAMPLES = 8  # ranges of fewer are those of the examples, not of the model
MOST_CALIBRATING, MOST_JUDGING = 128, 32
METHODS = ("MinMax", "Entropy", "Percentile")
PERCENTILE = 99.99
ACTIVATIONS = ("uint8", "int8")
PRODUCTS = ("MatMul", "Gemm")
CONVOLUTIONS = ("Conv", "ConvTranspose")
# Between convolutions whole numbers are passed on, in transformers they would only be converted there and back.
BETWEEN = ("Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Concat", "Resize", "Flatten", "Reshape", "Transpose")
POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool")


class Setting(Struct, frozen=True):
    """How all of it is quantised. `activations`: unsigned on x86: with AVX2, signed ones take three times as long as
    floats; `weight_bits`: see cpu.py; `paired`: products of two activations, which stay as they are.
    """

    operators: list[str]
    paired: list[str]
    activations: str
    weight_bits: int


def make(source: Source, context: Context) -> Made:
    """Try the ways of calibration, take the one whose answers are nearest, then see what to leave in floats."""
    calibrating, judging = _examples(context)
    model = prepared(source, context, "static-int8", quantised=False, flow=False)
    setting = _setting(model, context)
    graph = _Quantised(model, setting, context, judging, answer(open_session(source.onnx), judging, context.most_batch))
    ranges = {method: _ranges(model, setting, method, calibrating, context) for method in _methods(context)}
    errors = {method: graph.error(found, []) for method, found in ranges.items()}
    best = min(errors, key=errors.__getitem__)
    context.tell(f"calibration {best.lower()}: answers are {errors[best]:.2%} off")
    names = [node.name for node in model.graph.node if node.op_type in setting.operators and node.name not in setting.paired]
    left = leave_out(
        groups_of(names),
        alone=lambda group: graph.error(ranges[best], [name for name in names if name not in group]),
        without=lambda excluded: graph.error(ranges[best], excluded),
    )
    made = graph.make(ranges[best], left.names)
    steps = [
        step("prepare", level="basic"),
        step("calibrate", method=best.lower(), examples=len(calibrating), errors=errors, seed=context.seed),
        step("static-int8", format="QDQ", per_channel=True, left_in_float=left.names, **_told(setting)),
    ]
    return finish(made, source, context, "static-int8", steps, _notes(left, names))


def _notes(left: Left, names: Sequence[str]) -> list[str]:
    notes = [f"on training data its answers are {left.error:.2%} off the original's"]
    if left.names:
        notes.append(f"{len(left.names)} of {len(names)} operators stay in floats; with none it were {left.at_first:.2%}")
    return notes


def _told(setting: Setting) -> dict[str, Any]:
    return {"operators": setting.operators, "activations": setting.activations, "weight_bits": setting.weight_bits}


def _examples(context: Context) -> tuple[Dataset, Dataset]:
    """To calibrate with, and to choose by; where there are too few for both, the same. Raises RecipeError."""
    count = len(context.training)
    if count < LEAST_EXAMPLES:
        raise RecipeError(f"{count} training examples are too few to calibrate with: it takes at least {LEAST_EXAMPLES}")
    order = np.random.default_rng(context.seed).permutation(count)
    cut = min(MOST_CALIBRATING, max(count * 2 // 3, LEAST_EXAMPLES))
    judging = order[cut : cut + MOST_JUDGING]
    few = len(judging) < LEAST_EXAMPLES
    return context.training.rows(order[:cut]), context.training.rows(order[:MOST_JUDGING] if few else judging)


def _methods(context: Context) -> Sequence[str]:
    asked = context.options.get("calibration")
    chosen = [method for method in METHODS if asked in (None, method.lower())]
    if not chosen:
        raise RecipeError(f"calibration = {asked!r}: it is one of {', '.join(METHODS).lower()}")
    return chosen


def _setting(model: Model, context: Context) -> Setting:
    """Raises RecipeError where nothing is to be quantised."""
    activations = context.options.get("activations", "uint8" if is_x86() else "int8")
    if activations not in ACTIVATIONS:
        raise RecipeError(f"activations = {activations!r}: it is one of {', '.join(ACTIVATIONS)}")
    known, there = constants(model), {node.op_type for node in model.graph.node}
    convolves = bool(there & set(CONVOLUTIONS))
    weighed = [node for node in model.graph.node if node.op_type in (*PRODUCTS, *CONVOLUTIONS) and node.input[1] in known]
    if not weighed:
        raise RecipeError("it has no Conv, MatMul or Gemm with constant weights")
    wanted = (*CONVOLUTIONS, *PRODUCTS, *POOLS, *BETWEEN) if convolves else PRODUCTS
    paired = [node.name for node in model.graph.node if node.op_type in PRODUCTS and node.input[1] not in known]
    return Setting([op for op in wanted if op in there], paired, activations, weight_bits())


class _Reader:
    """What ONNX Runtime's calibrators ask for examples."""

    def __init__(self, feeds: Sequence[dict[str, Any]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def _ranges(model: Model, setting: Setting, method: str, examples: Dataset, context: Context) -> Any:
    """Of every activation. Batch by batch: what a calibrator has to keep of one is all activations of the model."""
    path, watched = (context.folder / f"static-int8.{name}.onnx" for name in ("plain", "watched"))
    write(model, path)
    with library(f"it cannot be calibrated ({method.lower()})"):
        from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

        more = {"percentile": PERCENTILE, "symmetric": False} if method == "Percentile" else {}
        kind = getattr(CalibrationMethod, method)
        calibrator = create_calibrator(Path(path), setting.operators, str(watched), kind, extra_options=more)
        session = calibrator.infer_session
        for feed in batches(session, examples, min(context.most_batch, LEAST_EXAMPLES)):
            calibrator.collect_data(_Reader([feed]))
        found = calibrator.compute_data()
    path.unlink()
    watched.unlink()
    return found


class _Quantised:
    """Candidates of one graph, and how far each is from the original's answers on a few examples."""

    def __init__(self, model: Model, setting: Setting, context: Context, judging: Dataset, right: Answers) -> None:
        self._model, self._setting, self._context = model, setting, context
        self._judging, self._right = judging, right

    def make(self, ranges: Any, excluded: Sequence[str]) -> Model:
        model = Model.FromString(self._model.SerializeToString())  # the quantiser changes what it is given
        with library("onnxruntime.quantization cannot do it"):
            from onnxruntime.quantization import QuantType
            from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

            activations = QuantType.QUInt8 if self._setting.activations == "uint8" else QuantType.QInt8
            kinds = {"weight_qType": QuantType.QInt8, "activation_qType": activations}
            quantiser = QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=self._setting.weight_bits < 8,
                tensors_range=ranges,
                nodes_to_quantize=[],
                nodes_to_exclude=list(excluded),
                op_types_to_quantize=self._setting.operators,
                extra_options={"MatMulConstBOnly": True},
                **kinds,
            )
            quantiser.quantize_model()
            made: Model = quantiser.model.model
        return made

    def error(self, ranges: Any, excluded: Sequence[str]) -> float:
        session = open_session(self.make(ranges, excluded), self._context.threads)
        return distance(self._right, answer(session, self._judging, self._context.most_batch))
