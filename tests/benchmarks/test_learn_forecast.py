"""The page about forecasts, from made-up scores and outcomes."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.autoscaling.days import Outcome

pytestmark = pytest.mark.extras

METHODS = {"last value": 1.0, "linear AR": 0.9, "linear quantiles": 0.8, "LSTM": 0.6, "always the same": 1.2}


def outcome(name: str, instances: float, missed: float) -> Outcome:
    return Outcome(name=name, instances=instances, missed=missed, p99_ms=1.0, most=8, changes=3)


def test_losses_of_all_methods_are_told_and_drawn(tmp_path: Path) -> None:
    from benchmarks.learn.forecast import nothing_to_learn, of_set, picture
    from dlproxy.lab.learn.forecast.training import Settings, Tested, load, save

    given, seeds = Settings(source="trace"), []
    for seed in (1, 2):
        random = np.random.default_rng(seed)
        scores = {
            f"trace/{channel}/{name}": Tested(
                losses=loss * random.uniform(0.9, 1.1, (900, 3, 3)), coverage=np.full((3, 3), 0.5), validation=loss, about="x"
            )
            for channel in ("rate", "burst")
            for name, loss in METHODS.items()
        }
        save(tmp_path / "scores.npz", scores)
        seeds.append(load(tmp_path / "scores.npz"))
    text = of_set("trace", seeds, given)
    assert all(f"| {name} | " in text for name in METHODS)
    assert "gain in pinball loss is +33.3% ± " in text
    assert "beside *linear AR*" in text
    drawn = {element.text for element in ElementTree.fromstring(picture(seeds, given)).iter("{http://www.w3.org/2000/svg}text")}
    assert set(METHODS) <= drawn
    (tmp_path / "trace.csv").write_text("\n".join(str(second / 2) for second in range(7000)))
    text = nothing_to_learn(tmp_path / "trace.csv", seeds, given)
    assert re.search(r"\| 10 s \| LSTM \| always the same \| -0\.(59|60)", text)
    assert "0.00 at 5 s" in text


def test_autoscaling_is_told_of_with_what_beats_it() -> None:
    from benchmarks.learn.forecast import autoscaling, pareto

    by_policy = {
        "none": [outcome("none", 4.0, 0.01), outcome("none", 4.2, 0.01)],
        "learnt": [outcome("learnt", 4.0, 0.005), outcome("learnt", 4.0, 0.005)],
        "trend": [outcome("trend", 5.0, 0.001), outcome("trend", 5.0, 0.001)],
    }
    text = autoscaling({"a day": by_policy})
    assert "| none | 4.10 ± 1.27 | 1.000% ± 0.000% | learnt |" in text
    assert "| learnt | 4.00 ± 0.00 | 0.500% ± 0.000% | - |" in text
    assert "| trend | 5.00 ± 0.00 | 0.100% ± 0.000% | - |" in text
    assert "-0.10 ± 1.27 instances, -0.500% ± 0.000% misses; better in both with 2 of 2 seeds" in text
    ElementTree.fromstring(pareto(by_policy))


def test_what_is_simulated_has_its_days_and_its_policies() -> None:
    from benchmarks.learn.forecast import loads, policies

    found = dict(loads(1))
    assert len(found) == 2
    for instants in found.values():
        assert (np.diff(instants) >= 0.0).all()
        assert 3.0 < len(instants) / (2 * 86400) < 15.0
    assert list(policies({})) == ["none", "none, share 0.6", "trend", "daily"]
