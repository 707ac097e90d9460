"""The ensembles and the cascade of docs/guides/ensembles.md as they stand there, served: answers are those of plain numpy."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray
from onnx import helper

from dlproxy import Model, Proxy
from dlproxy.config import load
from dlproxy.steps.stacking import fit
from tests import models
from tests.compress import graphs

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "ensembles.md"
ROWS = graphs.dataset(40).inputs["x"]
WEIGHTS = {name: graphs.WEIGHTS.round(digits) * np.float32(0.5) for name, digits in (("small", 0), ("medium", 1), ("large", 2))}
Floats = NDArray[np.float32]


def probabilities(name: str) -> Floats:
    powers = np.exp(ROWS @ WEIGHTS[name])
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def classifier(name: str) -> models.Model:
    made = graphs.classifier(weights=WEIGHTS[name])
    made.graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"]))
    made.graph.output[0].name = "probabilities"
    return made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def proxy(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    folder = tmp_path_factory.mktemp("ensembles")
    for name in WEIGHTS:
        graphs.saved(classifier(name), folder, name)
    fit({name: probabilities(name) for name in ("small", "large")}, (ROWS @ graphs.WEIGHTS).argmax(axis=1)).save(
        folder / "head.npz"
    )
    (folder / "dlproxy.toml").write_text(
        "\n".join(re.findall(r"```toml\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)), "utf-8"
    )
    served = load(folder / "dlproxy.toml").models
    async with Proxy([Model(name=name, **msgspec.to_builtins(config)) for name, (config,) in served.items()]) as opened:
        yield opened


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_average(proxy: Proxy) -> None:
    answer = await proxy.infer("mean", {"x": ROWS})
    expected = (probabilities("small") + 2 * probabilities("medium") + 3 * probabilities("large")) / 6
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)


async def test_a_vote(proxy: Proxy) -> None:
    answer = await proxy.infer("vote", {"x": ROWS})
    ballots = sum(np.eye(4)[probabilities(name).argmax(axis=1)] for name in WEIGHTS)
    np.testing.assert_allclose(answer["votes"], ballots / 3, atol=1e-5)
    assert (ballots[np.arange(40), answer["class"]] == ballots.max(axis=1)).all()


async def test_a_stacking_head(proxy: Proxy) -> None:
    answer = await proxy.infer("stack", {"x": ROWS})
    assert (answer["probabilities"].argmax(axis=1) == (ROWS @ graphs.WEIGHTS).argmax(axis=1)).mean() > 0.9


async def test_as_many_as_come_are_all_where_there_is_time(proxy: Proxy) -> None:
    answer = await proxy.infer("hasty", {"x": ROWS[:2]}, timeout_s=30.0)
    expected = sum(probabilities(name)[:2] for name in WEIGHTS) / 3
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)


@pytest.mark.parametrize("rows", [slice(0, 40), slice(3, 4), slice(7, 9), "sure", "unsure"])
async def test_a_cascade(proxy: Proxy, rows: slice | str) -> None:
    ranked = np.sort(probabilities("small"), axis=1)
    sure = ranked[:, -1] - ranked[:, -2] >= 0.2671
    assert 0.2 < sure.mean() < 0.8
    chosen = np.flatnonzero(sure == (rows == "sure")) if isinstance(rows, str) else np.arange(40)[rows]
    answer = await proxy.infer("cascade", {"x": ROWS[chosen]})
    expected = np.where(sure[:, None], probabilities("small"), probabilities("large"))[chosen]
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
