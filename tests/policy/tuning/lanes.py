"""Windows of telemetry: made up, or of a simulated lane that nobody tunes. Called by the tests of this folder."""

from math import inf

from dlproxy.lab.load.arrivals import make_arrivals
from dlproxy.lab.report.result import Tally
from dlproxy.lab.simulate.autopilot import SimulatedPilot, Telemetry, Ways
from dlproxy.lab.simulate.engine import Call, SimulatedModel, Simulation
from dlproxy.lab.simulate.machine import Machine
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.policy.balancing import make_balancer
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.tuning import make_knob_policy
from dlproxy.policy.tuning.pilot import TICK_S, Order, Pilot
from dlproxy.policy.tuning.protocol import Space
from dlproxy.policy.tuning.rules import Cost
from dlproxy.policy.tuning.window import Window

KNOBS = {"max_batch": 8, "max_wait_s": 0.0, "instances": 1, "threads": 1}
SPACE = Space(cores=4, max_batch=64, ways=((1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4)), objective_s=0.1)


def window(
    at: float,
    *,
    arrived: int = 100,
    missed: int = 0,
    failed: int = 0,
    up: int = 4,
    seconds: float = TICK_S,
    dispersion: float = 1.0,
) -> Window:
    """All that arrived has ended."""
    answered = arrived - failed
    return Window(
        at=at,
        seconds=seconds,
        arrived=arrived,
        answered=answered,
        in_time=answered - missed,
        failed=failed,
        rows=answered,
        p50_s=0.02,
        p99_s=0.05,
        in_flight=2.0,
        dispersion=dispersion,
        up=up,
        costs={4: (max(answered // 4, 1), 0.01 * max(answered // 4, 1))},
    )


class Listening(Pilot):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(make_knob_policy("rules"), SPACE, KNOBS, 0.0)
        self.windows: list[Window] = []

    def look(self, window: Window, now: float) -> Order | None:
        self.windows.append(window)
        return None


def simulated(
    cost: Cost, instances: int, arrivals: str, rate: float, objective_s: float, seconds: float, *, max_batch: int = 256
) -> list[Window]:
    """What a lane shows whose batches take `cost`, with that much noise."""
    simulation = Simulation(Tally(0.0, inf, objective_s), balancer=make_balancer("round-robin"))
    times = Fitted(cost.base_s, cost.row_s, cv=0.1, seed=1)
    knobs = LaneKnobs(max_batch=max_batch, max_wait_s=0.0, slo_s=objective_s)
    model = SimulatedModel("m", Lane(knobs, [(rows, cost.seconds(rows)) for rows in (1, 64)]), times, [])
    node = simulation.add("node-0", [model])
    ways = Ways(node, model, times, Machine(instances))
    ways.run(instances, 1, 0.0)
    telemetry = model.hears = Telemetry(objective_s)
    listening = Listening()
    SimulatedPilot(node, model, ways, listening, telemetry, start_s=0.0, until=seconds)
    chunks = make_arrivals(arrivals, rate=rate, seed=1).chunks(seconds)
    simulation.run(Call("m", 1, objective_s, at_s) for chunk in chunks for at_s in chunk.tolist())
    return listening.windows
