"""Once round: a lane is recorded, scenarios are fitted to it, an agent is trained on them and served as a challenger."""

from pathlib import Path

import pytest

from dlproxy.autopilot.agents import Agents
from dlproxy.autopilot.records import Records
from dlproxy.instance.integrity import Trust
from dlproxy.lab.learn.agent.recorded import fit, read, recorded
from dlproxy.lab.learn.experiment import Experiment, LearnError, Place
from dlproxy.lab.simulate.scenario import Scenario
from dlproxy.policy.tuning.rules import Cost
from tests.policy.tuning.lanes import KNOBS, SPACE, simulated, window

COST = Cost(0.004, 0.001)
RATE = 250.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What was recorded of a model that ran on two instances."""
    records = Records(tmp_path / "seen", "ranker-1")
    for one in simulated(COST, 2, "gamma:cv=2", RATE, SPACE.objective_s, 60.0):
        records.window(one, {**KNOBS, "instances": 2}, SPACE)
    records.write()
    return tmp_path / "seen"


def test_what_batches_cost_and_what_came_is_found_again(folder: Path) -> None:
    [(name, stretches)] = read(folder)
    found = fit(name, stretches)
    assert found is not None
    assert found.base_s + 8 * found.row_s == pytest.approx(COST.seconds(8), rel=0.15)
    scenarios = [recorded(folder)(number) for number in range(50)]
    assert all(scenario == recorded(folder)(number) for number, scenario in enumerate(scenarios[:3])), "the same every time"
    loads = [phase.rate * single(scenario) for scenario in scenarios for phase in scenario.phases]
    assert sum(loads) / len(loads) == pytest.approx(RATE * COST.seconds(1), rel=0.2), "in a scale of its own"
    objectives = [scenario.objective_s / single(scenario) for scenario in scenarios]
    assert objectives == pytest.approx([SPACE.objective_s / COST.seconds(1)] * 50, rel=0.2)
    assert {phase.arrivals.partition("=")[0] for scenario in scenarios for phase in scenario.phases} <= {"poisson", "gamma:cv"}
    assert all(scenario.start == (2, 1, 8, 0.0) for scenario in scenarios)


def single(scenario: Scenario) -> float:
    return scenario.base_s + scenario.row_s


def test_records_that_tell_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(LearnError, match="has no records"):
        recorded(tmp_path)
    records = Records(tmp_path, "m-1")
    for number in range(30):
        records.window(window(0.5 * number, arrived=0), KNOBS, SPACE)
    records.write()
    with pytest.raises(LearnError, match="too few requests were recorded"):
        recorded(tmp_path)
    records.path.write_bytes(b"{half")
    with pytest.raises(LearnError, match="cannot be read"):
        recorded(tmp_path)


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's exporter warns of itself
def test_once_round(folder: Path, tmp_path: Path) -> None:
    from dlproxy.lab.learn.agent.training import train

    budget = {"steps": 30, "chunk": 30, "scenarios": 2, "start": "none", "kept": 1, "phase_s": 3.0, "environments": 1}
    experiment = Experiment(kind="agent", about="", settings={**budget, "records": str(folder)})
    run = train(experiment, Place(folder=tmp_path, seed=1, threads=1, tell=lambda text: None))
    assert run.figures["worst_s"] > -5.0
    duel = Agents("rules", str(tmp_path / "model.onnx"), Trust()).make()
    for number in range(100):
        duel.act(window(5.0 * number, missed=20, seconds=5.0), KNOBS, SPACE, 5.0 * number)
    assert duel.phase == "trial"
    assert duel.advice.breaches == 0
    notices = [decision.reason for decision in duel.log if decision.kind == "notices"]
    assert any("it sees loads that it was not trained for" in notice for notice in notices), "ranker's loads were others"
