"""One CNN in every runtime that dlproxy has: `python -m benchmarks.frameworks`, or `make bench-frameworks`.

Time to load, L(1), L(64) and memory, each model in a process of its own, one thread, in turns. Exits with 1 if answers differ.
`--write` writes FRAMEWORKS.md. Needs the extras torch, train and tensorflow; some five minutes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.machine import describe_machine, summary
from benchmarks.harness.options import minute, options_of, positive, utc_now
from benchmarks.harness.page import paragraph, table
from benchmarks.harness.processes import Cores
from benchmarks.harness.turns import in_turn, spread
from dlproxy.fleet.memory import resident_bytes
from dlproxy.instance.runtime.formats import open_runtime

PAGE = Path(__file__).with_name("FRAMEWORKS.md")
WEIGHTS = "FRAMEWORKS_WEIGHTS"
ROWS, BURST_S, EQUAL = (1, 64), 0.5, 1e-4
SIDE, CLASSES = 32, 10
WIDTHS = ((3, 32), (32, 32), (32, 64), (64, 64), (64, 128))  # channels of each convolution; after two of them a pooling
POOLED = (1, 3)
SPECS = {"inputs": {"x": f"FP32[-1,3,{SIDE},{SIDE}]"}, "outputs": {"output": f"FP32[-1,{CLASSES}]"}}
ABOUT = f"""\
One network, five convolutions on images of {SIDE} x {SIDE} with {CLASSES} classes and one set of random weights, exported to
each format that dlproxy serves. Each is loaded by dlproxy's own runtime in a process of its own, with one thread; the
processes take turns, so that what else the machine does disturbs them alike. Load: from the call to the first answer, the
import of the framework included. Memory: what the process holds at the end, beyond what it held before the call. L(n): the
time of a batch of n rows; in brackets, by ONNX's of the same round, the median over the rounds and their range."""
CHOOSING = """\
- **ONNX, wherever the model can be exported to it.** It needs nothing but what dlproxy brings, loads in the least time and
  memory, and has the least overhead for a row alone, which is what matters for small models under low load.
- **An exported program (`.pt2`)** where the export to ONNX fails, or an operator is missing. PyTorch develops it further.
- **TorchScript** where it is what you have. PyTorch has deprecated it, and it says neither shapes nor types.
- **A SavedModel** rather than `.keras`: it holds custom classes. Both keep TensorFlow's import and memory.
- **A Python class** where code stands around the model, or the framework is none of these. It costs what it calls.

How the columns compare depends on the network: where a row takes many milliseconds, overheads do not matter, and the
framework with the best kernels for it wins. Try yours: export it twice, and have `dlproxy check` say what a row takes."""


