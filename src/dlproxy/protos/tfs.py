"""TensorFlow Serving's gRPC API: `tensorflow.serving.PredictionService` and `ModelService`, as of 2.21.

What dlproxy only hands on (examples, a list of models) is bytes here, which is the same on the wire.

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
    choice,
    many,
    messages,
    one,
)

PREDICTION = "/tensorflow.serving.PredictionService"
MODELS = "/tensorflow.serving.ModelService"
STATES = {"START": 10, "LOADING": 20, "AVAILABLE": 30, "UNLOADING": 40, "END": 50}  # of enum ModelVersionStatus.State
AVAILABLE = STATES["AVAILABLE"]
INPUTS = 2  # PredictRequest.inputs
OUTPUTS = 1  # PredictResponse.outputs
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
_ANSWERED = {"model_spec": one(2, "tensorflow.serving.ModelSpec")}

tfs = messages(
    {
        "google.protobuf": {
            "Int64Value": {"value": one(1, INT64)},
            "Any": {"type_url": one(1, STRING), "value": one(2, BYTES)},
        },
        "tensorflow": {
            "TensorShapeProto": {"dim": many(2, "tensorflow.TensorShapeProto.Dim"), "unknown_rank": one(3, BOOL)},
            "TensorShapeProto.Dim": {"size": one(1, INT64), "name": one(2, STRING)},
            "Feature": choice(
                "kind",
                bytes_list=one(1, "tensorflow.BytesList"),
                float_list=one(2, "tensorflow.FloatList"),
                int64_list=one(3, "tensorflow.Int64List"),
            ),
            "BytesList": {"value": many(1, BYTES)},
            "FloatList": {"value": many(1, FLOAT)},
            "Int64List": {"value": many(1, INT64)},
            "Features": {"feature": by_name(1, "tensorflow.Feature")},
            "Example": {"features": one(1, "tensorflow.Features")},
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
                **choice("version_choice", version=one(2, "google.protobuf.Int64Value"), version_label=one(4, STRING)),
                "signature_name": one(3, STRING),
            },
            "StatusProto": {"error_code": one(1, INT32), "error_message": one(2, STRING)},
            "GetModelStatusRequest": _SPECIFIED,
            "GetModelStatusResponse": {"model_version_status": many(1, "tensorflow.serving.ModelVersionStatus")},
            "ModelVersionStatus": {
                "version": one(1, INT64),
                "state": one(2, INT32),
                "status": one(3, "tensorflow.serving.StatusProto"),
            },
            "ReloadConfigRequest": {"config": one(1, BYTES)},  # a ModelServerConfig
            "ReloadConfigResponse": {"status": one(1, "tensorflow.serving.StatusProto")},
            "GetModelMetadataRequest": {**_SPECIFIED, "metadata_field": many(2, STRING)},
            "GetModelMetadataResponse": {**_SPECIFIED, "metadata": by_name(2, "google.protobuf.Any")},
            "SignatureDefMap": {"signature_def": by_name(1, "tensorflow.SignatureDef")},
            "PredictRequest": {
                **_SPECIFIED,
                "inputs": by_name(INPUTS, "tensorflow.TensorProto"),
                "output_filter": many(3, STRING),
            },
            "PredictResponse": {"outputs": by_name(OUTPUTS, "tensorflow.TensorProto"), **_ANSWERED},
            "ExampleList": {"examples": many(1, BYTES)},
            "ExampleListWithContext": {"examples": many(1, BYTES), "context": one(2, BYTES)},
            "Input": choice(
                "kind",
                example_list=one(1, "tensorflow.serving.ExampleList"),
                example_list_with_context=one(2, "tensorflow.serving.ExampleListWithContext"),
            ),
            "Class": {"label": one(1, STRING), "score": one(2, FLOAT)},
            "Classifications": {"classes": many(1, "tensorflow.serving.Class")},
            "ClassificationResult": {"classifications": many(1, "tensorflow.serving.Classifications")},
            "ClassificationRequest": {**_SPECIFIED, "input": one(2, "tensorflow.serving.Input")},
            "ClassificationResponse": {"result": one(1, "tensorflow.serving.ClassificationResult"), **_ANSWERED},
            "Regression": {"value": one(1, FLOAT)},
            "RegressionResult": {"regressions": many(1, "tensorflow.serving.Regression")},
            "RegressionRequest": {**_SPECIFIED, "input": one(2, "tensorflow.serving.Input")},
            "RegressionResponse": {"result": one(1, "tensorflow.serving.RegressionResult"), **_ANSWERED},
            "InferenceTask": {**_SPECIFIED, "method_name": one(2, STRING)},
            "InferenceResult": {
                **_SPECIFIED,
                **choice(
                    "result",
                    classification_result=one(2, "tensorflow.serving.ClassificationResult"),
                    regression_result=one(3, "tensorflow.serving.RegressionResult"),
                ),
            },
            "MultiInferenceRequest": {
                "tasks": many(1, "tensorflow.serving.InferenceTask"),
                "input": one(2, "tensorflow.serving.Input"),
            },
            "MultiInferenceResponse": {"results": many(1, "tensorflow.serving.InferenceResult")},
        },
    }
)
