"""TensorFlow Serving's list of models, `tensorflow.serving.ModelServerConfig`, as of 2.21, and its `BatchingParameters`.

Called by fleet/repository/tfs_config.py. Names, types and numbers: tensorflow_serving/config/model_server_config.proto and
what it imports, and servables/tensorflow/session_bundle_config.proto, of tensorflow/serving.
"""

from dlproxy.protos.describe import (
    BOOL,
    BYTES,
    DOUBLE,
    INT32,
    INT64,
    STRING,
    UINT32,
    Values,
    by_name,
    choice,
    many,
    messages,
    one,
)

_POLICY = "tensorflow.serving.ServableVersionPolicy"

_MESSAGES = messages(
    {
        "google.protobuf": {
            "Any": {"type_url": one(1, STRING), "value": one(2, BYTES)},
            "Int64Value": {"value": one(1, INT64)},
            "StringValue": {"value": one(1, STRING)},
            "BoolValue": {"value": one(1, BOOL)},
        },
        "tensorflow.serving": {
            "ModelServerConfig": choice(
                "config",
                model_config_list=one(1, "tensorflow.serving.ModelConfigList"),
                custom_model_config=one(2, "google.protobuf.Any"),
            ),
            "ModelConfigList": {"config": many(1, "tensorflow.serving.ModelConfig")},
            "ModelConfig": {
                "name": one(1, STRING),
                "base_path": one(2, STRING),
                "model_type": one(3, "enum tensorflow.serving.ModelType"),
                "model_platform": one(4, STRING),
                "model_version_policy": one(7, _POLICY),
                "version_labels": by_name(8, INT64),
                "logging_config": one(6, "tensorflow.serving.LoggingConfig"),
            },
            "ModelType": Values(MODEL_TYPE_UNSPECIFIED=0, TENSORFLOW=1, OTHER=2),
            "ServableVersionPolicy": choice(
                "policy_choice",
                latest=one(100, f"{_POLICY}.Latest"),
                all=one(101, f"{_POLICY}.All"),
                specific=one(102, f"{_POLICY}.Specific"),
            ),
            "ServableVersionPolicy.Latest": {"num_versions": one(1, UINT32)},
            "ServableVersionPolicy.All": {},
            "ServableVersionPolicy.Specific": {"versions": many(1, INT64)},
            "LoggingConfig": {
                "log_collector_config": one(1, "tensorflow.serving.LogCollectorConfig"),
                "sampling_config": one(2, "tensorflow.serving.SamplingConfig"),
                "custom_logging_config": one(3, "google.protobuf.Any"),
            },
            "LogCollectorConfig": {"type": one(1, STRING), "filename_prefix": one(2, STRING)},
            "SamplingConfig": {
                "sampling_rate": one(1, DOUBLE),
                "attributes": one(2, INT32),
                "per_task_sampling_configs": many(3, "tensorflow.serving.PerTaskSamplingConfig"),
            },
            "PerTaskSamplingConfig": {"dc": one(1, STRING), "sampling_rate": one(3, DOUBLE), "task_index": one(2, INT32)},
            "BatchingParameters": {
                "max_batch_size": one(1, "google.protobuf.Int64Value"),
                "batch_timeout_micros": one(2, "google.protobuf.Int64Value"),
                "max_enqueued_batches": one(3, "google.protobuf.Int64Value"),
                "num_batch_threads": one(4, "google.protobuf.Int64Value"),
                "thread_pool_name": one(5, "google.protobuf.StringValue"),
                "allowed_batch_sizes": many(6, INT64),
                "pad_variable_length_inputs": one(7, BOOL),
                "enable_large_batch_splitting": one(8, "google.protobuf.BoolValue"),  # no wire: the text format has names alone
                "max_execution_batch_size": one(9, "google.protobuf.Int64Value"),
            },
        },
    }
)
models_config, batching_parameters = _MESSAGES.ModelServerConfig, _MESSAGES.BatchingParameters
