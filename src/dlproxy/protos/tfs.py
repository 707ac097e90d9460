"""TensorFlow Serving's gRPC API: `tensorflow.serving.PredictionService` and `ModelService`, as far as dlproxy uses them.

Called by whoever speaks it. Names and numbers: tensorflow_serving/apis of tensorflow/serving, tensorflow/core of tensorflow.
"""

from dlproxy.protos.describe import (
    BOOL,
    BYTES,
    DOUBLE,
    FLOAT,
    INT32,
    INT64,
    STRING,
    UINT32,
    UINT64,
    by_name,
    many,
    messages,
    one,
)

PREDICTION = "/tensorflow.serving.PredictionService"
MODELS = "/tensorflow.serving.ModelService"
AVAILABLE = 30  # of ModelVersionStatus.State
INPUTS = 2  # PredictRequest.inputs
CONTENT = 4  # TensorProto.tensor_content
SIGNATURES = "signature_def"  # the metadata field that GetModelMetadata can be asked for
DATA_TYPES = {  # of enum DataType, those that dlproxy has
    "DT_FLOAT": 1,
    "DT_DOUBLE": 2,
    "DT_INT32": 3,
    "DT_UINT8": 4,
    "DT_INT16": 5,
    "DT_INT8": 6,
    "DT_STRING": 7,
    "DT_INT64": 9,
    "DT_BOOL": 10,
    "DT_BFLOAT16": 14,
    "DT_UINT16": 17,
    "DT_HALF": 19,
    "DT_UINT32": 22,
    "DT_UINT64": 23,
}

_SPECIFIED = {"model_spec": one(1, "tensorflow.serving.ModelSpec")}

tfs = messages(
    {
        "google.protobuf": {
            "Int64Value": {"value": one(1, INT64)},
            "Any": {"type_url": one(1, STRING), "value": one(2, BYTES)},
        },
        "tensorflow": {
            "TensorShapeProto": {"dim": many(2, "tensorflow.TensorShapeProto.Dim"), "unknown_rank": one(3, BOOL)},
            "TensorShapeProto.Dim": {"size": one(1, INT64), "name": one(2, STRING)},
            "TensorProto": {
                "dtype": one(1, INT32),
                "tensor_shape": one(2, "tensorflow.TensorShapeProto"),
                "tensor_content": one(CONTENT, BYTES),
                "float_val": many(5, FLOAT),
                "double_val": many(6, DOUBLE),
                "int_val": many(7, INT32),
                "string_val": many(8, BYTES),
                "int64_val": many(10, INT64),
                "bool_val": many(11, BOOL),
                "half_val": many(13, INT32),
                "uint32_val": many(16, UINT32),
                "uint64_val": many(17, UINT64),
            },
            "TensorInfo": {
                "name": one(1, STRING),
                "dtype": one(2, INT32),
                "tensor_shape": one(3, "tensorflow.TensorShapeProto"),
                "coo_sparse": one(4, "tensorflow.TensorInfo.CooSparse"),
                "composite_tensor": one(5, "tensorflow.TensorInfo.CompositeTensor"),
            },
            "TensorInfo.CooSparse": {},  # that they are there says enough
            "TensorInfo.CompositeTensor": {},
            "SignatureDef": {
                "inputs": by_name(1, "tensorflow.TensorInfo"),
                "outputs": by_name(2, "tensorflow.TensorInfo"),
                "method_name": one(3, STRING),
            },
        },
        "tensorflow.serving": {
            "ModelSpec": {
                "name": one(1, STRING),
                "version": one(2, "google.protobuf.Int64Value"),
                "signature_name": one(3, STRING),
                "version_label": one(4, STRING),
            },
            "GetModelStatusRequest": _SPECIFIED,
            "GetModelStatusResponse": {"model_version_status": many(1, "tensorflow.serving.ModelVersionStatus")},
            "ModelVersionStatus": {"version": one(1, INT64), "state": one(2, INT32)},
            "GetModelMetadataRequest": {**_SPECIFIED, "metadata_field": many(2, STRING)},
            "GetModelMetadataResponse": {**_SPECIFIED, "metadata": by_name(2, "google.protobuf.Any")},
            "SignatureDefMap": {"signature_def": by_name(1, "tensorflow.SignatureDef")},
            "PredictRequest": {**_SPECIFIED, "inputs": by_name(INPUTS, "tensorflow.TensorProto")},
            "PredictResponse": {
                "outputs": by_name(1, "tensorflow.TensorProto"),
                "model_spec": one(2, "tensorflow.serving.ModelSpec"),
            },
        },
    }
)
