"""JSON schemas of what goes over HTTP: those of the protocols, and those of one model's inputs and outputs.

Called by http/openapi.py. Not aware of: routes.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from dlproxy.message import DType, Signature, TensorSpec

MOST_EXAMPLE = 1000  # elements of an example; larger ones would be most of the document

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
SIZES: Schema = {"type": "array", "items": {"type": "integer"}}
ANY_OBJECT: Schema = {"type": "object"}
_HALF = (DType.FP16, DType.BF16)  # which have no JSON form in the Open Inference Protocol


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def fields(required: Sequence[str] = (), **properties: Schema) -> Schema:
    """An object; without `required`, all of its properties may be missing."""
    return {"type": "object", **({"required": list(required)} if required else {}), "properties": properties}


def always(**properties: Schema) -> Schema:
    """An object that has all of these."""
    return fields(list(properties), **properties)


_TENSOR = always(name=TEXT, datatype={"enum": [dtype.value for dtype in DType]}, shape=SIZES)
_COUNT = always(count={"type": "integer"}, ns={"type": "integer"})

SCHEMAS: dict[str, Schema] = {
    "Error": always(error={"type": "string", "description": "what was wrong, where, and what would be right"}),
    "Welcome": always(name=TEXT, version=TEXT, models=listed(TEXT)),
    "Server": always(name=TEXT, version=TEXT, extensions=listed(TEXT)),
    "Live": always(live={"type": "boolean"}),
    "Ready": always(ready={"type": "boolean"}),
    "ModelReady": always(name=TEXT, ready={"type": "boolean"}),
    "Model": always(name=TEXT, versions=listed(TEXT), platform=TEXT, inputs=listed(_TENSOR), outputs=listed(_TENSOR)),
    "ModelConfig": {
        **fields(["name", "max_batch_size", "input", "output"], name=TEXT, max_batch_size={"type": "integer"}),
        "description": "Triton's ModelConfig",
    },
    "Statistics": always(
        model_stats=listed(
            fields(
                ["name", "version", "inference_count", "execution_count", "inference_stats", "batch_stats"],
                name=TEXT,
                version=TEXT,
                inference_count={"type": "integer"},
                execution_count={"type": "integer"},
                inference_stats={"type": "object", "additionalProperties": _COUNT},
                batch_stats=listed({"type": "object"}),
            )
        )
    ),
    "IndexRequest": fields(ready={"type": "boolean"}),
    "Index": listed(fields(("name", "version", "state"), name=TEXT, version=TEXT, state=TEXT, reason=TEXT)),
    "LoadRequest": fields(parameters=fields(config={"type": "string", "description": "a ModelConfig, as JSON text"})),
    "InferRequest": fields(
        ["inputs"],
        id=TEXT,
        parameters=ref("Parameters"),
        inputs=listed(
            fields(["name", "shape", "datatype"], name=TEXT, shape=SIZES, datatype=TEXT, parameters=ANY_OBJECT, data={})
        ),
        outputs=listed(fields(["name"], name=TEXT, parameters=ANY_OBJECT)),
    ),
    "Parameters": fields(
        timeout={"type": "integer", "minimum": 0, "description": "microseconds; 0: none"},
        priority={"type": "integer", "minimum": 0, "maximum": 2**32 - 1, "description": "1 is the most urgent; 0: the default"},
        binary_data_output={"type": "boolean", "description": "all outputs as binary"},
    ),
    "InferResponse": fields(
        ["model_name", "model_version", "outputs"],
        id=TEXT,
        model_name=TEXT,
        model_version=TEXT,
        outputs=listed(fields(["name", "datatype", "shape"], name=TEXT, datatype=TEXT, shape=SIZES)),
    ),
    "PredictRequest": fields(["inputs"], inputs={}, parameters=ref("Parameters")),
    "PredictResponse": always(model=TEXT, version=TEXT, outputs=ANY_OBJECT),
    "Object": ANY_OBJECT,
    "Any": {},
}


# One model's


def infer_request(signature: Signature) -> Schema:
    given = [_given(spec) for spec in signature.inputs]
    inputs = {
        "type": "array",
        "items": given[0] if len(given) == 1 else {"oneOf": given},
        "minItems": sum(spec.default is None for spec in signature.inputs),
        "maxItems": len(given),
    }
    wanted = {"enum": [spec.name for spec in signature.outputs]}
    outputs = listed(fields(["name"], name=wanted, parameters=fields(binary_data={"type": "boolean"})))
    schema = fields(["inputs"], id=TEXT, parameters=ref("Parameters"), inputs=inputs, outputs=outputs)
    return _with_example(schema, signature, _infer_example)


def predict_request(signature: Signature) -> Schema:
    named = {spec.name: _nested(spec) for spec in signature.inputs}
    needed = [spec.name for spec in signature.inputs if spec.default is None]
    inputs = {"type": "object", "required": needed, "properties": named}
    either = {"anyOf": [inputs, *named.values()]} if len(named) == 1 else inputs
    schema = fields(["inputs"], inputs=either, parameters=ref("Parameters"))
    return _with_example(schema, signature, _predict_example)


def infer_response(signature: Signature) -> Schema:
    outputs = [
        fields(
            ["name", "datatype", "shape"],
            name={"const": spec.name},
            datatype={"const": spec.dtype.value},
            shape={**SIZES, "minItems": len(spec.shape), "maxItems": len(spec.shape)},
            data={"type": "array"},
            parameters=fields(binary_data_size={"type": "integer"}),
        )
        for spec in signature.outputs
    ]
    given = {"type": "array", "items": outputs[0] if len(outputs) == 1 else {"oneOf": outputs}}
    return fields(["model_name", "model_version", "outputs"], id=TEXT, model_name=TEXT, model_version=TEXT, outputs=given)


def predict_response(signature: Signature) -> Schema:
    return always(
        model=TEXT, version=TEXT, outputs={"type": "object", "properties": {spec.name: {} for spec in signature.outputs}}
    )


def _given(spec: TensorSpec) -> Schema:
    """An input of an infer request."""
    data = {"description": "binary only"} if spec.dtype in _HALF else _flat_or_nested(spec)
    return fields(
        ["name", "shape", "datatype", *([] if spec.dtype in _HALF else ["data"])],
        name={"const": spec.name},
        shape=_shape(spec),
        datatype={"const": spec.dtype.value},
        data=data,
        parameters=fields(binary_data_size={"type": "integer", "minimum": 0}),
    )


def _shape(spec: TensorSpec) -> Schema:
    if not spec.shape:
        return {"type": "array", "maxItems": 0}
    sizes = [
        {"const": size} if size >= 0 else {"type": "integer", "minimum": 0, "description": name}
        for size, name in zip(spec.shape, spec.sizes, strict=True)
    ]
    return {"type": "array", "prefixItems": sizes, "minItems": len(sizes), "maxItems": len(sizes)}


def _flat_or_nested(spec: TensorSpec) -> Schema:
    flat = listed(_element(spec.dtype))
    if len(spec.shape) == 1:
        return flat
    return {"anyOf": [flat, _nested(spec)], "description": "flat, or nested as the shape says"}


def _nested(spec: TensorSpec) -> Schema:
    schema = _element(spec.dtype)
    for size in reversed(spec.shape):
        bounds = {} if size < 0 else {"minItems": size, "maxItems": size}
        schema = {"type": "array", "items": schema, **bounds}
    return schema


def _element(dtype: DType) -> Schema:
    if dtype is DType.BOOL:
        return {"type": "boolean"}
    if dtype is DType.BYTES:
        return {"type": "string"}
    if "INT" not in dtype.value:
        return {"type": "number"}
    bits = 8 * dtype.itemsize
    low, high = (0, 2**bits - 1) if dtype.value.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return {"type": "integer", "minimum": low, "maximum": high}


def _with_example(schema: Schema, signature: Signature, make: Any) -> Schema:
    elements = sum(prod(_sizes(spec)) for spec in signature.inputs)
    usable = elements <= MOST_EXAMPLE and not any(spec.dtype in _HALF for spec in signature.inputs)
    return {**schema, "examples": [make(signature)]} if usable else schema


def _infer_example(signature: Signature) -> dict[str, Any]:
    return {
        "inputs": [
            {
                "name": spec.name,
                "shape": _sizes(spec),
                "datatype": spec.dtype.value,
                "data": [_zero(spec.dtype)] * prod(_sizes(spec)),
            }
            for spec in signature.inputs
        ]
    }


def _predict_example(signature: Signature) -> dict[str, Any]:
    return {"inputs": {spec.name: _filled(spec.dtype, _sizes(spec)) for spec in signature.inputs}}


def _sizes(spec: TensorSpec) -> list[int]:
    return [max(size, 1) if size < 0 else size for size in spec.shape]


def _zero(dtype: DType) -> Any:
    return False if dtype is DType.BOOL else "" if dtype is DType.BYTES else 0


def _filled(dtype: DType, sizes: Sequence[int]) -> Any:
    return [_filled(dtype, sizes[1:]) for _ in range(sizes[0])] if sizes else _zero(dtype)
