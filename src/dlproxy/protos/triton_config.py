"""Triton's model configuration, `inference.ModelConfig`: all of it, so that a misspelt field is told from one of no use here.

Called by fleet/repository/triton_config.py and oip.py. Names, types and numbers: protobuf/model_config.proto of
triton-inference-server/common.
"""

from dlproxy.protos.describe import (
    BOOL,
    DOUBLE,
    FLOAT,
    INT32,
    INT64,
    STRING,
    UINT32,
    UINT64,
    Tables,
    Values,
    by_name,
    by_number,
    choice,
    many,
    messages,
    one,
)

_TYPES = "INVALID BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 STRING BF16"
_TYPE = "enum inference.DataType"
_OPTIMIZATION = "inference.ModelOptimizationPolicy"
_SEQUENCE = "inference.ModelSequenceBatching"

_INSTANCES: Tables = {
    "ModelRateLimiter": {"resources": many(1, "inference.ModelRateLimiter.Resource"), "priority": one(2, UINT32)},
    "ModelRateLimiter.Resource": {"name": one(1, STRING), "global": one(2, BOOL), "count": one(3, UINT32)},
    "ModelInstanceGroup": {
        "name": one(1, STRING),
        "kind": one(4, "enum inference.ModelInstanceGroup.Kind"),
        "count": one(2, INT32),
        "rate_limiter": one(6, "inference.ModelRateLimiter"),
        "gpus": many(3, INT32),
        "secondary_devices": many(8, "inference.ModelInstanceGroup.SecondaryDevice"),
        "profile": many(5, STRING),
        "passive": one(7, BOOL),
        "host_policy": one(9, STRING),
    },
    "ModelInstanceGroup.Kind": Values(KIND_AUTO=0, KIND_GPU=1, KIND_CPU=2, KIND_MODEL=3),
    "ModelInstanceGroup.SecondaryDevice": {
        "kind": one(1, "enum inference.SecondaryDeviceKind"),
        "device_id": one(2, INT64),
    },
    "SecondaryDeviceKind": Values(KIND_NVDLA=0),
}
_TENSORS: Tables = {
    "DataType": Values({f"TYPE_{name}": number for number, name in enumerate(_TYPES.split())}),
    "ModelTensorReshape": {"shape": many(1, INT64)},
    "ModelInput": {
        "name": one(1, STRING),
        "data_type": one(2, _TYPE),
        "format": one(3, "enum inference.ModelInput.Format"),
        "dims": many(4, INT64),
        "reshape": one(5, "inference.ModelTensorReshape"),
        "is_shape_tensor": one(6, BOOL),
        "allow_ragged_batch": one(7, BOOL),
        "optional": one(8, BOOL),
        "is_non_linear_format_io": one(9, BOOL),
    },
    "ModelInput.Format": Values(FORMAT_NONE=0, FORMAT_NHWC=1, FORMAT_NCHW=2),
    "ModelOutput": {
        "name": one(1, STRING),
        "data_type": one(2, _TYPE),
        "dims": many(3, INT64),
        "reshape": one(5, "inference.ModelTensorReshape"),
        "label_filename": one(4, STRING),
        "is_shape_tensor": one(6, BOOL),
        "is_non_linear_format_io": one(7, BOOL),
    },
    "BatchInput": {
        "kind": one(1, "enum inference.BatchInput.Kind"),
        "target_name": many(2, STRING),
        "data_type": one(3, _TYPE),
        "source_input": many(4, STRING),
    },
    "BatchInput.Kind": Values(
        BATCH_ELEMENT_COUNT=0,
        BATCH_ACCUMULATED_ELEMENT_COUNT=1,
        BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO=2,
        BATCH_MAX_ELEMENT_COUNT_AS_SHAPE=3,
        BATCH_ITEM_SHAPE=4,
        BATCH_ITEM_SHAPE_FLATTEN=5,
    ),
    "BatchOutput": {
        "target_name": many(1, STRING),
        "kind": one(2, "enum inference.BatchOutput.Kind"),
        "source_input": many(3, STRING),
    },
    "BatchOutput.Kind": Values(BATCH_SCATTER_WITH_INPUT_SHAPE=0),
}
_VERSIONS: Tables = {
    "ModelVersionPolicy": choice(
        "policy_choice",
        latest=one(1, "inference.ModelVersionPolicy.Latest"),
        all=one(2, "inference.ModelVersionPolicy.All"),
        specific=one(3, "inference.ModelVersionPolicy.Specific"),
    ),
    "ModelVersionPolicy.Latest": {"num_versions": one(1, UINT32)},
    "ModelVersionPolicy.All": {},
    "ModelVersionPolicy.Specific": {"versions": many(1, INT64)},
}
_OPTIMIZATIONS: Tables = {
    "ModelOptimizationPolicy": {
        "graph": one(1, f"{_OPTIMIZATION}.Graph"),
        "priority": one(2, f"enum {_OPTIMIZATION}.ModelPriority"),
        "cuda": one(3, f"{_OPTIMIZATION}.Cuda"),
        "execution_accelerators": one(4, f"{_OPTIMIZATION}.ExecutionAccelerators"),
        "input_pinned_memory": one(5, f"{_OPTIMIZATION}.PinnedMemoryBuffer"),
        "output_pinned_memory": one(6, f"{_OPTIMIZATION}.PinnedMemoryBuffer"),
        "gather_kernel_buffer_threshold": one(7, UINT32),
        "eager_batching": one(8, BOOL),
    },
    "ModelOptimizationPolicy.Graph": {"level": one(1, INT32)},
    "ModelOptimizationPolicy.ModelPriority": Values(PRIORITY_DEFAULT=0, PRIORITY_MAX=1, PRIORITY_MIN=2),
    "ModelOptimizationPolicy.Cuda": {
        "graphs": one(1, BOOL),
        "busy_wait_events": one(2, BOOL),
        "graph_spec": many(3, "inference.GraphSpec"),
        "output_copy_stream": one(4, BOOL),
    },
    "ModelOptimizationPolicy.ExecutionAccelerators": {
        "gpu_execution_accelerator": many(1, "inference.Accelerator"),
        "cpu_execution_accelerator": many(2, "inference.Accelerator"),
    },
    "ModelOptimizationPolicy.PinnedMemoryBuffer": {"enable": one(1, BOOL)},
    "GraphSpec": {  # here and below without the messages around it, which text does not name
        "batch_size": one(1, INT32),
        "input": by_name(2, "inference.GraphSpec.Shape"),
        "graph_lower_bound": one(3, "inference.LowerBound"),
    },
    "GraphSpec.Shape": {"dim": many(1, INT64)},
    "LowerBound": {"batch_size": one(1, INT32), "input": by_name(2, "inference.GraphSpec.Shape")},
    "Accelerator": {"name": one(1, STRING), "parameters": by_name(2, STRING)},
}
_BATCHING: Tables = {
    "ModelQueuePolicy": {
        "timeout_action": one(1, "enum inference.ModelQueuePolicy.TimeoutAction"),
        "default_timeout_microseconds": one(2, UINT64),
        "allow_timeout_override": one(3, BOOL),
        "max_queue_size": one(4, UINT32),
    },
    "ModelQueuePolicy.TimeoutAction": Values(REJECT=0, DELAY=1),
    "ModelDynamicBatching": {
        "preferred_batch_size": many(1, INT32),
        "max_queue_delay_microseconds": one(2, UINT64),
        "preserve_ordering": one(3, BOOL),
        "priority_levels": one(4, UINT64),
        "default_priority_level": one(5, UINT64),
        "default_queue_policy": one(6, "inference.ModelQueuePolicy"),
        "priority_queue_policy": by_number(7, "inference.ModelQueuePolicy"),
    },
}
_SEQUENCES: Tables = {
    "ModelSequenceBatching": {
        **choice("strategy_choice", direct=one(3, f"{_SEQUENCE}.StrategyDirect"), oldest=one(4, f"{_SEQUENCE}.StrategyOldest")),
        "max_sequence_idle_microseconds": one(1, UINT64),
        "control_input": many(2, f"{_SEQUENCE}.ControlInput"),
        "state": many(5, f"{_SEQUENCE}.State"),
        "iterative_sequence": one(6, BOOL),
    },
    "ModelSequenceBatching.ControlInput": {"name": one(1, STRING), "control": many(2, "inference.Control")},
    "ModelSequenceBatching.InitialState": {
        "data_type": one(1, _TYPE),
        "dims": many(2, INT64),
        **choice("state_data", zero_data=one(3, BOOL), data_file=one(4, STRING)),
        "name": one(5, STRING),
    },
    "ModelSequenceBatching.State": {
        "input_name": one(1, STRING),
        "output_name": one(2, STRING),
        "data_type": one(3, _TYPE),
        "dims": many(4, INT64),
        "initial_state": many(5, f"{_SEQUENCE}.InitialState"),
        "use_same_buffer_for_input_output": one(6, BOOL),
        "use_growable_memory": one(7, BOOL),
    },
    "ModelSequenceBatching.StrategyDirect": {
        "max_queue_delay_microseconds": one(1, UINT64),
        "minimum_slot_utilization": one(2, FLOAT),
    },
    "ModelSequenceBatching.StrategyOldest": {
        "max_candidate_sequences": one(1, INT32),
        "preferred_batch_size": many(2, INT32),
        "max_queue_delay_microseconds": one(3, UINT64),
        "preserve_ordering": one(4, BOOL),
    },
    "Control": {
        "kind": one(1, "enum inference.Control.Kind"),
        "int32_false_true": many(2, INT32),
        "fp32_false_true": many(3, FLOAT),
        "bool_false_true": many(5, BOOL),
        "data_type": one(4, _TYPE),
    },
    "Control.Kind": Values(
        CONTROL_SEQUENCE_START=0, CONTROL_SEQUENCE_READY=1, CONTROL_SEQUENCE_END=2, CONTROL_SEQUENCE_CORRID=3
    ),
}
_OTHERS: Tables = {
    "ModelEnsembling": {"step": many(1, "inference.ModelEnsembling.Step"), "max_inflight_requests": one(2, UINT32)},
    "ModelEnsembling.Step": {
        "model_name": one(1, STRING),
        "model_version": one(2, INT64),
        "input_map": by_name(3, STRING),
        "output_map": by_name(4, STRING),
        "model_namespace": one(5, STRING),
    },
    "ModelParameter": {"string_value": one(1, STRING)},
    "ModelWarmup": {
        "name": one(1, STRING),
        "batch_size": one(2, UINT32),
        "inputs": by_name(3, "inference.ModelWarmup.Input"),
        "count": one(4, UINT32),
    },
    "ModelWarmup.Input": {
        "data_type": one(1, _TYPE),
        "dims": many(2, INT64),
        **choice("input_data_type", zero_data=one(3, BOOL), random_data=one(4, BOOL), input_data_file=one(5, STRING)),
    },
    "ModelOperations": {"op_library_filename": many(1, STRING)},
    "ModelTransactionPolicy": {"decoupled": one(1, BOOL)},
    "ModelRepositoryAgents": {"agents": many(1, "inference.Accelerator")},  # which has the same fields
    "ModelResponseCache": {"enable": one(1, BOOL)},
    "ModelMetrics": {"metric_control": many(1, "inference.MetricControl")},
    "MetricControl": {
        "metric_identifier": one(1, "inference.MetricControl.MetricIdentifier"),
        **choice("metric_options", histogram_options=one(2, "inference.MetricControl.HistogramOptions")),
    },
    "MetricControl.MetricIdentifier": {"family": one(1, STRING)},
    "MetricControl.HistogramOptions": {"buckets": many(1, DOUBLE)},
}
_CONFIG = {
    "name": one(1, STRING),
    "platform": one(2, STRING),
    "backend": one(17, STRING),
    "runtime": one(25, STRING),
    "version_policy": one(3, "inference.ModelVersionPolicy"),
    "max_batch_size": one(4, INT32),
    "input": many(5, "inference.ModelInput"),
    "output": many(6, "inference.ModelOutput"),
    "batch_input": many(20, "inference.BatchInput"),
    "batch_output": many(21, "inference.BatchOutput"),
    "optimization": one(12, _OPTIMIZATION),
    **choice(
        "scheduling_choice",
        dynamic_batching=one(11, "inference.ModelDynamicBatching"),
        sequence_batching=one(13, _SEQUENCE),
        ensemble_scheduling=one(15, "inference.ModelEnsembling"),
    ),
    "instance_group": many(7, "inference.ModelInstanceGroup"),
    "default_model_filename": one(8, STRING),
    "cc_model_filenames": by_name(9, STRING),
    "metric_tags": by_name(10, STRING),
    "parameters": by_name(14, "inference.ModelParameter"),
    "model_warmup": many(16, "inference.ModelWarmup"),
    "model_operations": one(18, "inference.ModelOperations"),
    "model_transaction_policy": one(19, "inference.ModelTransactionPolicy"),
    "model_repository_agents": one(23, "inference.ModelRepositoryAgents"),
    "response_cache": one(24, "inference.ModelResponseCache"),
    "model_metrics": one(26, "inference.ModelMetrics"),
}

MODEL_CONFIG: Tables = {
    **_TENSORS,
    **_INSTANCES,
    **_VERSIONS,
    **_OPTIMIZATIONS,
    **_BATCHING,
    **_SEQUENCES,
    **_OTHERS,
    "ModelConfig": _CONFIG,
}

triton_config = messages({"inference": MODEL_CONFIG}).ModelConfig
