"""The network of service times: it learns what the fitted cost cannot know, and dlproxy serves it as it is."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dlproxy import Model, Proxy  # noqa: E402
from dlproxy.lab.learn.experiment import Experiment, LearnError, Place, Run, find  # noqa: E402
from dlproxy.lab.learn.service import quantiles  # noqa: E402
from dlproxy.lab.learn.service.times import Times, made_up, write  # noqa: E402
from dlproxy.lab.learn.service.training import train  # noqa: E402

pytestmark = pytest.mark.extras


def run(folder: Path, **settings: object) -> Run:
    told: list[str] = []
    place = Place(folder=folder, seed=1, threads=1, tell=told.append)
    return train(Experiment(kind="service", about="", settings=settings, name="mine"), place)


def test_what_is_in_a_batch_counts_where_time_depends_on_it(tmp_path: Path) -> None:
    figures = run(tmp_path, epochs=12, jobs=2000).figures
    assert figures["learnt q50"] < 0.8 * figures["spread q50"]
    assert figures["learnt below q99"] == pytest.approx(0.99, abs=0.03)
    assert figures["sjf learnt slowdown"] < figures["sjf fitted slowdown"]


async def test_the_exported_network_answers_through_dlproxy_as_in_torch(tmp_path: Path) -> None:
    times = made_up(count=400)
    network, losses = quantiles.train(times.part(0.0, 0.7), times.part(0.7, 1.0), epochs=4, seed=1)
    assert losses[-1] < losses[0]
    quantiles.save(network, times, tmp_path / "model.onnx")
    expected = quantiles.predict(network, times)
    assert (np.diff(expected, axis=1) >= 0.0).all()
    async with Proxy([Model(tmp_path / "model.onnx", name="times")]) as proxy:
        answer = (await proxy.infer("times", {"features": times.features.astype(np.float32)}))["quantiles"]
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_mistakes_are_named_and_ours_is_found(tmp_path: Path) -> None:
    assert find("service-times").kind == "service"
    few = Times(("rows",), np.ones((10, 1)), np.ones(10))
    write(few, tmp_path / "few.csv")
    with pytest.raises(LearnError, match="10 batches are too few"):
        run(tmp_path, times=str(tmp_path / "few.csv"))
    with pytest.raises(LearnError, match="epochs and jobs must be 1 or more"):
        run(tmp_path, epochs=0)
    with pytest.raises(LearnError, match="epoch"):
        run(tmp_path, epoch=3)
