"""A model that is only a line of batch times, in layouts that slow each other as told: no instance, no server."""

from dlproxy.config import ModelConfig
from dlproxy.lab.simulate.service_times import Sample
from dlproxy.lab.tune.search.predict import Predictor
from dlproxy.lab.tune.search.problem import Layout, Load, Problem
from dlproxy.lab.tune.search.times import Times

ONE, TWO, INLINE = Layout("thread", 1, 1), Layout("thread", 2, 1), Layout("inline", 1, 1)
SIZES = (1, 2, 4, 8, 16, 32, 64)


def line(base_s: float = 0.004, row_s: float = 0.001, *, slowdown: float = 1.0) -> Times:
    """L(b) = base + row * b, without spread and without a loop."""
    samples = [Sample(rows, base_s + row_s * rows) for rows in SIZES]
    return Times(samples, slowdown, True, 0.0, (0.0,))


def problem(rate: float | None = 300.0, objective_s: float = 0.05) -> Problem:
    config = ModelConfig(path="sleep:base=4ms,row=1ms", slo=f"p99={objective_s * 1e3:g}ms")
    return Problem(name="m", config=config, objective_s=objective_s, load=Load(rate=rate), cores=2)


def predictor(rate: float | None = 300.0, *, slowdown: float = 1.2) -> Predictor:
    return Predictor(problem(rate), {ONE: line(), TWO: line(slowdown=slowdown), INLINE: line()}, requests=600)


class Silent:
    """A Show that shows nothing."""

    def stage(self, text: str, total: int) -> None:
        pass

    def step(self, text: str = "") -> None:
        pass
