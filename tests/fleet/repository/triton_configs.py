"""Configurations as people write them for Triton, rewritten for its Python backend, which every build has.

Read by test_triton_config.py and by ask_triton.py, which asks a real Triton what it makes of them.
"""

HEAD = """backend: "python"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 4 }
output { name: "y" data_type: TYPE_FP32 dims: 4 }
"""

ACCEPTED = {
    "plain": HEAD,
    "unbatched": """
name: "unbatched"
backend: "python"
input [ { name: "ids" data_type: TYPE_INT64 dims: [ -1, 2 ] } ]
output [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
""",
    "image": """
name: "image"
backend: "python"
max_batch_size: 32
input [ { name: "data" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 224, 224 ] } ]
output [ { name: "scores" data_type: TYPE_FP32 dims: [ 1000 ] label_filename: "labels.txt" } ]
dynamic_batching { preferred_batch_size: [ 4, 8, 32 ] max_queue_delay_microseconds: 2500 }
instance_group [ { kind: KIND_CPU count: 2 } ]
""",
    "priorities": HEAD
    + """
dynamic_batching {
  priority_levels: 3
  default_priority_level: 2
  default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 300000 max_queue_size: 64 }
  priority_queue_policy { key: 1 value { default_timeout_microseconds: 50000 allow_timeout_override: true } }
  priority_queue_policy { key: 3 value: { timeout_action: DELAY } }
}
""",
    "delayed": HEAD
    + """
dynamic_batching {
  default_queue_policy {
    timeout_action: DELAY default_timeout_microseconds: 1000 allow_timeout_override: true max_queue_size: 2
  }
}
""",
    "ordered": HEAD + "dynamic_batching { preserve_ordering: true }",
    "latest": HEAD + "version_policy: { latest { num_versions: 2 } }",
    "no_policy": HEAD + "version_policy: { }",
    "every": HEAD + "version_policy { all {} }",
    "specific": HEAD + "version_policy: { specific: { versions: [ 1, 3 ] } }",
    "instances": HEAD
    + """
instance_group [
  { name: "near" kind: KIND_CPU count: 3 },
  { kind: KIND_MODEL count: 2 },
  { kind: KIND_AUTO host_policy: "cpu" },
  { count: 1 kind: KIND_CPU passive: true }
]
""",
    "ragged": """
backend: "python"
max_batch_size: 16
input { name: "tokens" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true }
batch_input { kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: "ends" data_type: TYPE_FP32 source_input: "tokens" }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
batch_output { target_name: "y" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "tokens" }
dynamic_batching { max_queue_delay_microseconds: 1000000 }
""",
    "warmed": HEAD
    + """
model_warmup [
  { name: "zeros" batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 zero_data: true } } },
  { name: "random" batch_size: 8 count: 2 inputs { key: "x" value: { data_type: TYPE_FP32 dims: [ 4 ] random_data: true } } },
  { name: "real" batch_size: 2 inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 input_data_file: "x.raw" } } }
]
""",
    "sequences": HEAD
    + """
sequence_batching {
  max_sequence_idle_microseconds: 5000000
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },
    { name: "READY" control [ { kind: CONTROL_SEQUENCE_READY fp32_false_true: [ -1.5, 1 ] } ] }
  ]
  oldest { max_candidate_sequences: 4 preferred_batch_size: [ 2 ] max_queue_delay_microseconds: 100 }
}
""",
    "shapes": """
backend: "python"
max_batch_size: 4
input [
  { name: "flag" data_type: TYPE_BOOL dims: [ 1 ] reshape: { shape: [ ] } },
  { name: "hint" data_type: TYPE_UINT8 dims: [ 2, 3 ] reshape { shape: 6 } optional: true }
]
output { name: "y" data_type: TYPE_FP16 dims: [ 6 ] reshape { shape: [ 3, 2 ] } }
""",
    "cached": HEAD + "response_cache { enable: true }",
    "parameters": HEAD
    + """
parameters { key: "intra_op_thread_count" value: { string_value: "4" } }
parameters: { key: "path" value: { string_value: "$$TRITON_MODEL_DIRECTORY/a\\tb" } }
metric_tags { key: "team" value: "vision" }
cc_model_filenames { key: "8.0" value: "model_80.py" }
default_model_filename: "model.py"
""",
    "optimized": HEAD
    + """
optimization {
  graph { level: -1 }
  priority: PRIORITY_MAX
  cuda { graphs: true graph_spec { batch_size: 1 input { key: "x" value { dim: [ 4 ] } } } }
  execution_accelerators {
    gpu_execution_accelerator: [ { name: "tensorrt" parameters { key: "precision_mode" value: "FP16" } } ]
    cpu_execution_accelerator: [ { name: "openvino" } ]
  }
  input_pinned_memory { enable: false }
  eager_batching: true
}
""",
    "decoupled": HEAD + "model_transaction_policy { decoupled: true }",
    "ensemble": """
platform: "ensemble"
max_batch_size: 8
input { name: "in" data_type: TYPE_FP32 dims: 4 }
output { name: "out" data_type: TYPE_FP32 dims: 4 }
ensemble_scheduling { step [ {
  model_name: "plain" model_version: -1
  input_map { key: "x" value: "in" } output_map { key: "y" value: "out" }
} ] }
""",
    "comma_first": HEAD + ", dynamic_batching { }",
    "level_without_levels": HEAD + "dynamic_batching { default_priority_level: 1 }",
    "negative_count": HEAD + "instance_group { count: -1 kind: KIND_CPU }",
    "no_backend": HEAD.partition("\n")[2],
    "odd_text": """# comments, both kinds of brackets, separators, and numbers in all their bases
name: "odd"   # the rest of a line
      '_te' "x\\164"
backend: "\\x70ython", max_batch_size: 0x10;
input < name: 'a' data_type: 11 dims: 0x3; dims: 010, dims: [] >
input: [ < name: "b\\"\\'\\\\\\303\\251é" data_type: TYPE_INT8 dims: [ -1 , 4 ] >,
         { name: "c" data_type: TYPE_BF16, dims: 9223372036854775807 } ]
output { name: "y" data_type: TYPE_FP64 dims: [ 1 ] };
dynamic_batching { priority_levels: 18446744073709551615 default_priority_level: 1 }
response_cache: { enable: t }
metric_tags { key: "twice" value: "first" }
metric_tags { key: "twice" value: "second" }
metric_tags { value: "no key" }
""",
}

