"""What the files beside a model's versions say: dlproxy.toml, config.pbtxt, models.config; and what stands in their place."""

from pathlib import Path

import numpy as np
import pytest

from dlproxy.config import ConfigError
from dlproxy.fleet.repository.scan import listed, listed_in_config, read_listed, scan, versions_of
from dlproxy.fleet.repository.tree import LocalTree
from dlproxy.instance.samples import read_samples, sample_files
from dlproxy.message import DType, TensorSpec
from tests.fleet.repository.fixtures import CLASS, found_in, paths, problems, put


def own(root: Path, text: str) -> None:
    put(root, "m/dlproxy.toml", content=text.encode())


def test_knobs_hold_for_every_version(tmp_path: Path) -> None:
    put(tmp_path, "m/1/net.onnx", "m/1/other.onnx", "m/2/net.onnx", "m/real.npz")
    own(tmp_path, 'path = "net.onnx"\nslo = "p99=20ms"\nsamples = "real.npz"\nserve_versions = 2')
    versions = found_in(tmp_path)["m"].wanted.versions
    assert paths(tmp_path, found_in(tmp_path)["m"]) == {"1": "m/1/net.onnx", "2": "m/2/net.onnx"}
    assert {version.config.slo for version in versions.values()} == {"p99=20ms"}
    assert {version.config.samples for version in versions.values()} == {str(tmp_path / "m" / "real.npz")}


@pytest.mark.parametrize(
    ("text", "versions"),
    [
        ("", ["10"]),
        ("serve_versions = 2", ["9", "10"]),
        ("serve_versions = [3, 9]", ["3", "9"]),
        ('serve_versions = "all"', ["3", "9", "10"]),
    ],
)
def test_which_versions_are_served(text: str, versions: list[str], tmp_path: Path) -> None:
    put(tmp_path, "m/3/model.onnx", "m/9/model.onnx", "m/10/model.onnx")
    own(tmp_path, text)
    assert list(paths(tmp_path, found_in(tmp_path)["m"])) == versions


@pytest.mark.parametrize(
    ("text", "version", "path"),
    [
        ('path = "net.onnx"\nversion = "7"', "7", "m/net.onnx"),
        ('path = "net.py:Net"', "1", "m/net.py:Net"),
        ('path = "net.py"', "1", "m/net.py:Net"),
    ],
)
def test_a_folder_without_versions(text: str, version: str, path: str, tmp_path: Path) -> None:
    put(tmp_path, "m/net.onnx")
    put(tmp_path, "m/net.py", content=CLASS)
    own(tmp_path, text)
    assert paths(tmp_path, found_in(tmp_path)["m"]) == {version: path}


