"""An autoencoder is trained on telemetry, finds what it has never seen, and answers through dlproxy as it does here."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

pytestmark = pytest.mark.extras

from dlproxy import Model, Proxy  # noqa: E402
from dlproxy.autopilot.watching import make_watch  # noqa: E402
from dlproxy.lab.learn.anomalies.autoencoder import Floats, Shape, errors, export, fit, scores, spans  # noqa: E402
from dlproxy.lab.learn.anomalies.scenarios import FAULTS  # noqa: E402
from dlproxy.lab.learn.anomalies.training import chart_limits, forest, network_limits  # noqa: E402
from dlproxy.lab.learn.experiment import Experiment, find  # noqa: E402
from dlproxy.lab.learn.train import train  # noqa: E402
from dlproxy.policy.watch.detectors import SPAN  # noqa: E402
from dlproxy.policy.watch.features import NAMES  # noqa: E402

torch.set_num_threads(1)  # such networks are too small for more
RATE, IN_FLIGHT, COST = (NAMES.index(name) for name in ("rate", "in_flight", "cost"))


def made(windows: int, seed: int) -> Floats:
    """Of a model whose rows under way follow the rate, which wanders, so that either is usual and their difference is not."""
    random = np.random.default_rng(seed)
    off = random.normal(0.0, 0.3, (windows, len(NAMES))).astype(np.float32)
    wanders = np.cumsum(random.normal(0.0, 0.5, windows))
    off[:, RATE] += 3.0 * np.sin(wanders / 3.0)
    off[:, IN_FLIGHT] += off[:, RATE]
    return off


def test_it_finds_what_the_load_does_not_explain(tmp_path: Path) -> None:
    normal = [made(400, seed) for seed in range(4)]
    shape = Shape(epochs=25, hidden=32)
    network, losses, checks = fit(np.concatenate([spans(off) for off in normal[:3]]), spans(normal[3]), shape, seed=1)
    assert losses[-1] < 0.5 * losses[0]
    assert min(checks) < 0.5 * checks[0]
    network_limits(network, normal)
    off = made(200, 9)
    assert scores(network, off).max() < 1.5
    off[100:, IN_FLIGHT] += 5.0
    off[100:, IN_FLIGHT] = np.minimum(off[100:, IN_FLIGHT], 8.0)
    found = errors(network, off)
    assert found[110:, IN_FLIGHT].mean() > 4.0 * found[SPAN:100, IN_FLIGHT].mean()
    assert not found[: SPAN - 1].any()
    limits = chart_limits(normal)
    assert limits["rate"] > 2.0 * limits["cost"], "a chart of what wanders must have room"
    of_forest = forest(normal, 20, 1)
    assert np.median(of_forest(normal[0])) < 1.0
    off[150:, COST] = 10.0
    assert of_forest(off)[160:].mean() > of_forest(off)[:100].mean()


async def test_the_exported_network_answers_through_dlproxy_and_watches_as_it_does_here(tmp_path: Path) -> None:
    normal = [made(200, seed) for seed in range(2)]
    network, _, _ = fit(spans(normal[0]), spans(normal[1]), Shape(epochs=2, hidden=16, code=4), seed=2)
    network_limits(network, normal)
    path = tmp_path / "model.onnx"
    export(network, path)
    off = made(60, 7)
    expected = scores(network, off)[SPAN - 1 :]
    async with Proxy([Model(path, name="watch", threads=1)]) as proxy:
        answer = await proxy.infer("watch", {"windows": spans(off)})
    np.testing.assert_allclose(answer["score"], expected, atol=1e-4, rtol=0)
    watch = make_watch(str(path), lambda: 0.0)
    assert watch is not None
    detector = watch._make_detector()
    seen = [detector.observe(row, 0.0) for row in off.tolist()]
    np.testing.assert_allclose(seen[SPAN - 1 :], expected, atol=1e-4, rtol=0)


def test_the_experiment_trains_and_compares_on_simulated_scenarios_once(tmp_path: Path) -> None:
    small = {"train": 2, "validate": 1, "normal": 1, "each_fault": 1, "normal_s": 320.0, "fault_s": 320.0, "trees": 10}
    wanted: Experiment = find("telemetry-autoencoder")
    experiment = Experiment(
        kind=wanted.kind,
        about=wanted.about,
        seeds=1,
        settings={**small, "network": {"epochs": 3, "hidden": 16}},
        name=wanted.name,
    )
    told: list[str] = []
    result = train(experiment, tmp_path, threads=1, tell=told.append)
    figures = result.runs[0].figures
    assert (tmp_path / "model.onnx").is_file()
    for name in ("autoencoder", "charts", "forest"):
        assert 0.0 < figures[f"{name} area"] <= 1.0
        assert {f"{name} {fault} detected" for fault in FAULTS} <= figures.keys()
    assert figures["charts poison detected"] == 1.0
    assert figures["charts area"] > figures["forest area"]
    (tmp_path / "result.json").unlink()
    before, again = len(told), train(experiment, tmp_path, threads=1, tell=told.append)
    assert again.runs[0].figures == figures
    assert not any("simulated" in line for line in told[before:]), "scenarios are kept"
