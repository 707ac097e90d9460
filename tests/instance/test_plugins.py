"""Another package adds a format, a kind of device and a way of running: models are served with them, and whatever is wrong
names the package.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlproxy import InferenceError, Model, Proxy
from dlproxy.config import ConfigError, ModelConfig, ServerConfig, load, parse_devices
from dlproxy.fleet.start import start_fleet
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.devices import CPU_PROVIDER, gpu_of, instance_maker, onnx_plans, visible_gpus
from dlproxy.instance.runtime.formats import format_of, open_runtime
from dlproxy.serve.control import LaneControl
from dlproxy.serve.models import Models
from tests.clients.server import HANG_S, ServerProcess, write_config
from tests.instance.integrity.keys import Keys
from tests.serve.rig import Reply, Rig

CODE = """
import logging
from pathlib import Path

import numpy as np

from dlproxy.fleet.supervised import InstanceKind
from dlproxy.instance.runtime import DeviceKind, Format, ModelError, Order
from dlproxy.instance.thread import ThreadInstance
from dlproxy.message import DType, Signature, TensorSpec
from dlproxy.testing import FakeInstance

log = logging.getLogger(__name__)


class Adder:
    signature = Signature(
        (TensorSpec("x", DType.FP32, (-1, 1)),), (TensorSpec("y", DType.FP32, (-1, 1)),), batched=True, platform="fake"
    )

    def __init__(self, order):
        self.device = order.device
        self.summand = 5 if "://" in order.path else float(Path(order.path).read_text())

    def run(self, inputs):
        return [inputs[0] + np.float32(self.summand)]


def make(name, runtime):
    log.warning("%s runs on the npu", name)
    return ThreadInstance(name, runtime)


fake = Format(name="fake", open=Adder)
class Box(FakeInstance):  # dies of 666
    calibration = on_lost = None
    running = most = 0  # of all

    def __init__(self, name, config):
        super().__init__(name, Adder(Order(path=config.path)), service_s=lambda rows: 0.001)

    async def start(self):
        log.warning("%s: unpacked", self.name)
        return self._runtime.signature

    def adopt(self, signature): ...

    def run(self, requests, done):
        if bytes(requests[0].inputs[0].data) == np.float32(666).tobytes():
            self.on_lost("it burst")
            return
        Box.running += 1
        Box.most = max(Box.most, Box.running)

        def ended(result):
            Box.running -= 1
            done(result)

        super().run(requests, ended)


class Nailed(Box):
    async def start(self):
        raise ModelError("it is nailed up") if "nailed" in self.name else OSError("no crowbar")


