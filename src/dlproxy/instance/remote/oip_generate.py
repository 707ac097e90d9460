"""What Triton's generate extension, over REST, makes of tensors, and tensors of it: for models that answer in parts. Sans-I/O.

It has flat lists of JSON values, whose shapes follow from what the model declares. Called by oip.py. Not aware of: connections.
"""

import msgspec

from dlproxy.instance.batch import Array
from dlproxy.instance.remote import json_values
from dlproxy.instance.remote.codec import output_of, reported
from dlproxy.instance.remote.failures import UpstreamError, words_of
from dlproxy.message import DType, FailureKind, Request, Signature, TensorSpec
from dlproxy.tensors import shape_of_flat


def body_of(signature: Signature, request: Request) -> bytes:
    """Raises UpstreamError for what it cannot carry."""
    fields = {}
    for index, spec in enumerate(signature.inputs):
        array = json_values.gathered(spec, index, [request])
        if shape_of_flat(spec.shape, array.size) != array.shape:
            message = f"input '{spec.name}' of shape {list(array.shape)} cannot be sent: the upstream streams over HTTP"
            raise UpstreamError(f"{message}, by lists without a shape; gRPC has none of this", FailureKind.INVALID_ARGUMENT)
        if not json_values.is_finite(array):
            message = f"input '{spec.name}' has NaN or infinity, which JSON cannot carry, and the upstream streams JSON only"
            raise UpstreamError(message, FailureKind.INVALID_ARGUMENT)
        fields[spec.name] = (json_values.texts(array, spec.name) if spec.dtype is DType.BYTES else array).ravel().tolist()
    return msgspec.json.encode(fields)


def outputs_in(signature: Signature, body: bytes | bytearray) -> list[Array]:
    """Of one part. Raises UpstreamError, also for an error that came in its place."""
    try:
        said = json_values.decode(body)
    except ValueError as error:
        raise UpstreamError(f"the upstream's answer is not JSON: {error}") from None
    if not isinstance(said, dict):
        raise UpstreamError("the upstream's answer is no JSON object")
    if "error" in said and signature.outputs[0].name not in said:
        raise UpstreamError(words_of(body))
    return [reported(spec, spec.dtype, _array(spec, output_of(said, spec)), None) for spec in signature.outputs]


def _array(spec: TensorSpec, value: object) -> Array:
    values = value if isinstance(value, list) else [value]
    shape = shape_of_flat(spec.shape, len(values))
    try:
        if shape is None:
            raise ValueError(f"{len(values)} values do not make {list(spec.shape)}")
        return json_values.to_array(spec, values, shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise UpstreamError(f"the upstream's output '{spec.name}' cannot be read: {error}") from None
