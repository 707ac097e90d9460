"""The Open Inference Protocol over gRPC as Triton has it: all messages of `inference.GRPCInferenceService`.

Called by whoever speaks it. Names and numbers: grpc_service.proto and model_config.proto of triton-inference-server/common.
"""

from dlproxy.message import DType
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
    Tables,
    by_name,
    choice,
    many,
    messages,
    one,
)
from dlproxy.protos.triton_config import MODEL_CONFIG

SERVICE = "/inference.GRPCInferenceService"
RAW_INPUTS = 7  # ModelInferRequest.raw_input_contents
RAW_OUTPUTS = 6  # ModelInferResponse.raw_output_contents
REQUEST_ID = 3  # of both
IN_STREAM = 2  # ModelStreamInferResponse.infer_response

TYPED = {  # the field of InferTensorContents for each type; 16-bit floats have none
    DType.BOOL: "bool_contents",
    DType.INT8: "int_contents",
    DType.INT16: "int_contents",
    DType.INT32: "int_contents",
    DType.INT64: "int64_contents",
    DType.UINT8: "uint_contents",
    DType.UINT16: "uint_contents",
    DType.UINT32: "uint_contents",
    DType.UINT64: "uint64_contents",
    DType.FP32: "fp32_contents",
    DType.FP64: "fp64_contents",
    DType.BYTES: "bytes_contents",
}

_NAMED = {"name": one(1, STRING), "version": one(2, STRING)}
_NAME = {"name": one(1, STRING)}
_DURATION = "inference.StatisticDuration"
_PARAMETERS = "inference.InferParameter"
_TENSOR = {
    "name": one(1, STRING),
    "datatype": one(2, STRING),
    "shape": many(3, INT64),
    "parameters": by_name(4, _PARAMETERS),
    "contents": one(5, "inference.InferTensorContents"),
}