box = InstanceKind(make=Box)
lever = InstanceKind(make=Box, resources={"crowbar": 1})
nailed = InstanceKind(make=Nailed)
npu = DeviceKind(
    count=lambda: 2, variable="NPU_VISIBLE_DEVICES", provider="NpuExecutionProvider", instance=make
)
bare = DeviceKind(count=lambda: 1)
broken = DeviceKind(count=lambda: 1 // 0)
liar = Format(name="liar", open=lambda order: 3)
"""
POINTS = {
    "dlproxy.runtimes": {".fake": "fakes:fake", "fake": "fakes:fake", ".gguf": "fakes:fake", ".liar": "fakes:liar"},
    "dlproxy.devices": {"npu": "fakes:npu", "bare": "fakes:bare", "broken": "fakes:broken"},
    "dlproxy.instances": {"box": "fakes:box", "lever": "fakes:lever", "nailed": "fakes:nailed", "fake": "fakes:fake"},
}

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes a distribution in a folder of its own, on the path of this process and of those that it starts."""

    def make(name: str, code: str, points: dict[str, dict[str, str]]) -> Path:
        folder = tmp_path / f"site-{name}"
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = (f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in of.items()) for group, of in points.items())
        (info / "entry_points.txt").write_text("\n".join(lines))
        (folder / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return folder

    return make


@pytest.fixture
def fakes(install: Install, tmp_path: Path) -> Path:
    """A model of the added format."""
    install("fakes", CODE, POINTS)
    (tmp_path / "m.fake").write_text("3")
    return tmp_path / "m.fake"


def test_an_added_format_is_found_by_ending_and_by_scheme(fakes: Path) -> None:
    for path, answer in ((str(fakes), 4.0), ("fake://anywhere/m:Model", 6.0)):
        assert format_of(path).name == "fake"
        (y,) = open_runtime(path).run([np.ones((1, 1), np.float32)])
        assert y.tolist() == [[answer]]


def test_an_added_format_gets_a_path_to_what_was_checked(fakes: Path) -> None:
    keys = Keys(fakes.parent / "keys")
    keys.sign(fakes)
    sealed = keys.encrypt(fakes, fakes.parent / "sealed" / "m.fake")
    signed, secret = open_runtime(str(fakes), trust=keys.trust()), open_runtime(str(sealed), trust=keys.trust(signed=False))
    for runtime in (signed, secret):
        assert runtime.run([np.ones((1, 1), np.float32)])[0].tolist() == [[4.0]]
    fakes.write_text("4")
    with pytest.raises(ModelError, match="has been changed"):
        open_runtime(str(fakes), trust=keys.trust())
    with pytest.raises(ModelError, match=r"fake:// names no file"):
        open_runtime("fake://anywhere", trust=keys.trust())


async def test_an_added_way_of_running_cannot_be_trusted(fakes: Path) -> None:
    keys = Keys(fakes.parent / "keys")
    keys.sign(fakes)
    with pytest.raises(ModelError, match="run = 'box' loads models by itself, which are not checked"):
        await start_fleet("m", ModelConfig(path=str(fakes), run="box"), trust=keys.trust())


def test_an_added_format_goes_before_a_refusal_but_not_before_ours(fakes: Path) -> None:
    (fakes.parent / "m.gguf").write_text("1")
    assert format_of(str(fakes.parent / "m.gguf")).name == "fake"
    (fakes.parent / "m.onnx").write_bytes(b"")
    assert format_of(str(fakes.parent / "m.onnx")).name == "onnx"
    (fakes.parent / "folder.fake").mkdir()
    assert format_of(str(fakes.parent / "folder.fake")).name == "fake"
    (fakes.parent / "m.docx").write_text("")
    with pytest.raises(ModelError, match=r"it takes .*; \.fake, \.gguf, \.liar, fake:// of installed packages"):
        format_of(str(fakes.parent / "m.docx"))


@pytest.mark.parametrize("run", ["auto", "thread", "inline"])
def test_a_model_of_an_added_format_is_served_on_an_added_device(fakes: Path, run: str) -> None:
    config = write_config(fakes.parent / "c.toml", {"m": {"path": "m.fake", "run": run, "device": "npu:1"}})
    with ServerProcess("--config", config) as server:
        body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}]}
        assert server.ask("/v2/models/m/infer", body)["outputs"][0]["data"] == [4.0]
        place = {"auto": "in 1 worker process", "thread": "on 1 thread", "inline": "inline on the event loop"}[run]
        assert f"runs     {place} on npu:1" in server.report
        assert ("m-0 runs on the npu" in server.errors()) is (run == "thread")


def test_a_path_with_a_scheme_is_no_file_beside_the_configuration(fakes: Path) -> None:
    (fakes.parent / "d.toml").write_text("[models.m]\npath = 'fake://m'\n")
    assert load(fakes.parent / "d.toml").models["m"][0].path == "fake://m"


