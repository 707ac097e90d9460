"""Which axis of every input and output may count rows, by what the model says of its axes.

Called by declared.py, for every format. What is found here is a claim that instance/evidence.py tests.
Not aware of: how the model computes.
"""

from collections.abc import Sequence

import msgspec

from dlproxy.message import Signature, TensorSpec

BATCH = "batch"  # the name by which a declaration says where rows stand
WORDS = (BATCH, "batch_size", "batchsize", "n", "bs", "b", "num_batch", "nbatch")  # as exporters and people write it


def with_rows(signature: Signature, *, outputs_hold: bool = True) -> Signature:
    """`batched` and every `rows` set to what axes and their names say; unbatched where they contradict each other.

    `outputs_hold`: outputs are as declared. ONNX files are known to say less or otherwise (LightGBM's label has 1 element).
    """
    name = _name_of_rows(signature.inputs)
    if name is None:
        return signature
    said = any(BATCH in spec.axes for spec in signature.inputs)  # by whoever wrote it: what does not bear it is shared
    inputs = []
    for spec in signature.inputs:
        places = _places(spec, name)
        unnamed = [axis for axis, own in enumerate(_names(spec)) if own == ""]
        if spec.default is not None:
            rows = None
        elif places:
            rows = places[0]
        elif -1 not in spec.shape or said:
            rows = None
        elif len(unnamed) == 1:  # as the state of a recurrent network has its rows on axis 1
            rows = unnamed[0]
        else:
            return signature
        if len(places) > 1:
            return signature
        inputs.append(msgspec.structs.replace(spec, rows=rows))
    outputs = []
    for spec in signature.outputs:
        places = [0] if spec.counts else _places(spec, name)
        outputs.append(msgspec.structs.replace(spec, rows=places[0] if places else None))
    told = not outputs_hold or all(spec.rows is not None for spec in outputs)
    batched = told and any(spec.rows is not None for spec in inputs)
    even = outputs_hold or bool(name) or sum(spec.rows is not None for spec in inputs) < 2
    return msgspec.structs.replace(signature, inputs=tuple(inputs), outputs=tuple(outputs), batched=batched, even=even)


def conflict(inputs: Sequence[TensorSpec]) -> str:
    """Why the inputs' names of axis 0 cannot all mean rows, in words; empty if they can."""
    named = {_names(spec)[0]: spec.name for spec in inputs if _is_open(spec) and _names(spec)[0]}
    if len(named) < 2 or _name_of_rows(inputs) is not None:
        return ""
    (one, first), (other, second) = list(named.items())[:2]
    return f"the first axis of '{first}' counts {one}, that of '{second}' counts {other}"


def _name_of_rows(inputs: Sequence[TensorSpec]) -> str | None:
    """The name of the axis that counts rows, "" where axes have none; None if there is no such axis."""
    names = [name for spec in inputs for name in _names(spec) if name]
    word = next((name for wanted in WORDS for name in names if name.lower() == wanted), None)
    if word is not None:
        return word
    first = {_names(spec)[0] for spec in inputs if _is_open(spec) and spec.default is None}
    given = [name for name in first if name]
    return None if not first or len(given) > 1 else next(iter(given), "")


def _places(spec: TensorSpec, name: str) -> list[int]:
    """The axes that bear the name; an open axis 0 without a name may be meant too."""
    named = [axis for axis, own in enumerate(_names(spec)) if name and own == name]
    return named or ([0] if _is_open(spec) and not _names(spec)[0] else [])


def _names(spec: TensorSpec) -> list[str | None]:
    """Of its axes: the name of an open one, "" if it has none; None for a fixed size."""
    axes = spec.axes or ("",) * len(spec.shape)
    return [name if size == -1 else None for name, size in zip(axes, spec.shape, strict=True)]


def _is_open(spec: TensorSpec) -> bool:
    return spec.shape[:1] == (-1,)