_SERVER: Tables = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": one(1, BOOL)},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": one(1, BOOL)},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {**_NAMED, "extensions": many(3, STRING)},
}
_MODEL: Tables = {
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
}
_INFERENCE: Tables = {
    "InferParameter": choice(
        "parameter_choice",
        bool_param=one(1, BOOL),
        int64_param=one(2, INT64),
        string_param=one(3, STRING),
        double_param=one(4, DOUBLE),
        uint64_param=one(5, UINT64),
    ),
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
        "id": one(REQUEST_ID, STRING),
        "parameters": by_name(4, _PARAMETERS),
        "inputs": many(5, "inference.ModelInferRequest.InferInputTensor"),
        "outputs": many(6, "inference.ModelInferRequest.InferRequestedOutputTensor"),
        "raw_input_contents": many(RAW_INPUTS, BYTES),
    },
    "ModelInferRequest.InferInputTensor": _TENSOR,
    "ModelInferRequest.InferRequestedOutputTensor": {"name": one(1, STRING), "parameters": by_name(2, _PARAMETERS)},
    "ModelInferResponse": {
        "model_name": one(1, STRING),
        "model_version": one(2, STRING),
        "id": one(REQUEST_ID, STRING),
        "parameters": by_name(4, _PARAMETERS),
        "outputs": many(5, "inference.ModelInferResponse.InferOutputTensor"),
        "raw_output_contents": many(RAW_OUTPUTS, BYTES),
    },
    "ModelInferResponse.InferOutputTensor": _TENSOR,
    "ModelStreamInferResponse": {
        "error_message": one(1, STRING),
        "infer_response": one(IN_STREAM, "inference.ModelInferResponse"),
    },
}
_STATISTICS: Tables = {
    "ModelStatisticsRequest": _NAMED,
    "StatisticDuration": {"count": one(1, UINT64), "ns": one(2, UINT64)},
    "InferStatistics": {
        "success": one(1, _DURATION),
        "fail": one(2, _DURATION),
        "queue": one(3, _DURATION),
        "compute_input": one(4, _DURATION),
        "compute_infer": one(5, _DURATION),
        "compute_output": one(6, _DURATION),
        "cache_hit": one(7, _DURATION),
        "cache_miss": one(8, _DURATION),
    },
    "InferResponseStatistics": {
        "compute_infer": one(1, _DURATION),
        "compute_output": one(2, _DURATION),
        "success": one(3, _DURATION),
        "fail": one(4, _DURATION),
        "empty_response": one(5, _DURATION),
        "cancel": one(6, _DURATION),
    },
    "InferBatchStatistics": {
        "batch_size": one(1, UINT64),
        "compute_input": one(2, _DURATION),
        "compute_infer": one(3, _DURATION),
        "compute_output": one(4, _DURATION),
    },
    "MemoryUsage": {"type": one(1, STRING), "id": one(2, INT64), "byte_size": one(3, UINT64)},
    "ModelStatistics": {
        **_NAMED,
        "last_inference": one(3, UINT64),
        "inference_count": one(4, UINT64),
        "execution_count": one(5, UINT64),
        "inference_stats": one(6, "inference.InferStatistics"),
        "batch_stats": many(7, "inference.InferBatchStatistics"),
        "memory_usage": many(8, "inference.MemoryUsage"),
        "response_stats": by_name(9, "inference.InferResponseStatistics"),
    },
    "ModelStatisticsResponse": {"model_stats": many(1, "inference.ModelStatistics")},
}
_IN_REPOSITORY = {
    "repository_name": one(1, STRING),
    "model_name": one(2, STRING),
    "parameters": by_name(3, "inference.ModelRepositoryParameter"),
}
_REPOSITORY: Tables = {
    "ModelRepositoryParameter": choice(
        "parameter_choice",
        bool_param=one(1, BOOL),
        int64_param=one(2, INT64),
        string_param=one(3, STRING),
        bytes_param=one(4, BYTES),
    ),
    "RepositoryIndexRequest": {"repository_name": one(1, STRING), "ready": one(2, BOOL)},
    "RepositoryIndexResponse": {"models": many(1, "inference.RepositoryIndexResponse.ModelIndex")},
    "RepositoryIndexResponse.ModelIndex": {**_NAMED, "state": one(3, STRING), "reason": one(4, STRING)},
    "RepositoryModelLoadRequest": _IN_REPOSITORY,
    "RepositoryModelLoadResponse": {},
    "RepositoryModelUnloadRequest": _IN_REPOSITORY,
    "RepositoryModelUnloadResponse": {},
}
_REGION = {"name": one(1, STRING), "key": one(2, STRING), "offset": one(3, UINT64), "byte_size": one(4, UINT64)}
_REGIONS: Tables = {
    "SystemSharedMemoryStatusRequest": _NAME,
    "SystemSharedMemoryStatusResponse": {"regions": by_name(1, "inference.SystemSharedMemoryStatusResponse.RegionStatus")},
    "SystemSharedMemoryStatusResponse.RegionStatus": _REGION,
    "SystemSharedMemoryRegisterRequest": _REGION,
    "SystemSharedMemoryRegisterResponse": {},
    "SystemSharedMemoryUnregisterRequest": _NAME,
    "SystemSharedMemoryUnregisterResponse": {},
    "CudaSharedMemoryStatusRequest": _NAME,
    "CudaSharedMemoryStatusResponse": {"regions": by_name(1, "inference.CudaSharedMemoryStatusResponse.RegionStatus")},
    "CudaSharedMemoryStatusResponse.RegionStatus": {**_NAME, "device_id": one(2, UINT64), "byte_size": one(3, UINT64)},
    "CudaSharedMemoryRegisterRequest": {
        **_NAME,
        "raw_handle": one(2, BYTES),
        "device_id": one(3, INT64),
        "byte_size": one(4, UINT64),
    },
    "CudaSharedMemoryRegisterResponse": {},
    "CudaSharedMemoryUnregisterRequest": _NAME,
    "CudaSharedMemoryUnregisterResponse": {},
}
_LOG_VALUE = choice("parameter_choice", bool_param=one(1, BOOL), uint32_param=one(2, UINT32), string_param=one(3, STRING))
_SETTINGS: Tables = {
    "TraceSettingRequest": {
        "settings": by_name(1, "inference.TraceSettingRequest.SettingValue"),
        "model_name": one(2, STRING),
    },
    "TraceSettingRequest.SettingValue": {"value": many(1, STRING)},
    "TraceSettingResponse": {"settings": by_name(1, "inference.TraceSettingResponse.SettingValue")},
    "TraceSettingResponse.SettingValue": {"value": many(1, STRING)},
    "LogSettingsRequest": {"settings": by_name(1, "inference.LogSettingsRequest.SettingValue")},
    "LogSettingsRequest.SettingValue": _LOG_VALUE,
    "LogSettingsResponse": {"settings": by_name(1, "inference.LogSettingsResponse.SettingValue")},
    "LogSettingsResponse.SettingValue": _LOG_VALUE,
}

oip = messages(
    {
        "inference": {
            **MODEL_CONFIG,
            **_SERVER,
            **_MODEL,
            **_INFERENCE,
            **_STATISTICS,
            **_REPOSITORY,
            **_REGIONS,
            **_SETTINGS,
        }
    }
)