def test_an_added_device(fakes: Path) -> None:
    assert parse_devices("npu, npu:1,cpu") == ["npu", "npu:1", "cpu"]
    assert visible_gpus("npu:1", {}) == {"NPU_VISIBLE_DEVICES": "1"}
    assert visible_gpus("npu:1", {"NPU_VISIBLE_DEVICES": "4,7"}) == {"NPU_VISIBLE_DEVICES": "7"}
    (plan,) = onnx_plans("npu:1", ["NpuExecutionProvider", CPU_PROVIDER], 0)
    assert (plan.place, plan.main) == ("npu:1", "NpuExecutionProvider")
    assert plan.providers == [("NpuExecutionProvider", {"device_id": "1"}), (CPU_PROVIDER, {})]
    assert instance_maker("cuda:1") is None
    assert instance_maker("bare") is None


@pytest.mark.parametrize(
    ("act", "clue"),
    [
        (lambda: onnx_plans("npu:2", ["NpuExecutionProvider"], 0), "device 'npu:2' is not there: its package sees 2 devices"),
        (
            lambda: onnx_plans("npu", [CPU_PROVIDER], 0),
            "needs ONNX Runtime's NpuExecutionProvider, but this build has only CPU",
        ),
        (lambda: onnx_plans("npu", ["NpuExecutionProvider"], 0, memory_limit_mb=1), "cannot be kept by device 'npu'"),
        (lambda: onnx_plans("bare", [CPU_PROVIDER], 0), "device 'bare' is not for ONNX models"),
        (lambda: gpu_of("npu", 1, "torch"), "device 'npu' is for other models; this one takes auto, cpu, cuda"),
        (lambda: visible_gpus("bare", {}), "device 'bare' is for other models; a Python class takes"),
        (lambda: instance_maker("npu:2"), "device 'npu:2' is not there"),
        (lambda: instance_maker("broken"), "device 'broken': its package cannot count them: ZeroDivisionError"),
    ],
)
def test_what_an_added_device_cannot_do_is_refused(fakes: Path, act: Callable[[], Any], clue: str) -> None:
    with pytest.raises(ModelError, match=clue):
        act()