# What a real Triton refuses.
REFUSED = {
    "misspelt": HEAD + "dynamic_batchng { }",
    "misspelt_below": HEAD + "dynamic_batching {\n  preferred_batch_sizes: [ 1 ]\n}",
    "twice": HEAD + "max_batch_size: 4",
    "two_schedulers": HEAD + "dynamic_batching { }\nsequence_batching { }",
    "two_policies": HEAD + "version_policy { latest { } all { } }",
    "open": HEAD + "instance_group [ { count: 1 }",
    "open_text": HEAD + 'parameters { key: "a }',
    "no_colon": HEAD + 'name "no_colon"',
    "too_large": HEAD + "instance_group { count: 2147483648 }",
    "negative": HEAD + "dynamic_batching { max_queue_delay_microseconds: -1 }",
    "fraction": HEAD + "instance_group { count: 1.0 }",
    "unknown_type": HEAD + 'input { name: "z" data_type: TYPE_FP99 dims: 1 }',
    "word_for_number": HEAD + "instance_group { count: two }",
    "text_for_number": HEAD + 'instance_group { count: "2" }',
    "number_for_truth": HEAD + "response_cache { enable: 2 }",
    "json": '{ "name": "json", "backend": "python" }',
    "bad_escape": HEAD + 'metric_tags { key: "\\q" value: "" }',
    "negative_batch": 'backend: "python"\nmax_batch_size: -1',
    "default_level": HEAD + "dynamic_batching { priority_levels: 2 default_priority_level: 3 }",
    "no_default_level": HEAD + "dynamic_batching { priority_levels: 2 }",
    "level_policy": HEAD
    + "dynamic_batching { priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value { } } }",
    "gpus_of_cpu": HEAD + "instance_group { kind: KIND_CPU gpus: 0 }",
    "preferred": HEAD + "dynamic_batching { preferred_batch_size: 9 }",
    "preferred_unbatched": 'backend: "python"\ninput { name: "x" data_type: TYPE_FP32 dims: 4 }\n'
    'output { name: "y" data_type: TYPE_FP32 dims: 4 }\ndynamic_batching { preferred_batch_size: 1 }',
    "latest_of_none": HEAD + "version_policy { latest { } }",
    "no_specific": HEAD + "version_policy { specific { } }",
    "no_type": HEAD + 'input { name: "z" dims: 1 }',
    "no_dims": HEAD + 'input { name: "z" data_type: TYPE_FP32 }',
    "zero_dims": HEAD + 'input { name: "z" data_type: TYPE_FP32 dims: 0 }',
    "reshape": HEAD + 'input { name: "z" data_type: TYPE_FP32 dims: 4 reshape { shape: [ 3 ] } }',
    "other_name": HEAD + 'name: "another"',
    "gpu": HEAD + "instance_group { kind: KIND_GPU }",
    "agent": HEAD + 'model_repository_agents { agents { name: "checksum" } }',
}

# Of these, what dlproxy reads nevertheless.
NOT_OURS = {
    "no_type": "where Triton completes configurations by the model, as it does unless told otherwise, it is no mistake",
    "no_dims": "the same",
    "other_name": "a warning when it is translated",
    "gpu": "there are machines with one",
    "agent": "there are servers with one",
}
