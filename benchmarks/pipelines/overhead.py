"""What a chain of three tiny models costs beside calls of the same models by hand, one request at a time, in one process.

Called by __main__.py. Not aware of: HTTP.
"""

import asyncio
import gc
import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.checks import Findings
from benchmarks.harness.turns import in_turn, spread
from benchmarks.models import build_mlp
from benchmarks.ort_loop import open_session
from benchmarks.pipelines.sides import Stage
from dlproxy import Model, Proxy

TITLE = "A stage"
WIDTH, STAGES = 64, 3
ROUND, ROUNDS = 50, 200  # requests of each kind in a turn, and turns; the least of them: others use this machine, too
LIMIT_US = 150.0
ABOUT = f"""Three networks of one layer of {WIDTH}, some microseconds each; {ROUNDS} turns of {ROUND} requests, one at a time.
*By hand*: ONNX Runtime's sessions called one after another. *By hand through dlproxy*: `await proxy.infer` of each model.
*As a pipeline*: one `await proxy.infer`. Each figure is the p50 of the turn in which it was least; what a chain costs a stage
is their difference by the number of stages."""

Array = NDArray[np.float32]
Way = Callable[[Array], Awaitable[Array]]


def measure(stage: Stage) -> Findings:
    findings = Findings(TITLE)
    paths = [build_mlp(stage.folder / f"{name}.onnx", (WIDTH, WIDTH)) for name in "abc"]
    p50_us = asyncio.run(_measure(paths))
    chain, hand, through = (p50_us[name] for name in ("as a pipeline", "by hand", "by hand through dlproxy"))
    for what, other, limit in (("sessions", hand, LIMIT_US), ("dlproxy, model by model", through, np.inf)):
        extra_us = (min(chain) - min(other)) / STAGES
        usual_us = (statistics.median(chain) - statistics.median(other)) / STAGES
        findings.at_most(
            f"us a stage beside {what}, p50", limit, extra_us, digits=0, note=f"{usual_us:.0f} in the median of the turns"
        )
    for name, values in p50_us.items():
        findings.details.append(f"- {name}: {min(values):,.0f} us, {STAGES} stages; turns from {spread(values, 0)} us")
    return findings


async def _measure(paths: list[Path]) -> dict[str, list[float]]:
    """p50 of each turn, in us."""
    names = [path.stem for path in paths]
    steps: dict[str, Any] = {}
    source = "x"
    for name in names:
        steps[name] = {"model": name, "inputs": {"input": source}}
        source = f"{name}.output"
    chain = Model(
        "pipeline", name="chain", inputs={"x": f"FP32[-1,{WIDTH}]"}, outputs={"y": f"{names[-1]}.output"}, steps=steps
    )
    sessions = [open_session(path, 1) for path in paths]
    async with Proxy([*map(Model, paths), chain]) as proxy:

        async def by_hand(x: Array) -> Array:
            for session in sessions:
                (x,) = session.run(None, {"input": x})
            return x

        async def through_proxy(x: Array) -> Array:
            for name in names:
                x = (await proxy.infer(name, {"input": x}))["output"]
            return x

        async def as_pipeline(x: Array) -> Array:
            return (await proxy.infer("chain", {"x": x}))["y"]

        ways: dict[str, Way] = {
            "by hand": by_hand,
            "by hand through dlproxy": through_proxy,
            "as a pipeline": as_pipeline,
        }
        x = np.random.default_rng(WIDTH).random((1, WIDTH), np.float32)
        answers = [await way(x) for way in ways.values()]
        assert all(np.allclose(answer, answers[0], atol=1e-5) for answer in answers)
        p50_us: dict[str, list[float]] = {name: [] for name in ways}
        gc.freeze()
        for number in range(-3, ROUNDS):
            for name, way in in_turn([*ways.items()], max(number, 0)):
                took = await _median_us(way, x)
                if number >= 0:
                    p50_us[name].append(took)
    return p50_us


async def _median_us(way: Way, x: Array) -> float:
    took = []
    for _ in range(ROUND):
        began = perf_counter()
        await way(x)
        took.append(perf_counter() - began)
    return statistics.median(took) * 1e6
