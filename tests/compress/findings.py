"""What was measured of candidates that do not exist, for the tests of what is concluded from it."""

from typing import Any

from msgspec.structs import replace

from dlproxy.compress.gate import Accuracy, Bar, Footprint, Measured, Speed, judge
from dlproxy.compress.manifest import Candidate, Examples, Machine, Report, Run
from dlproxy.compress.metrics import Metric
from dlproxy.compress.recipe import Step
from dlproxy.instance.integrity.manifest import Listed


def accuracy(**more: Any) -> Accuracy:
    usual = Accuracy("accuracy", 2000, 0.93, 0.929, 0.001, -0.003, 0.005, 0.98, ("7", 0.02))
    return replace(usual, **more)


def speed(rows: int = 1, **more: Any) -> Speed:
    return replace(Speed(rows, 0.0021 * rows, 0.001 * rows, 2.1, 1.9, 2.2), **more)


def measured(**more: Any) -> Measured:
    original, candidate = Footprint(400_000, 0.02, 3_000_000), Footprint(110_000, 0.01, 1_000_000)
    return replace(Measured(accuracy(), (speed(1), speed(32)), original, candidate), **more)


def run(**more: Any) -> Run:
    usual = Run(
        source="digits.onnx",
        files={"digits.onnx": Listed(400_000, "ab" * 32)},
        data=Examples(name="digits.npz", sha256="cd" * 32, training=1000, held_out=2000),
        metric=Metric("accuracy", "probabilities", "labels are whole numbers"),
        bar=Bar(),
        seed=7,
        machine=Machine(processor="A processor", cores=2, threads=1),
        dlproxy="1.0",
        onnxruntime="1.2",
    )
    return replace(usual, **more)


def candidate(recipe: str, found: Measured | None = None, **more: Any) -> Candidate:
    """As it is judged; of one of which nothing is known, a failure."""
    steps = [Step("quantize_dynamic", "onnxruntime 1.2", {"per_channel": True})]
    if found is None:
        return Candidate(recipe=recipe, failure="ran out of memory", **more)
    return Candidate(recipe=recipe, steps=steps, measured=found, verdict=judge(found, Bar()), **more)


def report(**more: Any) -> Report:
    candidates = [
        candidate("int8-dynamic", measured()),
        candidate("int8-static", measured(accuracy=accuracy(candidate=0.5, loss=0.43, low=0.4, high=0.45))),
        candidate("prune", measured(speeds=(speed(1, ratio=0.8, low=0.7, high=0.9), speed(32, ratio=1.1, low=1.0, high=1.2)))),
        candidate("qat"),
    ]
    return replace(Report(run=run(), candidates=candidates), **more)
