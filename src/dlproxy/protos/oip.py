"""The Open Inference Protocol over gRPC as Triton has it: `inference.GRPCInferenceService`, as far as dlproxy uses it.

Called by whoever speaks it. Names and numbers: grpc_service.proto and model_config.proto of triton-inference-server/common.
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
    many,
    messages,
    one,
)

SERVICE = "/inference.GRPCInferenceService"
RAW_INPUTS = 7  # ModelInferRequest.raw_input_contents
RAW_OUTPUTS = 6  # ModelInferResponse.raw_output_contents
IN_STREAM = 2  # ModelStreamInferResponse.infer_response

_NAMED = {"name": one(1, STRING), "version": one(2, STRING)}
_TENSOR = {
    "name": one(1, STRING),
    "datatype": one(2, STRING),
    "shape": many(3, INT64),
    "contents": one(5, "inference.InferTensorContents"),
}

oip = messages(
    {
        "inference": {
            "ModelReadyRequest": _NAMED,
            "ModelReadyResponse": {"ready": one(1, BOOL)},
            "ModelMetadataRequest": _NAMED,
            "ModelMetadataResponse": {
                "name": one(1, STRING),
                "versions": many(2, STRING),
                "platform": one(3, STRING),
                "inputs": many(4, "inference.ModelMetadataResponse.TensorMetadata"),
                "outputs": many(5, "inference.ModelMetadataResponse.TensorMetadata"),
            },
            "ModelMetadataResponse.TensorMetadata": {
                "name": one(1, STRING),
                "datatype": one(2, STRING),
                "shape": many(3, INT64),
            },
            "ModelConfigRequest": _NAMED,
            "ModelConfigResponse": {"config": one(1, "inference.ModelConfig")},
            "ModelConfig": {
                "name": one(1, STRING),
                "platform": one(2, STRING),
                "max_batch_size": one(4, INT32),
                "sequence_batching": one(13, "inference.ModelSequenceBatching"),
                "model_transaction_policy": one(19, "inference.ModelTransactionPolicy"),
            },
            "ModelSequenceBatching": {},  # that it is there says enough
            "ModelTransactionPolicy": {"decoupled": one(1, BOOL)},
            "InferTensorContents": {
                "bool_contents": many(1, BOOL),
                "int_contents": many(2, INT32),
                "int64_contents": many(3, INT64),
                "uint_contents": many(4, UINT32),
                "uint64_contents": many(5, UINT64),
                "fp32_contents": many(6, FLOAT),
                "fp64_contents": many(7, DOUBLE),
                "bytes_contents": many(8, BYTES),
            },
            "ModelInferRequest": {
                "model_name": one(1, STRING),
                "model_version": one(2, STRING),
                "id": one(3, STRING),
                "inputs": many(5, "inference.ModelInferRequest.InferInputTensor"),
                "raw_input_contents": many(RAW_INPUTS, BYTES),
            },
            "ModelInferRequest.InferInputTensor": _TENSOR,
            "ModelInferResponse": {
                "model_name": one(1, STRING),
                "model_version": one(2, STRING),
                "id": one(3, STRING),
                "outputs": many(5, "inference.ModelInferResponse.InferOutputTensor"),
                "raw_output_contents": many(RAW_OUTPUTS, BYTES),
            },
            "ModelInferResponse.InferOutputTensor": _TENSOR,
            "ModelStreamInferResponse": {
                "error_message": one(1, STRING),
                "infer_response": one(IN_STREAM, "inference.ModelInferResponse"),
            },
        }
    }
)