@pytest.mark.parametrize("device", ["npu:x", "npu:", "npuu", "tpu:0"])
def test_devices_that_nobody_adds_are_refused(fakes: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{device}' is not understood; it is auto, cpu"):
        parse_devices(device)


def test_a_package_that_cannot_be_imported_is_named(install: Install, tmp_path: Path) -> None:
    points = {"dlproxy.runtimes": {".bad": "badly:format"}, "dlproxy.devices": {"bad": "badly:kind"}}
    install("badly", "raise OSError('libbad.so: cannot open shared object file')\n", points)
    (tmp_path / "m.bad").write_text("")
    clue = "is added by the package badly, but its badly:{} cannot be imported: OSError: libbad.so: cannot open"
    with pytest.raises(ModelError, match=f"'.bad' {clue.format('format')}"):
        format_of(str(tmp_path / "m.bad"))
    assert parse_devices("bad:0") == ["bad:0"]
    with pytest.raises(ModelError, match=f"'bad' {clue.format('kind')}"):
        instance_maker("bad:0")


def test_what_is_no_format_or_claimed_twice_is_named(install: Install, fakes: Path) -> None:
    install("other", "format = 3\n", {"dlproxy.runtimes": {".odd": "other:format", ".fake": "other:format"}})
    (fakes.parent / "m.odd").write_text("")
    with pytest.raises(ModelError, match=r"package other, but its other:format is no Format"):
        format_of(str(fakes.parent / "m.odd"))
    with pytest.raises(ModelError, match=r"'\.fake' is added by several packages, fakes, other: uninstall all but one"):
        format_of(str(fakes))


def test_what_an_added_format_raises_or_gives_is_a_model_error(fakes: Path) -> None:
    fakes.write_text("three")
    with pytest.raises(ModelError, match=r"m\.fake: the installed format fake raised ValueError: could not convert"):
        open_runtime(str(fakes))
    (fakes.parent / "m.liar").write_text("")
    with pytest.raises(ModelError, match="the installed format liar gave a int, which lacks a Signature"):
        open_runtime(str(fakes.parent / "m.liar"))


async def test_a_way_of_running_that_a_package_adds(fakes: Path, caplog: pytest.LogCaptureFixture) -> None:
    x = np.ones((1, 1), np.float32)
    model = Model(f"fake://{fakes}", name="m", run="box", instances=2, memory_limit_mb=500)  # which is for the package to heed
    async with Proxy([model]) as proxy:
        (loaded,) = proxy.models
        assert isinstance(loaded.control, LaneControl)
        control = loaded.control
        assert (control.state()["run"], len(control.state()["instances"])) == ("box", 2)
        assert (await proxy.infer("m", {"x": x}))["y"].tolist() == [[6.0]]
        with pytest.raises(InferenceError):
            await proxy.infer("m", {"x": 666 * x}, timeout_s=10.0)
        assert (await proxy.infer("m", {"x": x}))["y"].tolist() == [[6.0]]
        assert sum(instance["restarts"] for instance in control.state()["instances"]) >= 1
        await control.scale(3)
        assert len(control.state()["instances"]) == 3
    assert "m-0: unpacked" in caplog.text
    assert "lost: it burst" in caplog.text


@pytest.mark.parametrize(("arbiter", "most"), [("off", 2), ("auto", 1)])
async def test_batches_take_turns_on_what_the_package_says_there_is(fakes: Path, arbiter: str, most: int) -> None:
    made = Models(ServerConfig(arbiter=arbiter))  # type: ignore[arg-type]
    alone = await made.load("a", ModelConfig(path=f"fake://{fakes}", run="lever"))
    assert not alone.control.state()["arbitrated"], "one alone has nobody to share with"
    both = [alone, await made.load("b", ModelConfig(path=f"fake://{fakes}", run="lever"))]
    assert [model.turn_needs for model in both] == [{} if arbiter == "off" else {"cores": 0, "crowbar": 1}] * 2
    replies = [Reply(Rig.plain_request()) for _ in both]
    for model, reply in zip(both, replies, strict=True):
        model.driver.submit(reply.request, reply)
    for reply in replies:
        assert (await reply.wait()).values == [6.0]
    assert sys.modules["fakes"].Box.most == most  # type: ignore[attr-defined]
    await made.drain(1.0)


@pytest.mark.parametrize(
    ("run", "name", "error", "clue"),
    [
        ("bix", "m", ConfigError, "run = 'bix' is not understood; did you mean 'box'?"),
        ("cloud", "m", ConfigError, "it takes auto, inline, thread, process, ray, box, fake, lever, nailed"),
        ("fake", "m", ModelError, "'fake' is added by the package fakes, but its fakes:fake is no InstanceKind"),
        ("nailed", "nailed", ModelError, "it is nailed up"),
        ("nailed", "m", ModelError, "model m: run = 'nailed' raised OSError: no crowbar"),
    ],
)
async def test_ways_of_running_that_do_not_work_are_named(
    fakes: Path, run: str, name: str, error: type[Exception], clue: str
) -> None:
    with pytest.raises(error, match=clue):
        async with Proxy([Model(f"fake://{fakes}", name=name, run=run)]):
            pass


def test_a_scheme_that_nobody_adds_is_named() -> None:
    with pytest.raises(ModelError, match=r"s3://bucket/m\.onnx: nothing that is installed runs models at s3://"):
        format_of("s3://bucket/m.onnx")


def test_nobody_looks_for_packages_unless_nothing_of_ours_is_meant(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    code = (
        "import sys, dlproxy.config as config; from dlproxy.instance.runtime import formats, devices\n"
        f"formats.format_of({str(tmp_path / 'm.onnx')!r}), config.parse_devices('cuda:0'), devices.instance_maker('cpu')\n"
        "sys.exit('importlib.metadata' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-S", "-c", code], timeout=HANG_S, check=False, env=_bare()).returncode == 0


def _bare() -> dict[str, str]:
    """Without what site-packages import by themselves at start."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
