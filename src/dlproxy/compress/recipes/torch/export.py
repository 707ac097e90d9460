"""PyTorch modules as ONNX files with an open batch axis, each compared with its module before anybody gets it.

Called by sources.py and by the recipes here. Not aware of: where a module comes from, what it was trained for.
"""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlproxy.compress import CompressError
from dlproxy.instance.runtime import TELEMETRY_OFF
from dlproxy.instance.runtime.declared import one_line

os.environ.setdefault(*TELEMETRY_OFF)

import onnx
import onnxruntime as ort

ORT = f"onnxruntime {ort.__version__}"
OPSET = 17
BATCH = "batch"
CLOSE = 1e-3  # of the largest answer: what float32 sums in another order may differ by in a deep network


def flat(outputs: Any) -> list[tuple[str, Any]]:
    """What a module gave, by the names under which the server has the answers of PyTorch models."""
    if isinstance(outputs, torch.Tensor):
        return [("output", outputs)]
    items = outputs.items() if isinstance(outputs, Mapping) else ((f"output_{i}", one) for i, one in enumerate(outputs))
    named = [(str(name), tensor) for name, tensor in items]
    if not named or not all(isinstance(tensor, torch.Tensor) for _, tensor in named):
        raise CompressError("the module must return a tensor, or a tuple or dict of tensors, to become an ONNX file")
    return named


def export(
    module: Any,
    path: Path,
    examples: Sequence[Any],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    settled: bool = True,
    close: float = CLOSE,
) -> None:
    """Write `path`. `examples`: the tensors of a few rows, in the order of `inputs`. `settled`: in evaluation mode. `close`:
    what answers may differ by, of the largest one.

    TorchScript's exporter is asked first: it takes a second where the one on torch.export takes ten, and gives LSTM as one
    operator. Where its file answers otherwise than the module, or it cannot, the other one is. Raises CompressError.
    """
    if settled:
        module.eval()
    why = ""
    for write in (_traced, _exported):
        try:
            with _quietly():
                write(module, path, examples, inputs, outputs)
            compare(module, path, examples, inputs, close)
        except CompressError as error:
            why = f"{why}; {error}" if why else str(error)
        except Exception as error:  # whatever the exporters raise; their own errors share no class
            why = f"{why}; {one_line(error)}" if why else one_line(error)
        else:
            return
    path.unlink(missing_ok=True)
    raise CompressError(f"torch {torch.__version__} cannot write this module as ONNX ({why})")


def export_program(program: Any, path: Path, examples: Sequence[Any], *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """The same of what torch.export.load gave; its dynamic axes stay as they are. Raises CompressError."""
    try:
        with _quietly():
            torch.onnx.export(
                program,
                (),
                str(path),
                dynamo=True,
                input_names=inputs,
                output_names=outputs,
                external_data=False,
                verbose=False,
            )
        compare(program.module(), path, examples, inputs)
    except ModuleNotFoundError as error:
        raise CompressError(f"exported programs become ONNX through {error.name}; pip install 'dlproxy[train]'") from None
    except CompressError:
        raise
    except Exception as error:
        raise CompressError(f"torch {torch.__version__} cannot write this program as ONNX: {one_line(error)}") from error


def compare(module: Any, path: Path, examples: Sequence[Any], inputs: Sequence[str], close: float = CLOSE) -> None:
    """Raises CompressError where the file answers otherwise than the module, to all of the examples or to the first alone."""
    for rows in (len(examples[0]), 1):
        some = [tensor[:rows] for tensor in examples]
        with torch.no_grad():
            expected = [tensor.numpy() for _, tensor in flat(module(*some))]
        got = answers(path, dict(zip(inputs, some, strict=True)))
        for one, other in zip(expected, got, strict=True):
            largest = float(np.max(np.abs(one), initial=1e-6))
            if one.shape != other.shape or not np.allclose(one, other, rtol=close, atol=close * largest):
                raise CompressError(f"the ONNX file answers a batch of {rows} otherwise than the module")


def session(path: Path, options: Any = None) -> Any:
    """Of ONNX Runtime on the CPU. What goes wrong arrives as an exception, and is written nowhere else."""
    options = options or ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def simplified(path: Path) -> onnx.ModelProto:
    """With constants computed and batch normalisation in the convolutions before it, in ONNX's own operators."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = os.path.join(folder, "simplified.onnx")
        session(path, options)
        return onnx.load(options.optimized_model_filepath)


def answers(path: Path, inputs: Mapping[str, Any], *, rows: int = 64) -> list[Any]:
    """What ONNX Runtime answers to tensors by input name, all outputs, computed `rows` rows at a time."""
    opened = session(path)
    count = len(next(iter(inputs.values())))
    parts = [
        opened.run(None, {name: tensor[start : start + rows].numpy() for name, tensor in inputs.items()})
        for start in range(0, count, rows)
    ]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def _traced(module: Any, path: Path, examples: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str]) -> None:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator of torch's own, which ONNX does not have
    try:
        torch.onnx.export(
            module,
            tuple(examples),
            str(path),
            dynamo=False,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: {0: BATCH} for name in (*inputs, *outputs)},
            opset_version=OPSET,
        )
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _exported(module: Any, path: Path, examples: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str]) -> None:
    torch.onnx.export(
        module,
        tuple(examples),
        str(path),
        dynamo=True,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs),
        external_data=False,
        verbose=False,
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """What they warn of is checked by comparing; what goes wrong arrives as an exception and is reported once."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
