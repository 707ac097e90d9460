"""`dlproxy migrate`: what other servers' configurations become, as dlproxy's own reader reads it; and files of strangers."""

import io
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dlproxy.cli import USER_ERROR, main
from dlproxy.cli.terminal import FAILED, OK
from dlproxy.config import Config, ConfigError, load
from dlproxy.lab.migrate import migrated
from dlproxy.lab.migrate.torchserve import properties_of
from tests import models
from tests.cli.on_a_server import only_line

ONNX = models.DIGITS.read_bytes()
Files = Mapping[str, str | bytes]


def mar(files: Files | None = None, **model: str) -> bytes:
    """A model archive."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))
        for name, content in (files or {}).items():
            archive.writestr(name, content)
    return data.getvalue()


def laid(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


class Case(NamedTuple):
    """`becomes`: of some tables of the configuration that comes of it, some knobs. `says`: what its comments hold."""

    files: Files
    place: str
    becomes: Mapping[str, Mapping[str, Any]]
    says: tuple[str, ...] = ()
    hands: int = 0


TRITON = """
name: "digits"
platform: "onnxruntime_onnx"
max_batch_size: 32
dynamic_batching {
  max_queue_delay_microseconds: 500 preferred_batch_size: [8, 16] preserve_ordering: true
  priority_levels: 3 default_priority_level: 2
  default_queue_policy { default_timeout_microseconds: 50000 max_queue_size: 400 }
}
instance_group [{ count: 2 kind: KIND_CPU }]
version_policy { all {} }
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
optimization { graph { level: 1 } }
model_warmup [{ name: "w" inputs { key: "image" value { data_type: TYPE_FP32 dims: [1, 8, 8] zero_data: true } } }]
response_cache { enable: true }
"""
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input { name: "picture" data_type: TYPE_FP32 dims: [1, 8, 8] }
output { name: "p" data_type: TYPE_FP32 dims: [10] }
ensemble_scheduling { step { model_name: "digits" model_version: -1
  input_map { key: "image" value: "picture" } output_map { key: "probabilities" value: "p" } } }
"""
SEQUENCES = """
backend: "onnxruntime"
max_batch_size: 4
sequence_batching {
  max_sequence_idle_microseconds: 5000000
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START int32_false_true: [0, 1] } }
  state { input_name: "s" output_name: "sN" data_type: TYPE_FP32 dims: [3] }
  oldest { max_candidate_sequences: 9 }
}
"""
BATCHING = """
max_batch_size { value: 128 }
batch_timeout_micros { value: 1000 }
max_enqueued_batches { value: 10 }
num_batch_threads { value: 4 }
allowed_batch_sizes: 128
pad_variable_length_inputs: true
"""
PROPERTIES = """# TorchServe
inference_address = http://0.0.0.0:8443
management_address: http://127.0.0.1:8081
grpc_inference_port=7070
model_store=store
load_models=net.mar
job_queue_size=500
cors_allowed_origin=https://a.example, https://b.example
vmargs=-Xmx4g
keystore_pass=secret
models={\\
  "net": {"1.0": {"defaultVersion": true, "marName": "net.mar", "minWorkers": 2,\\
    "batchSize": 4, "maxBatchDelay": 100, "responseTimeout": 60}}\\
}
"""
BENTO = """
import os
import bentoml
(open("ran", "w"), os.abort())

@bentoml.service(name="numbers", workers=2, traffic={"timeout": 30, "concurrency": 8}, http={"port": 5000}, envs=os.environ)
class Digits:
    def __init__(self):
        import onnxruntime as ort
        self.session = ort.InferenceSession("digits.onnx")

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=200)
    def predict(self, image): ...

@bentoml.service
class Two:
    digits = bentoml.depends(Digits)

    @bentoml.api(batchable=False)
    def a(self, x): ...

    @bentoml.api(max_batch_size=int(os.environ["N"]))
    async def b(self, x): ...
"""

