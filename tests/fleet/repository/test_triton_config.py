"""config.pbtxt: read as a real Triton reads it, and what of it becomes a knob, a warning or a refusal."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.protobuf import json_format, text_format
from msgspec.structs import replace

from dlproxy.config import ConfigError, ModelConfig, check
from dlproxy.config.pipelines import StepConfig
from dlproxy.fleet.repository.triton_config import InstanceGroup, TritonConfig, read_triton_config, read_triton_json, translated
from dlproxy.fleet.repository.version_choice import Latest, VersionChoice
from dlproxy.fleet.repository.version_policy import VersionPolicy
from dlproxy.protos.triton_config import triton_config
from tests.fleet.repository.triton_configs import ACCEPTED, NOT_OURS, REFUSED

ANSWERS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("triton_answers.json").read_text("utf-8"))["answers"]
"""What a real Triton made of triton_configs.py; ask_triton.py writes it."""
LATEST = VersionChoice(latest=Latest(1))
ONNX = 'backend: "onnxruntime"\n'
BATCHED = ONNX + "max_batch_size: 8\n"
EIGHT = {"max_batch": 8, "max_request_rows": 8}


def knobs(text: str, folder: Path | None = None) -> tuple[dict[str, Any], list[str]]:
    """Those that are not as always, without the path, and the warnings."""
    model, _, warnings = translate(text, folder)
    assert model == msgspec.convert(msgspec.to_builtins(model), ModelConfig), "all in range"
    check(model)
    plain, default = msgspec.to_builtins(model), msgspec.to_builtins(ModelConfig(path=""))
    return {name: value for name, value in plain.items() if value != default[name] and name != "path"}, warnings


def completed(config: TritonConfig, name: str) -> TritonConfig:
    """With what Triton adds to a configuration that leaves it open."""
    batching = config.dynamic_batching
    if batching is not None and not batching.preferred_batch_size and config.max_batch_size:
        batching = replace(batching, preferred_batch_size=(config.max_batch_size,))
    groups = [
        replace(group, count=max(group.count, 1), kind="KIND_CPU" if group.kind == "KIND_AUTO" else group.kind)
        for group in config.instance_group or (InstanceGroup(),)
    ]
    return replace(
        config,
        name=name,
        backend=config.backend or ("" if config.ensemble_scheduling else "python"),
        version_policy=config.version_policy if config.version_policy.policy() else LATEST,
        instance_group=() if config.ensemble_scheduling else tuple(groups),
        dynamic_batching=batching,
        default_model_filename=config.default_model_filename or ("" if config.ensemble_scheduling else "model.py"),
        others=(),
    )


def contained(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict):
        return all(key in theirs and contained(value, theirs[key]) for key, value in ours.items())
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(contained, ours, theirs))
    return bool(ours == theirs)


def translate(text: str, folder: Path | None = None) -> tuple[ModelConfig, VersionPolicy, list[str]]:
    folder = folder or Path("models", "m")
    return translated(read_triton_config(text, "config.pbtxt"), folder, folder / "3")


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_configuration_is_read_as_triton_reads_it(name: str) -> None:
    ours = read_triton_config(ACCEPTED[name], "config.pbtxt")
    theirs = read_triton_json(ANSWERS[name]["config"], "Triton's answer")
    if theirs.version_policy == VersionChoice():
        theirs = replace(theirs, version_policy=LATEST)
    assert completed(ours, name) == replace(theirs, others=())


@pytest.mark.parametrize("name", ACCEPTED)
def test_all_fields_arrive_as_they_do_in_triton(name: str) -> None:
    """Those that dlproxy does not look at, too; Triton adds more."""
    ours = json_format.MessageToDict(text_format.Parse(ACCEPTED[name], triton_config()), preserving_proto_field_name=True)
    answer = json_format.ParseDict(ANSWERS[name]["config"], triton_config())
    theirs = json_format.MessageToDict(answer, preserving_proto_field_name=True)
    for field in set(ours) - set(TritonConfig.__struct_fields__) | {"sequence_batching", "ensemble_scheduling"} & set(ours):
        assert contained(ours[field], theirs[field]), field


@pytest.mark.parametrize("name", REFUSED)
def test_what_triton_refuses_is_refused_in_the_same_line(name: str) -> None:
    assert "refused" in ANSWERS[name]
    if name in NOT_OURS:
        read_triton_config(REFUSED[name], "config.pbtxt")
        return
    line = ANSWERS[name].get("line", "[0-9]+")
    with pytest.raises(ConfigError, match=rf"^config\.pbtxt:{line}: "):
        read_triton_config(REFUSED[name], "config.pbtxt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ONNX, {"batching": "off"}),
        (BATCHED, {**EIGHT}),
        (ONNX + "max_batch_size: 1000000", {"max_batch": 65536, "max_request_rows": 1000000}),
        (BATCHED + "dynamic_batching { }", {**EIGHT, "batching": "on"}),
        (BATCHED + "response_cache { enable: true }", {**EIGHT, "cache": "on"}),
        (BATCHED + "response_cache { enable: false }", {**EIGHT}),
        (
            BATCHED + "dynamic_batching { max_queue_delay_microseconds: 2500 }",
            {**EIGHT, "batching": "on", "max_wait_s": 0.0025},
        ),
        (
            BATCHED + "dynamic_batching { max_queue_delay_microseconds: 18446744073709551615 }",
            {**EIGHT, "batching": "on", "max_wait_s": 60.0},
        ),
        (
            BATCHED + "dynamic_batching { priority_levels: 5 default_priority_level: 4 }",
            {**EIGHT, "batching": "on", "discipline": "priority", "ageing_s": 3600.0},
        ),
        (
            BATCHED + "dynamic_batching { default_queue_policy { default_timeout_microseconds: 1500 max_queue_size: 100 } }",
            {**EIGHT, "batching": "on", "slo": "p99=1500us", "max_queue_rows": 100},
        ),
        (  # one request of as many rows as a batch may always wait
            BATCHED + "dynamic_batching { default_queue_policy { max_queue_size: 2 } }",
            {**EIGHT, "batching": "on", "max_queue_rows": 8},
        ),
        (BATCHED + "instance_group { kind: KIND_CPU count: 3 }", {**EIGHT, "instances": 3, "device": "cpu"}),
        (BATCHED + "instance_group { }", {**EIGHT, "instances": 1}),
        (BATCHED + "instance_group { kind: KIND_MODEL count: 2 }", {**EIGHT, "instances": 2}),
        (BATCHED + "instance_group { gpus: [ 1 ] }", {**EIGHT, "instances": 1, "device": "cuda:1"}),
        (
            BATCHED + "instance_group { kind: KIND_GPU count: 2 gpus: [ 0, 1 ] }",
            {**EIGHT, "instances": 4, "device": "cuda:0,cuda:1"},
        ),
        (
            BATCHED + "instance_group [ { kind: KIND_GPU count: 2 gpus: 0 }, { kind: KIND_CPU } ]",
            {**EIGHT, "instances": 3, "device": "cuda:0,cuda:0,cpu"},
        ),
        (BATCHED + "instance_group { kind: KIND_CPU count: 2000000000 }", {**EIGHT, "instances": 256, "device": "cpu"}),
        (
            BATCHED + 'parameters { key: "intra_op_thread_count" value { string_value: "4" } }',
            {**EIGHT, "threads": 4},
        ),
        (
            BATCHED
            + "instance_group { kind: KIND_GPU gpus: 2 }\n"
            + 'optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }',
            {**EIGHT, "instances": 1, "device": "tensorrt:2"},
        ),
        (
            BATCHED
            + "instance_group { kind: KIND_CPU }\n"
            + 'optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }',
            {**EIGHT, "instances": 1, "device": "openvino:CPU"},
        ),
        (
            'platform: "pytorch_libtorch" max_batch_size: 4\n'
            'input { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 3, -1 ] }\n'
            'input { name: "INPUT__1" data_type: TYPE_BOOL dims: 1 reshape { } }\n'
            'output { name: "OUTPUT__0" data_type: TYPE_BF16 dims: 10 }\n'
            'parameters { key: "INTRA_OP_THREAD_COUNT" value { string_value: "2" } }',
            {
                "max_batch": 4,
                "max_request_rows": 4,
                "threads": 2,
                "inputs": {"INPUT__0": "FP32[batch,3,-1]", "INPUT__1": "BOOL[batch]"},
                "outputs": {"OUTPUT__0": "BF16[batch,10]"},
            },
        ),
        (
            'backend: "pytorch"\ninput { name: "x" data_type: TYPE_INT64 dims: [ -1, 2 ] }\n'
            'output { name: "y" data_type: TYPE_STRING dims: 1 }',
            {"batching": "off", "inputs": {"x": "INT64[-1,2]"}, "outputs": {"y": "BYTES[1]"}},
        ),
    ],
)
def test_what_becomes_of_a_configuration(text: str, expected: dict[str, Any]) -> None:
    found, warnings = knobs(text)
    assert found == expected
    assert warnings == [] or "reshape" in text, warnings


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("dynamic_batching { preferred_batch_size: 4 }", "preferred_batch_size"),
        ("dynamic_batching { preserve_ordering: true }", "dynamic_batching.preserve_ordering"),
        (
            "dynamic_batching { priority_levels: 2 default_priority_level: 1 }",
            "default_priority_level (requests that name none have level 4)",
        ),
        ("dynamic_batching { priority_levels: 9 default_priority_level: 4 }", "priority_levels above 8"),
        ("dynamic_batching { default_queue_policy { timeout_action: DELAY } }", "timeout_action DELAY"),
        (
            "dynamic_batching { priority_levels: 4 default_priority_level: 4 priority_queue_policy { key: 1 } }",
            "priority_queue_policy",
        ),
        ("instance_group { kind: KIND_GPU }", "instance_group on every GPU"),
        ("instance_group [ { }, { passive: true } ]", "instance_group with passive"),
        ("instance_group { rate_limiter { } }", "instance_group.rate_limiter"),
        ("optimization { cuda { graphs: true } }", "optimization.cuda"),
        (
            'optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }',
            "the execution accelerator tensorrt",
        ),
        ('parameters { key: "enable_mem_arena" value { string_value: "0" } }', "the parameter enable_mem_arena"),
        ('metric_tags { key: "a" value: "b" }', "metric_tags"),
        ('name: "n"', "the name n (its folder is named m)"),
        ('input { name: "x" optional: true }', "optional of x"),
        ('input { name: "x" allow_ragged_batch: true }', "allow_ragged_batch of x"),
        ('input { name: "x" reshape { shape: 1 } }', "reshape of x"),
        ('output [ { name: "y" label_filename: "l" }, { name: "z" } ]', "label_filename (outputs that differ in it)"),
        ("model_transaction_policy { decoupled: true }", "model_transaction_policy"),
    ],
)
def test_what_has_no_effect_is_said(text: str, named: str) -> None:
    _, warnings = knobs(BATCHED + text)
    assert len(warnings) == 1
    assert named in warnings[0]


@pytest.mark.parametrize(
    "text",
    [
        'name: "m" runtime: "libtriton_onnxruntime.so"',
        "optimization { input_pinned_memory { enable: false } output_pinned_memory { } }",
        'input { name: "x" format: FORMAT_NCHW }',
        'instance_group { name: "a" }',
        "response_cache { enable: false }",
        'model_warmup { batch_size: 1 inputs { key: "x" value { random_data: true } } }',
        'model_warmup { inputs { key: "x" value { input_data_file: "x" } } }',
    ],
)
def test_nothing_is_said_of_what_makes_no_difference(text: str) -> None:
    assert knobs(BATCHED + text)[1] == []


def test_numbered_outputs_of_torch_models_are_in_their_order() -> None:
    outputs = "".join(f"output {{ name: '{name}' data_type: TYPE_FP32 dims: 1 }}\n" for name in ("O__10", "O__2", "O__1"))
    assert list(translate('backend: "pytorch"\n' + outputs)[0].outputs) == ["O__1", "O__2", "O__10"]
    other = outputs.replace("O__2", "scores")
    assert list(translate('backend: "pytorch"\n' + other)[0].outputs) == ["O__10", "scores", "O__1"]


def test_one_warning_names_all() -> None:
    _, warnings = knobs(
        BATCHED
        + 'optimization { cuda { graphs: true } }\nmetric_tags { key: "a" value: "b" }\ninput { name: "x" optional: true }'
    )
    assert warnings == [
        "its Triton configuration sets what has no effect here: metric_tags, optimization.cuda, optional of x (unless the "
        "model has a default for it)"
    ]


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ('platform: "onnxruntime_onnx"', "model.onnx"),
        ('platform: "pytorch_libtorch"', "model.pt"),
        ('platform: "tensorflow_savedmodel"', "model.savedmodel"),
        ('backend: "tensorflow"', "model.savedmodel"),
        ('backend: "pytorch" default_model_filename: "net.pt2"', "net.pt2"),
        ('backend: "onnxruntime" default_model_filename: "deep/net.onnx"', "deep/net.onnx"),
    ],
)
def test_where_the_model_is(text: str, file: str) -> None:
    assert translate(text)[0].path == str(Path("models", "m", "3", file))


@pytest.mark.parametrize(
    ("text", "file"), [("", "model.onnx"), ("", "model.pt"), ('default_model_filename: "a.onnx"', "a.onnx")]
)
def test_without_a_backend_the_files_tell(text: str, file: str, tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / file).write_bytes(b"")
    assert translate(text, tmp_path)[0].path == str(tmp_path / "3" / file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('backend: "python"', "its backend is python; dlproxy runs onnxruntime_onnx, .*; write a Python class"),
        ('platform: "tensorrt_plan"', "its platform is tensorrt_plan; .*; export ONNX"),
        (
            'platform: "tensorflow_graphdef" backend: "tensorflow"',
            "its platform is tensorflow_graphdef; .*; export a SavedModel",
        ),
        ('backend: "pytorch" input { name: "x" dims: 1 }', "x has no data_type, which a torch model does not say itself"),
        ('backend: "dali"', r"its backend is dali; dlproxy runs onnxruntime_onnx, pytorch_libtorch, tensorflow_savedmodel$"),
        ('platform: "ensemble"', "its platform is ensemble, and it has no ensemble_scheduling"),
        (ONNX + "sequence_batching { iterative_sequence: true }", "it has an iterative_sequence"),
        (
            ONNX + 'sequence_batching { control_input { name: "s" } }',
            "control_input 's' has 0 controls; dlproxy fills an input with one",
        ),
        (
            ONNX + "sequence_batching { control_input { name: 's' control { int32_false_true: [ 2, 3 ] } } }",
            r"control_input 's' tells \[2, 3\] for false and true; dlproxy tells 0 and 1",
        ),
        (ONNX + "sequence_batching { control_input { name: 's' control { } } }", r"control_input 's' tells \[\] for false"),
        (
            ONNX
            + "sequence_batching { control_input [ { name: 's' control { fp32_false_true: [ 0, 1 ] } },"
            + " { name: 't' control { bool_false_true: [ false, true ] } } ] }",
            "control_input 't' tells what 's' tells, too: CONTROL_SEQUENCE_START",
        ),
        (
            ONNX + "sequence_batching { state { input_name: 's' initial_state { data_file: 'x' } } }",
            "the initial_state of 's' is a file; here it is zeros",
        ),
        (
            ONNX + "sequence_batching { state [ { input_name: 's' output_name: 't' }, { input_name: 's' output_name: 'u' } ] }",
            "two states have one input_name",
        ),
        (ONNX + 'batch_input { target_name: "n" }', "it has batch_input"),
        (ONNX + 'batch_output { target_name: "n" }', "it has batch_input or batch_output"),
        ("", "it names no platform or backend, and .*3 holds no model.onnx or model.pt or model.savedmodel"),
        (ONNX + 'default_model_filename: "../../x.onnx"', "default_model_filename is '../../x.onnx', which lies outside"),
        (ONNX + 'default_model_filename: "/x.onnx"', "default_model_filename is '/x.onnx', which lies outside"),
        (
            ONNX + 'parameters { key: "intra_op_thread_count" value { string_value: "-1" } }',
            "is '-1'; it is a number of threads",
        ),
    ],
)
def test_what_cannot_be_served_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        translate(text)


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", VersionPolicy(latest=1)),
        ("version_policy { }", VersionPolicy(latest=1)),
        ("version_policy { latest { num_versions: 3 } }", VersionPolicy(latest=3)),
        ("version_policy { all { } }", VersionPolicy(latest=0)),
        ("version_policy { specific { versions: [ 7, 1 ] } }", VersionPolicy(specific=("7", "1"))),
    ],
)
def test_versions(text: str, policy: VersionPolicy) -> None:
    assert translate(ONNX + text)[1] == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\nmax_batchsize: 3", r'^m/config.pbtxt:3: .* has no field named "max_batchsize". Did you mean max_batch_size\?$'),
        ("name: 'm'\nname: 'n'", "^m/config.pbtxt:2: .*multiple"),
        ("# one\ninput [\n  { name: 'x' }\n  { name: 'y' }\n]", "^m/config.pbtxt:4: "),
        ("name: 'm'\nmax_batch_size: -4", "^m/config.pbtxt:2: max_batch_size is -4; it must not be negative"),
        ("name: 'm'\ninstance_group {\n gpus: -4\n}", "^m/config.pbtxt:3: gpus are -4; they must not be negative"),
        (
            "dynamic_batching { priority_levels: 1\n default_priority_level: 2\n}",
            "^m/config.pbtxt:2: default_priority_level is 2; it is 1 to 1",
        ),
        ("version_policy {\n # specific\n specific { }\n}", "^m/config.pbtxt:3: specific names no versions"),
        ("version_policy {\n latest { }\n}", "^m/config.pbtxt:2: version_policy is the latest 0 versions"),
        ("input {\n name: 'x' dims: 0\n}", "^m/config.pbtxt:2: a size of x is neither above 0 nor -1"),
        ("input {\n name: 'x' dims: [-1, 2]\n reshape { shape: 2 } }", "^m/config.pbtxt:2: reshape of x has another number"),
        ("# '\\q'\nname: 'a\\\\\\q'", r"^m/config.pbtxt:2: '.*': \\q escapes nothing"),
        ("input {\n data_type: 99\n}", "^m/config.pbtxt:2: data_type: expected `str`, got `int`"),
    ],
)
def test_the_line_of_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_triton_config(text, "m/config.pbtxt")


def test_json_says_the_same() -> None:
    data = {"backend": "onnxruntime", "maxBatchSize": 8, "dynamic_batching": {"max_queue_delay_microseconds": "100"}}
    text = BATCHED + "dynamic_batching { max_queue_delay_microseconds: 100 }"
    assert read_triton_json(data, "given") == read_triton_config(text, "config.pbtxt")
    with pytest.raises(ConfigError, match=r'^given: .* no field named "max_batchsize"'):
        read_triton_json({"max_batchsize": 8}, "given")


# Sequences

STATE = """
sequence_batching {
  max_sequence_idle_microseconds: 5000000
  oldest { max_candidate_sequences: 5000 max_queue_delay_microseconds: 100 }
  control_input [
    { name: "START" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } },
    { name: "END" control { kind: CONTROL_SEQUENCE_END int32_false_true: [ 0, 1 ] } },
    { name: "READY" control { kind: CONTROL_SEQUENCE_READY bool_false_true: [ true, true ] } },
    { name: "ID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } }
  ]
  state {
    input_name: "in" output_name: "out" data_type: TYPE_FP32 dims: [ 2, -1 ] use_growable_memory: true
    initial_state { data_type: TYPE_FP32 dims: [ 2, 0 ] zero_data: true name: "empty" }
  }
  state { input_name: "n" output_name: "m" data_type: TYPE_STRING dims: [ 1 ] }
}
"""


def test_sequences_are_kept_apart_and_their_state_is_the_server_s() -> None:
    found, warnings = knobs(BATCHED + STATE)
    assert warnings == []
    assert found == {
        **EIGHT,
        "batching": "on",
        "max_wait_s": 0.0001,
        "sequences": "oldest",
        "sequence_idle_s": 5.0,
        "max_sequences": 5000,
        "sequence_controls": {"start": "START", "end": "END", "ready": "READY", "id": "ID"},
        "state": {"in": "out", "n": "m"},
        "initial_state": {"in": "FP32[1,2,0]", "n": "BYTES[1,1]"},
    }
    assert knobs(ONNX + STATE)[0]["initial_state"] == {"in": "FP32[2,0]", "n": "BYTES[1]"}
    assert knobs(ONNX + "sequence_batching { }")[0] == {"batching": "off", "sequences": "direct", "sequence_idle_s": 1.0}


def test_a_torch_model_takes_its_state_too() -> None:
    given = 'input { name: "x" data_type: TYPE_FP32 dims: 4 } output { name: "y" data_type: TYPE_FP32 dims: 4 }\n'
    model, _, _ = translate('backend: "pytorch" max_batch_size: 8\n' + given + STATE)
    assert model.inputs == {
        "x": "FP32[batch,4]",
        "START": "FP32[batch,1]",
        "END": "INT32[batch,1]",
        "READY": "BOOL[batch,1]",
        "ID": "UINT64[batch,1]",
        "in": "FP32[batch,2,-1]",
        "n": "BYTES[batch,1]",
    }
    assert model.outputs == {"y": "FP32[batch,4]", "out": "FP32[batch,2,-1]", "m": "BYTES[batch,1]"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("sequence_batching { oldest { preserve_ordering: true } }", "sequence_batching.oldest.preserve_ordering"),
        ("sequence_batching { oldest { preferred_batch_size: 4 } }", "sequence_batching.oldest.preferred_batch_size"),
        ("sequence_batching { direct { minimum_slot_utilization: 0.5 } }", "sequence_batching.direct.minimum_slot_utilization"),
        (
            "sequence_batching { oldest { max_candidate_sequences: 4 } }",
            "max_candidate_sequences (up to 4096 sequences are kept, none waits for another to end)",
        ),
        ("sequence_batching { } response_cache { enable: true }", "response_cache (answers depend on the requests before)"),
    ],
)
def test_what_of_sequences_has_no_effect_is_said(text: str, named: str) -> None:
    assert named in knobs(BATCHED + text)[1][0]


# Ensembles


def ensemble(*steps: str, outputs: str = "text", more: str = "") -> str:
    """Of images and the outputs of these names."""
    given = "".join(f'output {{ name: "{name}" data_type: TYPE_STRING dims: [ -1 ] }}\n' for name in outputs.split())
    return (
        'platform: "ensemble"\nmax_batch_size: 8\n'
        f'input {{ name: "image" data_type: TYPE_UINT8 dims: [ -1, -1, 3 ] }}\n{given}{more}'
        f"ensemble_scheduling {{ {' '.join(steps)} }}"
    )


def step(model: str, taken: dict[str, str], made: dict[str, str], more: str = "") -> str:
    maps = [("input_map", taken), ("output_map", made)]
    entries = [f'{name} {{ key: "{key}" value: "{value}" }}' for name, one in maps for key, value in one.items()]
    return f'step {{ model_name: "{model}" {more} {" ".join(entries)} }}'


DET = step("det-v2", {"x": "image"}, {"boxes.1": "boxes", "scores": "scores"}, "model_version: -1")
REC = step("rec", {"x": "image", "b": "boxes"}, {"y": "text"}, "model_version: 3")


def test_an_ensemble_is_a_pipeline() -> None:
    again = step("rec", {"x": "image", "b": "boxes"}, {"y": "twice"})
    found, warnings = knobs(ensemble(REC, DET, again, outputs="text boxes twice"))
    assert warnings == []
    assert translate(ensemble(REC, DET))[0].path == "pipeline"
    taken = {"x": "image", "b": "det_v2.boxes.1"}
    assert found == {
        "inputs": {"image": "UINT8[batch,-1,-1,3]"},
        "outputs": {"text": "rec.y", "boxes": "det_v2.boxes.1", "twice": "rec_2.y"},
        "steps": {
            "rec": {"model": "rec:3", "inputs": taken},
            "det_v2": {"model": "det-v2", "inputs": {"x": "image"}},
            "rec_2": {"model": "rec", "inputs": taken},
        },
    }
    flat = ensemble(REC, DET).replace("max_batch_size: 8", "").replace("[ -1, -1, 3 ]", "[ 8 ]")
    assert knobs(flat)[0]["inputs"] == {"image": "UINT8[8]"}


def test_names_of_torch_exports_and_numbers_are_taken() -> None:
    text = ensemble(step("2nd", {"input.1": "image"}, {"1234": "text"})).replace("image", "input.1")
    model, _, _ = translate(text)
    check(model)
    assert model.steps == {"_2nd": StepConfig(model="2nd", inputs={"input.1": "input.1"})}
    assert model.outputs == {"text": "_2nd.1234"}


def test_what_has_no_effect_of_an_ensemble_is_said() -> None:
    more = (
        'instance_group { count: 2 kind: KIND_CPU } parameters { key: "a" value { string_value: "b" } }\n'
        'model_warmup { name: "w" batch_size: 1 } response_cache { enable: true }\n'
    )
    model, _, warnings = translate(ensemble(DET, REC, step("spare", {"x": "boxes"}, {"y": "z"}), more=more))
    assert list(model.steps) == ["det_v2", "rec"]
    assert model.cache == "on"
    assert warnings == [
        "its Triton configuration sets what has no effect here: the step of spare (nobody takes anything from it), "
        "instance_group, parameters, model_warmup (its models are warmed up)"
    ]
    limited = ensemble(DET, REC).replace("ensemble_scheduling {", "ensemble_scheduling { max_inflight_requests: 3")
    assert "ensemble_scheduling.max_inflight_requests" in knobs(limited)[1][0]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((), "ensemble_scheduling has no steps"),
        (("step { }",), "a step's model_name is ''"),
        ((step("a:b", {"x": "image"}, {"y": "text"}),), "a step's model_name is 'a:b'"),
        ((step("rec", {"x": "image"}, {"y": "text"}, "model_version: -2"),), "model_version is -2; it is -1 or a version"),
        (
            (step("rec", {"x": "imge"}, {"y": "text"}),),
            "step of 'rec': input 'x' is the tensor 'imge', which is no input, and no step makes it; did you mean 'image'",
        ),
        ((step("rec", {"x": "image"}, {"y": "words"}),), "output 'text' is the tensor 'text', which is no input"),
        (
            (step("rec", {"x": "image"}, {"y": "text"}), step("rec", {"x": "image"}, {"z": "text"})),
            "step of 'rec': its tensor 'text' is made by rec.y, too",
        ),
        ((step("rec", {"x": "image"}, {"y": "text", "z": "image"}),), "its tensor 'image' is an input of the ensemble, too"),
        ((step("rec", {"x": "image"}, {"y|z": "text"}),), r"'y\|z' is no name .* it has a \|"),
    ],
)
def test_ensembles_that_hang_together_in_no_way(steps: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        translate(ensemble(*steps))


def test_a_circle_of_an_ensemble_is_found() -> None:
    one, other = step("a", {"x": "image", "z": "b"}, {"y": "a"}), step("b", {"x": "a"}, {"y": "b", "t": "text"})
    with pytest.raises(ConfigError, match="a takes from b takes from a, which is a circle"):
        check(translate(ensemble(one, other))[0])