def network() -> Any:
    """With random weights, always the same."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for number, (taken, given) in enumerate(WIDTHS):
        layers += [nn.Conv2d(taken, given, 3, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if number in POOLED else []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(*layers)
            self.head = nn.Linear(WIDTHS[-1][1], CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x).mean((2, 3)))

    return Net().eval()


class Eager:
    """The same as a Python class: PyTorch as it is, without an export."""

    inputs, outputs = SPECS["inputs"], SPECS["outputs"]

    def load(self) -> None:
        import torch

        self.torch = torch
        torch.set_num_threads(1)
        self.net = network()
        self.net.load_state_dict(torch.load(os.environ[WEIGHTS], weights_only=True))

    def predict(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with self.torch.inference_mode():
            return {"output": self.net(self.torch.from_numpy(batch["x"])).numpy()}


def export_torch(folder: Path) -> None:
    import torch

    net, example = network(), torch.zeros(2, 3, SIDE, SIDE)
    rows = {"x": {0: torch.export.Dim("batch")}}
    torch.save(net.state_dict(), folder / "weights.pth")
    torch.jit.script(net).save(str(folder / "net.pt"))
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=rows), folder / "net.pt2")
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["output"]}
    torch.onnx.export(net, (example,), folder / "net.onnx", dynamic_shapes=rows, dynamo=True, external_data=False, **names)
    np.savez(folder / "weights.npz", *(value.numpy() for value in net.state_dict().values()))


def export_keras(folder: Path) -> None:
    import keras

    with np.load(folder / "weights.npz") as archive:
        weights = [archive[name] for name in archive.files]
    taken = keras.Input((3, SIDE, SIDE), name="x")
    flow = keras.layers.Permute((2, 3, 1))(taken)
    for number, (_, given) in enumerate(WIDTHS):
        flow = keras.layers.Conv2D(given, 3, padding="same", activation="relu")(flow)
        flow = keras.layers.MaxPooling2D(2)(flow) if number in POOLED else flow
    flow = keras.layers.GlobalAveragePooling2D()(flow)
    model = keras.Model(taken, keras.layers.Dense(CLASSES, name="output")(flow))
    model.set_weights([one.transpose(2, 3, 1, 0) if one.ndim == 4 else one.T for one in weights])
    model.save(folder / "net.keras")
    model.export(folder / "net", verbose=False)


class Kind(NamedTuple):
    name: str
    file: str
    declared: bool = False  # it does not say its inputs and outputs itself


KINDS = (
    Kind("ONNX (`.onnx`)", "net.onnx"),
    Kind("TorchScript (`.pt`)", "net.pt", declared=True),
    Kind("exported program (`.pt2`)", "net.pt2"),
    Kind("Keras (`.keras`)", "net.keras"),
    Kind("SavedModel", "net"),
    Kind("Python class (PyTorch)", f"{__file__}:Eager"),
)


def serve_turns(path: str, declared: bool) -> None:
    """The child: loads, then for each line of numbers of rows tells the seconds of a batch, and at the end its memory."""
    given = np.random.default_rng(0).standard_normal((max(ROWS), 3, SIDE, SIDE)).astype(np.float32)
    before, began = resident_bytes(), perf_counter()
    runtime = open_runtime(path, threads=1, max_batch=max(ROWS), **(SPECS if declared else {}))
    runtime.run([given[:1].copy()])
    load_s = perf_counter() - began
    answer = runtime.run([given[:8].copy()])[0]
    print(json.dumps([load_s, np.asarray(answer).tolist()]), flush=True)
    for line in sys.stdin:
        rows, times = int(line), []
        until = perf_counter() + BURST_S
        while perf_counter() < until or len(times) < 3:
            batch = given[:rows].copy()
            started = perf_counter()
            runtime.run([batch])
            times.append(perf_counter() - started)
        print(json.dumps([statistics.median(times), resident_bytes() - before]), flush=True)


class Child:
    """`load_s`, and the answer to some rows."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        path = kind.file if ":" in kind.file else str(folder / kind.file)
        command = [sys.executable, "-m", "benchmarks.frameworks", "--child", path, *(["--declared"] if kind.declared else [])]
        environment = {**os.environ, WEIGHTS: str(folder / "weights.pth"), "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.errors = (folder / "errors.txt").open("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=environment, text=True
        )
        self.load_s, self.answer = self._next()
        self.memory = 0

    def seconds(self, rows: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{rows}\n")
        self.process.stdin.flush()
        found, self.memory = self._next()
        return float(found)

    def end(self) -> None:
        self.process.terminate()
        self.process.communicate()
        self.errors.close()

    def _next(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit(f"a runtime ended: {self.errors.read()[-2000:]}")
        return json.loads(line)


class Figures:
    def __init__(self) -> None:
        self.loads: list[float] = []
        self.memory: list[int] = []
        self.times: dict[int, list[float]] = {rows: [] for rows in ROWS}


def measure(folder: Path, rounds: int) -> tuple[dict[str, Figures], float]:
    """And by how much answers differ at most, of the largest value."""
    found = {kind.name: Figures() for kind in KINDS}
    worst = 0.0
    for number in range(rounds):
        children: dict[str, Child] = {}
        try:
            for kind in in_turn(KINDS, number):
                children[kind.name] = Child(kind, folder)
                print(f"  {kind.name}: {children[kind.name].load_s:.2f} s to load", flush=True)
            right = np.array(children[KINDS[0].name].answer)
            for rows in ROWS:
                for kind in in_turn(KINDS, number):
                    found[kind.name].times[rows].append(children[kind.name].seconds(rows))
            for name, child in children.items():
                found[name].loads.append(child.load_s)
                found[name].memory.append(child.memory)
                worst = max(worst, float(np.abs(np.array(child.answer) - right).max() / np.abs(right).max()))
        finally:
            for child in children.values():
                child.end()
    return found, worst


def shown(found: Mapping[str, Figures]) -> str:
    """The table."""
    first = next(iter(found.values()))
    rows = []
    for name, figures in found.items():
        cells = [name, f"{statistics.median(figures.loads):.2f} s"]
        for size in ROWS:
            ratios = [mine / its for mine, its in zip(figures.times[size], first.times[size], strict=True)]
            by = f" ({statistics.median(ratios):.2f}; {spread(ratios)})" if figures is not first else ""
            cells.append(f"{statistics.median(figures.times[size]) * 1e3:.2f} ms{by}")
        rows.append([*cells, f"{statistics.median(figures.memory) / 2**20:.0f} MiB"])
    return table(["format", "load", *(f"L({size})" for size in ROWS), "memory"], rows)


def in_process(export: Callable[[Path], None], folder: Path) -> None:
    """An export, by itself: two frameworks in one process get in each other's way."""
    code = f"from pathlib import Path; from benchmarks.frameworks import {export.__name__} as go; go(Path({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{export.__name__} failed: {done.stderr[-2000:]}")


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("frameworks", __doc__)
    parser.add_argument("--rounds", type=positive(int), default=5, help="of loads and turns (default 5)")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--child", help="a model to load and be asked about; what the benchmark starts itself")
    parser.add_argument("--declared", action="store_true", help="of a child: it is told inputs and outputs")
    options = parser.parse_args(arguments)
    if options.child:
        serve_turns(options.child, options.declared)
        return 0
    with tempfile.TemporaryDirectory() as name:
        for export in (export_torch, export_keras):
            print(f"  {export.__name__}", flush=True)
            in_process(export, Path(name))
        found, worst = measure(Path(name), options.rounds)
    machine = summary(describe_machine(Cores(None, None)))
    words = f"The largest difference between answers is {worst:.1e} of the largest value, over {options.rounds} rounds."
    print(shown(found), words, sep="\n\n")
    if options.write:
        head = f"`python -m benchmarks.frameworks` on {minute(utc_now())}; {machine}."
        parts = ["# One CNN in every runtime", head, paragraph(ABOUT), shown(found), words, "## Which to choose", CHOOSING]
        PAGE.write_text("\n\n".join(parts) + "\n", "utf-8")
    return int(worst > EQUAL)


if __name__ == "__main__":
    sys.exit(main())