CASES = {
    "a Triton repository": Case(
        {
            "r/digits/config.pbtxt": TRITON,
            "r/digits/1/model.onnx": ONNX,
            "r/digits/2/model.onnx": ONNX,
            "r/both/config.pbtxt": ENSEMBLE,
            "r/python/config.pbtxt": 'backend: "python"',
        },
        "r",
        {
            "digits": {
                "path": "r/digits/2/model.onnx",
                "version": "2",
                "max_batch": 32,
                "max_request_rows": 32,
                "batching": "on",
                "max_wait_s": 0.0005,
                "discipline": "priority",
                "slo": "p99=50000us",
                "max_queue_rows": 400,
                "instances": 2,
                "device": "cpu",
                "threads": 1,
                "cache": "on",
            },
            "both": {"path": "pipeline", "outputs": {"p": "digits.probabilities"}},
        },
        (
            "# not needed: preferred_batch_size: ",
            "# not needed: model_warmup: ",
            "# by hand: default_priority_level",
            "# [models.python]\n# by hand: it cannot be served as it is: its backend is python",
        ),
        hands=2,
    ),
    "a model of Triton's with sequences, whose file is not there": Case(
        {"s/config.pbtxt": SEQUENCES, "s/1/model.onnx": ONNX},
        "s/config.pbtxt",
        {
            "s": {
                "sequences": "oldest",
                "sequence_idle_s": 5.0,
                "sequence_controls": {"start": "START"},
                "state": {"s": "sN"},
                "initial_state": {"s": "FP32[1,3]"},
            }
        },
        ("# not needed: max_candidate_sequences: ",),
    ),
    "labels and warm-up from files": Case(
        {
            "m/config.pbtxt": 'output { name: "probabilities" data_type: TYPE_FP32 dims: [10] label_filename: "l.txt" }'
            'model_warmup { inputs { key: "image" value { data_type: TYPE_FP32 dims: [1, 8, 8] input_data_file: "a" } } }',
            "m/1/model.onnx": ONNX,
            "m/l.txt": "zero",
        },
        "m",
        {"m": {"class_names": "m/l.txt", "batching": "off"}},
        ("# by hand: model_warmup (m/warmup/a): save these inputs",),
        hands=1,
    ),
    "models.config": Case(
        {
            "t/models.config": """model_config_list {
              config { name: "net" base_path: "t/net" model_platform: "tensorflow"
                model_version_policy { specific { versions: 1 versions: 3 } } version_labels { key: "stable" value: 1 } }
              config { name: "far" base_path: "/no/such/folder" logging_config { sampling_config { sampling_rate: 0.1 } } }
              config { name: "cloud" base_path: "s3://bucket/net" } }""",
            "t/batching_parameters.txt": BATCHING,
            "t/net/1/saved_model.pb": "x",
            "t/net/2/saved_model.pb": "x",
            "t/net/3/saved_model.pb": "x",
        },
        "t",
        {
            "server": {"tfs": True},
            "net": {
                "path": "t/net/3",
                "version": "3",
                "max_batch": 128,
                "max_wait_s": 0.001,
                "max_queue_rows": 1280,
                "padding": "on",
            },
            "far": {"path": "/no/such/folder/1"},
            "cloud": {"path": "s3://bucket/net/1"},
        },
        ("dlproxy models label net stable 1", "# not needed: allowed_batch_sizes: ", "# by hand: logging_config: "),
        hands=4,
    ),
    "one model of TensorFlow Serving's": Case(
        {"t.cfg": 'model_config_list { config { name: "n" base_path: "n" } }', "n/7/saved_model.pb": "x"},
        "t.cfg",
        {"n": {"path": "n/7", "version": "7"}},
        ("# not needed: --enable_batching: ",),
    ),
    "config.properties": Case(
        {
            "ts/config.properties": PROPERTIES,
            "ts/store/net.mar": mar(modelName="net", serializedFile="net.onnx", handler="base_handler", modelVersion="1.0"),
        },
        "ts",
        {
            "server": {"http_port": 8443, "host": "0.0.0.0", "control_port": 8081, "grpc_port": 7070},
            "http": {"cors_origins": ["https://a.example", "https://b.example"]},
            "net": {
                "path": "net/net.onnx",
                "max_batch": 4,
                "max_wait_s": 0.1,
                "instances": 2,
                "batch_timeout_s": 60.0,
                "max_queue_rows": 500,
            },
        },
        ("# by hand: serializedFile net.onnx: take it out of the archive: unzip ts/store/net.mar net.onnx -d net",),
        hands=1,
    ),
    "an image classifier of TorchServe's": Case(
        {
            "img.mar": mar({"index_to_name.json": "{}"}, modelName="img", serializedFile="img.pt", handler="image_classifier"),
            "img/img.pt": b"x",
        },
        "img.mar",
        {
            "img_net": {"path": "img/img.pt", "inputs": {"INPUT__0": "FP32[batch,3,224,224]"}},
            "img": {"path": "pipeline", "inputs": {"image": "BYTES[1]"}},
        },
        ("# by hand: index_to_name.json",),
        hands=1,
    ),
    "archives that hold no model that is served": Case(
        {
            "store/eager.mar": mar(modelName="eager", serializedFile="w.pth", modelFile="m.py", handler="image_classifier"),
            "store/code.mar": mar(modelName="code", handler="h.py:go", requirementsFile="requirements.txt"),
        },
        "store",
        {},
        ("# by hand: modelFile m.py: ", "# by hand: handler h.py:go: it loads the model itself", "requirements.txt: install"),
        hands=3,
    ),
    "bentofile.yaml": Case(
        {
            "b/service.py": BENTO,
            "b/bentofile.yaml": "service: 'service:Digits'\nlabels: {owner: me}\npython: {packages: [numpy]}\n",
            "b/digits.onnx": ONNX,
        },
        "b",
        {
            "server": {"http_port": 5000, "host": "0.0.0.0"},
            "numbers": {
                "path": "b/digits.onnx",
                "max_batch": 32,
                "slo": "p99=200ms",
                "instances": 2,
                "batch_timeout_s": 30.0,
            },
        },
        ("# not needed: labels: ", "# by hand: python: ", "# not needed: batchable: ", "# by hand: envs: its value is"),
        hands=3,
    ),
    "service.py": Case(
        {"b/service.py": BENTO, "b/digits.onnx": ONNX},
        "b/service.py",
        {"numbers": {"path": "b/digits.onnx"}},
        ("# [models.Two_a]\n", '# batching = "off"', "# by hand: max_batch_size: its value is", "bentoml.depends(Digits)"),
        hands=7,
    ),
    "pyproject.toml of BentoML's": Case(
        {"b/pyproject.toml": "[tool.bentoml.build]\nservice = 's:Digits'\n", "b/s.py": BENTO},
        "b/pyproject.toml",
        {},
        ("# path = \"b/s.py:numbers\"", "docs/guides/from-bentoml.md"),
        hands=2,
    ),
    "an archive with settings of its own": Case(
        {
            "net/MAR-INF/MANIFEST.json": json.dumps(
                {"model": {"modelName": "net", "serializedFile": "net.pt", "handler": "mine.py", "configFile": "c.yaml"}}
            ),
            "net/net.pt": b"x",
            "net/c.yaml": "minWorkers: 0\nmaxWorkers: 4\nbatchSize: 8\nmaxBatchDelay: 50\nstartupTimeout: 90\ndeviceType: gpu\n"
            "deviceIds: [0, 2]\nclientTimeoutInMills: 1500\nsequenceBatching: true\nhandler:\n  k: 3\n",
        },
        "net",
        {
            "net": {
                "path": "net/net.pt",
                "max_batch": 8,
                "max_wait_s": 0.05,
                "load_timeout_s": 90.0,
                "device": "cuda:0,cuda:2",
                "slo": "p99=1500ms",
            }
        },
        ("# by hand: inputs and outputs: TorchScript", "# by hand: sequenceBatching: ", "# not needed: maxWorkers: "),
        hands=4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_becomes_of_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    monkeypatch.chdir(laid(tmp_path, case.files))
    assert main(["migrate", case.place, "-o", "new.toml"]) == (FAILED if case.hands else OK)
    captured = capsys.readouterr()
    assert ("by hand" in captured.err or "1 setting needs a hand" in captured.err) == bool(case.hands)
    text = Path("new.toml").read_text()
    assert main(["migrate", case.place]) == (FAILED if case.hands else OK)
    assert capsys.readouterr().out == text, "the standard output says the same"
    assert text.count("# by hand: ") == case.hands, text
    for words in case.says:
        assert words in text
    read = load(Path("new.toml"))
    for table, wanted in case.becomes.items():
        found = knobs_of(read, table)
        assert {knob: found[knob] for knob in wanted} == wanted
    assert not Path("ran").exists()


def knobs_of(config: Config, table: str) -> dict[str, Any]:
    section = config.models[table][-1] if table in config.models else getattr(config, table)
    found: dict[str, Any] = msgspec.to_builtins(section)
    return found


def test_what_is_served_is_what_check_finds_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {name: text for name, text in CASES["a Triton repository"].files.items() if "python" not in name}
    monkeypatch.chdir(laid(tmp_path, wanted))
    assert main(["migrate", "r", "-o", "new.toml"]) == FAILED
    places = ["--http-port=0", "--grpc-port=0", "--control-port=0"]
    capsys.readouterr()
    assert main(["check", "--config", "new.toml", *places]) == OK
    said = capsys.readouterr().out
    for words in ("model digits version 1", "model digits version 2", "model both version 1", "up to 32 rows a batch"):
        assert words in said


def test_every_setting_of_tritons_is_spoken_of(tmp_path: Path) -> None:
    text = migrated(
        laid(tmp_path, {"digits/config.pbtxt": TRITON, "digits/1/model.onnx": ONNX}) / "digits", tmp_path / "o"
    ).text()
    comments = "\n".join(line.partition("#")[2] for line in text.splitlines())
    for setting in (
        *("name", "platform", "max_batch_size", "dynamic_batching", "max_queue_delay_microseconds", "preferred_batch_size"),
        *("preserve_ordering", "priority_levels", "default_priority_level", "default_timeout_microseconds", "max_queue_size"),
        *("instance_group", "version_policy", "parameters", "optimization", "model_warmup", "response_cache"),
    ):
        assert setting in comments


def test_nothing_is_overwritten_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(laid(tmp_path, {"m/config.pbtxt": "max_batch_size: 4", "m/1/model.onnx": ONNX}) / "m")
    out = tmp_path / "dlproxy.toml"
    out.write_text("mine")
    assert main(["migrate", place, "-o", str(out)]) == USER_ERROR
    assert only_line(capsys) == f"dlproxy: {out} is there already, and is not overwritten without --force"
    assert out.read_text() == "mine"
    assert main(["migrate", place, "-o", str(out), "--force"]) == OK
    assert load(out).models["m"][0].max_batch == 4


BAD: dict[str, tuple[Files, str, str]] = {
    "nothing": ({}, "none", "none is not there"),
    "an empty folder": ({"e/a": ""}, "e", "e is nothing that is known; it takes Triton's config.pbtxt"),
    "some text": ({"a.txt": "hello"}, "a.txt", "a.txt is nothing that is known"),
    "two servers'": ({"f/config.properties": "", "f/m/config.pbtxt": ""}, "f", "f holds what is for TorchServe and for Triton"),
    "pbtxt": ({"m/config.pbtxt": "max_batch_size: 4\nmax_batch: 3"}, "m", 'm/config.pbtxt:2: Message type "inference'),
    "models.config": ({"models.config": "model_config_list {\n config { nam: 1 } }"}, "models.config", "models.config:2: "),
    "batching": ({"models.config": "model_config_list {}", "batching.txt": "max_batch_size: 3"}, ".", "batching.txt:1: "),
    "not UTF-8": ({"models.config": b"model_config_list {\n\xff"}, "models.config", "models.config:2: it is not UTF-8"),
    "too long": ({"models.config": b"#" * (2 << 20)}, "models.config", "it is longer than 1 MiB"),
    "an address": ({"config.properties": "\ninference_address=8080"}, ".", "config.properties:2: inference_address is '8080'"),
    "a number": ({"config.properties": "max_request_size=1e9"}, ".", ":1: max_request_size is '1e9'; it is a whole number"),
    "models": ({"config.properties": "a=b\nmodels={"}, ".", "config.properties:2: models is not JSON"),
    "no archive": ({"m.mar": b"PK"}, "m.mar", "m.mar is no model archive"),
    "no manifest": ({"m.mar": b"PK\x05\x06" + bytes(18)}, "m.mar", "it has no MAR-INF/MANIFEST.json"),
    "a way out": ({"m.mar": mar(serializedFile="../../x.onnx", handler="h")}, "m.mar", "'../../x.onnx' is no file of"),
    "an absolute way": ({"m.mar": mar(serializedFile="/x.onnx", handler="h")}, "m.mar", "'/x.onnx' is no file of the archive"),
    "a name": ({"m.mar": mar(modelName="a/b", handler="h")}, "m.mar", "'a/b' cannot be a model's name"),
    "tgz": ({"m.tar.gz": b""}, "m.tar.gz", "unpack it first (tar xzf)"),
    "no Python": ({"service.py": "import bentoml\nclass :"}, ".", "service.py:2: it is not Python: "),
    "no service": ({"service.py": "import bentoml\nclass A: ..."}, ".", "it has no class with @bentoml.service"),
    "an old one": ({"service.py": "import bentoml\ns = bentoml.Service('s')"}, ".", "of before version 1.2"),
    "nested": ({"service.py": "import bentoml\n" + "(" * 5000}, ".", "service.py"),
}  # fmt: skip
BAD_YAML: dict[str, tuple[Files, str, str]] = {
    "YAML": ({"bentofile.yaml": "service: [\n"}, ".", "bentofile.yaml:2: it is not YAML: "),
    "a list": ({"bentofile.yaml": "- a"}, ".", "bentofile.yaml: it is no table of settings by name"),
    "objects": ({"bentofile.yaml": "a: !!python/object/apply:os.abort []"}, ".", "bentofile.yaml:1: it is not YAML: "),
    "aliases": (
        {"bentofile.yaml": "a: &a [x]\nb: [" + "*a, " * 200 + "]"},
        ".",
        "bentofile.yaml:2: it has 101 aliases, which no",
    ),
    "deep": ({"bentofile.yaml": "a: " + "[" * 5000}, ".", "bentofile.yaml:1: it has tables in tables, 51 deep"),
    "another service": ({"bentofile.yaml": "service: service:A", "service.py": BENTO}, ".", "no service A; it has Digits, Two"),
}


@pytest.mark.parametrize("name", [*BAD, *BAD_YAML])
def test_what_cannot_be_translated(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files, place, words = (BAD | BAD_YAML)[name]
    monkeypatch.chdir(laid(tmp_path, files))
    assert main(["migrate", place, "-o", "new.toml"]) == USER_ERROR
    assert words in only_line(capsys)
    assert not Path("new.toml").exists()


def test_a_file_that_unfolds_is_read_in_part(tmp_path: Path) -> None:
    bomb = tmp_path / "m.mar"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("MAR-INF/MANIFEST.json", b" " * (64 << 20))
    with pytest.raises(ConfigError, match="longer than 1 MiB"):
        migrated(bomb, tmp_path / "o")


def test_options_for_another_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = laid(tmp_path, {"m/config.pbtxt": "", "b": ""}) / "m"
    assert main(["migrate", str(place), "--batching", str(tmp_path / "b")]) == USER_ERROR
    assert "--batching is for TensorFlow Serving" in only_line(capsys)


SETTINGS = st.dictionaries(st.text(max_size=20), st.text(max_size=20) | st.integers(), max_size=4)
KNOWN = st.sampled_from(
    ("batchSize", "maxBatchDelay", "minWorkers", "jobQueueSize", "deviceIds", "clientTimeoutInMills", "pt2")
)


@given(
    own=SETTINGS,
    known=st.dictionaries(KNOWN, st.integers(0, 1 << 60) | st.text(max_size=9), max_size=3),
    name=st.text(max_size=12),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_of_a_stranger_becomes_a_knob(own: dict[str, Any], known: dict[str, Any], name: str, tmp_path: Path) -> None:
    """What a file says stands in values and comments, whatever it is; else it is refused in one line."""
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    versions = {"n": {"1.0": {"marName": "n.mar", **own, **known}}}
    escaped = json.dumps(versions).replace("\\", "\\\\")
    archive = mar({"x\n[server]\nhttp_port = 1": b""}, modelName=name, serializedFile="x.onnx", handler=name or "h")
    laid(tmp_path / "a", {"config.properties": f"model_store=.\nmodels={escaped}", "n.mar": archive})
    refused = ""
    try:
        draft = migrated(tmp_path / "a", tmp_path / "a" / "dlproxy.toml")
    except ConfigError as error:
        refused = str(error)
    assert "what came of it is refused" not in refused
    if refused:
        return
    (tmp_path / "read.toml").write_text(draft.text(), "utf-8")
    read = load(tmp_path / "read.toml")
    assert read.server == msgspec.structs.replace(Config().server, http_port=8080)
    assert set(read.models) <= {"n"}


def test_properties_are_read_as_java_reads_them() -> None:
    text = "! no\n# no\n a = 1 \nb:2\nc 3\n\nd=x\\\n   y\\\n  z\ne=\nf\\\\=g\\\\h\n"
    assert properties_of(text) == {
        "a": (3, "1"),
        "b": (4, "2"),
        "c": (5, "3"),
        "d": (7, "xyz"),
        "e": (10, ""),
        "f\\\\": (11, "g\\h"),
    }