@pytest.mark.parametrize("path", ["http://host/v2/models/m", "sleep:base=1ms", "my_module:Net"])
def test_models_that_are_no_files(path: str, tmp_path: Path) -> None:
    own(tmp_path, f'path = "{path}"')
    assert found_in(tmp_path)["m"].wanted.versions["1"].config.path == path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("slo = 3", "dlproxy.toml:1: slo: expected `str`, got `int`"),
        ("\nslow = 3", "dlproxy.toml:2: unknown key 'slow'; did you mean 'slo'?"),
        ("slo = ", "dlproxy.toml is not TOML"),
        (
            "serve_versions = 0",
            'dlproxy.toml:1: serve_versions = 0 is not understood; write a number (so many of the latest), [3, 5] or "all"',
        ),
        ("serve_versions = true", "serve_versions = True is not understood"),
        ("serve_versions = [4]", "version 4 is to be served, which is not there; there are: 1, 2"),
        ('version = "3"', "dlproxy.toml:1: the names of the folders are the versions: leave version out"),
        ('\npath = "nothing.onnx"', "dlproxy.toml:2: path = 'nothing.onnx': "),
        ('pin = true\nrun = "inline"', "dlproxy.toml:1: pin = true has no effect"),
    ],
)
def test_mistakes_are_named_with_their_line(text: str, problem: str, tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx", "m/2/model.onnx", "good.onnx")
    own(tmp_path, text)
    found = found_in(tmp_path)
    assert problem in next(iter(problems(found["m"]).values()))
    assert problems(found["good"]) == {}


def test_a_version_must_be_one(tmp_path: Path) -> None:
    put(tmp_path, "m/net.onnx")
    own(tmp_path, 'version = "two"')
    assert "dlproxy.toml:1: version = 'two' is not a whole number in quotes" in problems(found_in(tmp_path)["m"])["1"]


def test_what_the_files_set_is_pinned(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx", "m/config.pbtxt", content=b"max_batch_size: 8")
    own(tmp_path, "discipline = 'sjf'\nstart = {hedge = true}")
    config = found_in(tmp_path)["m"].wanted.versions["1"].config
    assert (config.max_batch, set(config.pinned)) == (8, {"max_batch", "discipline"})


def test_tritons_configuration_holds_and_ours_over_it(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx", "m/2/model.onnx")
    put(tmp_path, "m/config.pbtxt", content=b"max_batch_size: 8\nversion_policy: { latest: { num_versions: 2 } }")
    found = found_in(tmp_path)["m"]
    assert paths(tmp_path, found) == {"1": "m/1/model.onnx", "2": "m/2/model.onnx"}
    assert {version.config.max_batch for version in found.wanted.versions.values()} == {8}
    own(tmp_path, "max_queue_rows = 99\nserve_versions = 1")
    found = found_in(tmp_path)["m"]
    ((number, version),) = found.wanted.versions.items()
    assert (number, version.config.max_batch, version.config.max_queue_rows) == ("2", 8, 99)


def test_a_broken_config_pbtxt_is_named_with_its_line(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx", "good.onnx")
    put(tmp_path, "m/config.pbtxt", content=b"max_batch_size: 8\ninput [ {")
    found = found_in(tmp_path)
    assert "config.pbtxt:" in found["m"].problem
    assert found["m"].problem == problems(found["m"])["1"]
    assert problems(found["good"]) == {}


def test_what_is_given_by_hand(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx", "m/2/model.onnx")
    own(tmp_path, "max_batch = 4\nmax_queue_rows = 99")
    listing = listed(LocalTree(tmp_path))["m"]
    ours = read_listed("m", listing, {"max_batch": 16, "serve_versions": "all"})
    assert {number: version.config.max_batch for number, version in ours.wanted.versions.items()} == {"1": 16, "2": 16}
    assert {version.config.max_queue_rows for version in ours.wanted.versions.values()} == {99}
    (tmp_path / "m" / "dlproxy.toml").unlink()
    triton = read_listed("m", listed(LocalTree(tmp_path))["m"], {"name": "m", "max_batch_size": 32})
    assert triton.wanted.versions["2"].config.max_batch == 32


@pytest.mark.parametrize("knob", ["class_names", "path", "samples", "steps"])
def test_whoever_loads_a_model_by_name_names_no_files(knob: str, tmp_path: Path) -> None:
    put(tmp_path, "m.onnx")
    listing = listed(LocalTree(tmp_path))["m"]
    assert f"{knob} cannot be given" in read_listed("m", listing, {knob: "os:System"}).problem
    assert f"{knob} cannot be given" in read_listed("m", listing, {knob: "os:System", "platform": ""}).problem


PIPELINE = """
inputs = {image = "UINT8[-1,-1,3]"}
outputs = {text = "read.y"}
[steps.read]
model = "rec"
inputs = {x = "cut.crops"}
[steps.cut]
call = "code.py:crop"
inputs = {image = "image"}
options = {file = "sizes.json", threshold = 0.5}
"""
ENSEMBLE = b"""
platform: "ensemble"
input { name: "image" data_type: TYPE_UINT8 dims: [ 8 ] }
output { name: "text" data_type: TYPE_STRING dims: [ 1 ] label_filename: "words.txt" }
ensemble_scheduling { step {
  model_name: "rec" input_map { key: "x" value: "image" } output_map { key: "y" value: "text" }
} }
"""


@pytest.mark.parametrize("folder", ["m", "m/7"])
def test_a_folder_with_steps_is_a_pipeline(folder: str, tmp_path: Path) -> None:
    put(tmp_path, f"{folder}/code.py", f"{folder}/sizes.json")
    own(tmp_path, f'slo = "p99=1s"\n{PIPELINE}')
    ((_, version),) = found_in(tmp_path)["m"].wanted.versions.items()
    assert (version.problem, version.config.path, version.config.slo) == ("", "pipeline", "p99=1s")
    cut = version.config.steps["cut"]
    assert cut.call == f"{tmp_path / folder}/code.py:crop"
    assert cut.options == {"file": str(tmp_path / folder / "sizes.json"), "threshold": 0.5}
    put(tmp_path, f"{folder}/code.py", content=b"other code")
    assert found_in(tmp_path)["m"].wanted.versions[version.config.version].stamp != version.stamp
    own(tmp_path, PIPELINE.replace("call =", "cal ="))
    assert "dlproxy.toml:8: unknown key 'cal' in [steps.cut]; did you mean 'call'" in str(problems(found_in(tmp_path)["m"]))
    own(tmp_path, PIPELINE.replace("read.y", "raed.y"))
    assert "dlproxy.toml:3: outputs.text: there is no step 'raed'" in str(problems(found_in(tmp_path)["m"]))


@pytest.mark.parametrize(
    ("files", "versions"), [([], ["1"]), (["m/3/.keep"], ["3"]), (["m/1/.keep", "m/12/README.md"], ["12"])]
)
def test_an_ensemble_of_triton_needs_no_files_in_its_versions(files: list[str], versions: list[str], tmp_path: Path) -> None:
    put(tmp_path, *files, "m/words.txt")
    put(tmp_path, "m/config.pbtxt", content=ENSEMBLE)
    own(tmp_path, "max_queue_rows = 99")
    found = found_in(tmp_path)["m"]
    assert (problems(found), found.warnings, list(found.wanted.versions)) == ({}, (), versions)
    config = found.wanted.versions[versions[0]].config
    assert (config.path, config.steps["rec"].model, config.max_queue_rows) == ("pipeline", "rec", 99)
    assert config.class_names == str(tmp_path / "m" / "words.txt")


def test_what_dlproxy_toml_says_is_in_the_place_of_an_ensemble(tmp_path: Path) -> None:
    put(tmp_path, "m/code.py", "m/1/net.onnx")
    put(tmp_path, "m/config.pbtxt", content=ENSEMBLE)
    for text, path in ((PIPELINE, "pipeline"), ('path = "net.onnx"', str(tmp_path / "m" / "1" / "net.onnx"))):
        own(tmp_path, text)
        found = found_in(tmp_path)["m"]
        assert found.warnings == ("config.pbtxt has no effect: it is an ensemble, and dlproxy.toml says otherwise",)
        assert (problems(found), found.wanted.versions["1"].config.path) == ({}, path)
        assert bool(found.wanted.versions["1"].config.steps) == (path == "pipeline")


def opened(place: str) -> LocalTree:
    if place.startswith("odd:"):
        raise ConfigError(f"nothing reads {place}")
    return LocalTree(Path(place))


def test_models_config(tmp_path: Path) -> None:
    put(tmp_path, "a/1/saved_model.pb", "a/2/saved_model.pb", "a/3/saved_model.pb")
    file = tmp_path / "models.config"
    text = f"""
        model_config_list {{
          config {{
            name: 'first' base_path: '{tmp_path}/a' model_platform: 'tensorflow'
            model_version_policy {{ specific {{ versions: 2 versions: 3 }} }}
            version_labels {{ key: 'stable' value: 2 }}
            version_labels {{ key: 'old' value: 1 }}
            version_labels {{ key: 'no word' value: 3 }}
          }}
          config {{ name: 'second' base_path: '{tmp_path}/none' model_platform: 'tensorflow' }}
          config {{ name: 'third' base_path: 'odd://store' model_platform: 'tensorflow' }}
          config {{ name: 'twice' base_path: '{tmp_path}/a' model_platform: 'tensorflow' }}
          config {{ name: 'twice' base_path: '{tmp_path}/b' model_platform: 'tensorflow' }}
        }}"""
    file.write_text(text)
    put(tmp_path, "a/dlproxy.toml", content=b"max_batch = 3")
    listing = listed_in_config(file, opened)
    found = scan(listing)
    assert {name: versions_of(one) for name, one in listing.items()} == {
        "first": ["1", "2", "3"],
        "second": [],
        "third": [],
        "twice": [],
    }
    assert {version.config.max_batch for version in found["first"].wanted.versions.values()} == {3}
    assert paths(tmp_path, found["first"]) == {"2": "a/2", "3": "a/3"}
    assert found["first"].wanted.labels == {"stable": "2"}
    assert len(found["first"].warnings) == 2
    assert "none is not there" in found["second"].problem
    assert found["third"].problem == "nothing reads odd://store"
    assert "two models are named 'twice' in" in found["twice"].problem


def test_a_models_config_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    with pytest.raises(ConfigError, match=r"models.config cannot be read"):
        listed_in_config(file, opened)
    file.write_text("model_config_list { config { ")
    with pytest.raises(ConfigError, match=r"models.config"):
        listed_in_config(file, opened)


WARMUP = """backend: "onnxruntime"
max_batch_size: %d
model_warmup [
  { batch_size: 4 inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 2 ] input_data_file: "%s" } } },
  { inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 2 ] random_data: true } } }
]
"""


def labelled(*outputs: str) -> bytes:
    found = ", ".join(f'{{ name: "y{number}" label_filename: "{file}" }}' for number, file in enumerate(outputs))
    return f'platform: "onnxruntime_onnx"\noutput [ {found} ]'.encode()


def test_labels_of_every_output_are_the_model_s(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx", "m/labels.txt", "m/mine.txt")
    put(tmp_path, "m/config.pbtxt", content=labelled("labels.txt", "labels.txt"))
    found = found_in(tmp_path)["m"]
    assert (found.warnings, found.wanted.versions["1"].config.class_names) == ((), str(tmp_path / "m/labels.txt"))
    own(tmp_path, 'class_names = "mine.txt"')
    assert found_in(tmp_path)["m"].wanted.versions["1"].config.class_names == str(tmp_path / "m/mine.txt")


@pytest.mark.parametrize(
    ("file", "said"), [("gone", "gone is not there"), ("../x", "outside of the model's folder"), ("/etc/x", "outside")]
)
def test_a_model_whose_labels_cannot_be_read_is_served_without(file: str, said: str, tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx")
    put(tmp_path, "m/config.pbtxt", content=labelled(file))
    found = found_in(tmp_path)["m"]
    assert found.wanted.versions["1"].config.class_names == ""
    (warning,) = found.warnings
    assert "its label_filename has no effect: " in warning
    assert said in warning


@pytest.mark.parametrize(("max_batch", "shape"), [(8, (1, 2)), (0, (2,))])
def test_the_inputs_of_model_warmup_are_the_samples(max_batch: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx")
    put(tmp_path, "m/config.pbtxt", content=(WARMUP % (max_batch, "first/x.raw")).encode())
    put(tmp_path, "m/warmup/first/x.raw", content=np.array([1.5, 2.5], np.float32).tobytes())
    found = found_in(tmp_path)["m"]
    assert found.warnings == ()
    samples = found.wanted.versions["1"].config.samples
    assert sample_files(samples) == [str(tmp_path / "m/warmup/first/x.raw")]
    real, drawn = (row["x"] for row in read_samples(samples, [TensorSpec("x", DType.FP32, shape)]))
    assert (real.tolist(), real.shape, drawn.shape) == (np.reshape([1.5, 2.5], shape).tolist(), shape, shape)
    own(tmp_path, 'samples = "mine.npz"')
    put(tmp_path, "m/mine.npz")
    assert found_in(tmp_path)["m"].wanted.versions["1"].config.samples == str(tmp_path / "m/mine.npz")


@pytest.mark.parametrize(
    ("file", "said"), [("gone", "gone is not there"), ("../x", "outside of the model's folder warmup"), ("/etc/x", "outside")]
)
def test_a_model_whose_warmup_cannot_be_read_is_served_without(file: str, said: str, tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx")
    put(tmp_path, "m/config.pbtxt", content=(WARMUP % (8, file)).encode())
    found = found_in(tmp_path)["m"]
    assert found.wanted.versions["1"].config.samples == ""
    (warning,) = found.warnings
    assert warning.startswith("its model_warmup has no effect: ")
    assert said in warning
