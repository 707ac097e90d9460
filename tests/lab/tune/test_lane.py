"""What a placement assumes of a copy, against the production lane in the simulator: its batch limit, and its mean response."""

import numpy as np
import pytest

from dlproxy.config import ModelConfig
from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.simulate.run import Scenario, plan_model, simulate
from dlproxy.lab.tune.placement.delay import mean_response_s
from dlproxy.lab.tune.placement.problem import Problem
from tests.lab.tune.problems import model, node

REQUESTS = 20_000


@pytest.mark.parametrize(("base_ms", "row_ms", "slo_ms"), [(8, 2, 100), (20, 1, 100), (4, 4, 60)])
@pytest.mark.parametrize("load", [0.2, 0.5, 0.7])
def test_copy_answers_as_a_lane_does(base_ms: int, row_ms: int, slo_ms: int, load: float) -> None:
    times = {"base_s": base_ms * 1e-3, "row_s": row_ms * 1e-3}
    copy = Problem([model(slo_s=slo_ms * 1e-3, **times)], [node()])
    rate, limit = load * float(copy.rows_per_s[0, 0]), int(copy.batch[0, 0])
    config = ModelConfig(path="m.onnx", slo=f"p99={slo_ms}ms")
    plan = plan_model("m", config, f"base={base_ms}ms,row={row_ms}ms")
    arrivals = make_arrivals("poisson", rate=rate, seed=1)
    ran = simulate(Scenario(models={"m": plan}, arrivals=arrivals, duration_s=REQUESTS / rate))
    assert max(ran.batch_sizes) <= limit
    assert load < 0.7 or max(ran.batch_sizes) == limit
    assert ran.failed <= 0.01 * ran.sent  # of the tightest objective; what is refused leaves the others quicker
    predicted_s = mean_response_s(np.array([rate]), limit=limit, **times)[0]
    assert predicted_s * 1e3 == pytest.approx(ran.latency_ms["mean"], rel=0.1)
