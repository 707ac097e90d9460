"""Evaluations made up for tests of how they are shown."""

from dlproxy.lab.evaluate.evaluation import Evaluation, FaultReport, Moment, Point, Series
from dlproxy.lab.evaluate.recovery import Effect
from dlproxy.lab.evaluate.scalability import conclude


def moment(rate_rps: float, p99_ms: float) -> Moment:
    return Moment(
        offered_rps=rate_rps,
        rate_rps=rate_rps,
        goodput_rps=rate_rps,
        duration_s=2.0,
        failed=0,
        in_time=0.995,
        latency_ms={"p50": p99_ms / 3, "p90": p99_ms / 2, "p99": p99_ms, "mean": p99_ms / 2.5},
        phases_ms={"queue": 1.0, "compute_input": 0.1, "compute_infer": 2.0, "compute_output": 0.2},
        mean_batch=3.5,
        cores_busy=0.8,
        useful=0.4,
        instances_busy=0.95,
        waiting=0.1,
        generator_cores=0.3,
    )


def series(*rates: float) -> Series:
    made = Series(points=[Point(n=2**power, rate_rps=rate, p99_ms=5.0 + power) for power, rate in enumerate(rates)])
    conclude(made)
    return made


def whole() -> Evaluation:
    """Nothing is missing but what does not apply."""
    timeline = [(0.1 + 0.2 * step, 700.0 if not 6 < step < 12 else 300.0) for step in range(30)]
    return Evaluation(
        target="m at http://127.0.0.1:1",
        started="2024-01-01T00:00:00+00:00",
        seconds=120.0,
        cores=2,
        instances=1,
        objective_ms=20.0,
        objective_from="as given",
        ready_s=1.5,
        load_s=0.05,
        calm=moment(100.0, 10.0),
        busy=moment(700.0, 18.0),
        full=moment(1200.0, 60.0),
        full_clients=64,
        peak_rps=1000.0,
        confirmed=True,
        request_bytes=400,
        answer_bytes=190,
        clients=series(150.0, 290.0, 520.0, 820.0, 1050.0, 1150.0, 1200.0),
        by_instances=series(1000.0, 1900.0),
        faults=[
            FaultReport(
                name="overload",
                effect=Effect(before_rps=700.0, during_rps=300.0, recovery_s=0.6, watched_s=3.0),
                reference_rps=1000.0,
                kept=0.8,
                timeline=timeline,
                from_s=1.4,
                to_s=2.4,
                note="2,300 requests more",
            ),
            FaultReport(
                name="garbage",
                effect=Effect(before_rps=700.0, during_rps=650.0, recovery_s=None, watched_s=3.0),
                reference_rps=700.0,
                kept=0.93,
                timeline=timeline,
                from_s=1.4,
                to_s=2.4,
                note="70 <requests>",
            ),
            FaultReport(name="killed worker", reason="does not apply: batches run as 'inline'"),
        ],
    )


def nothing() -> Evaluation:
    """As after Ctrl-C before the first load was over."""
    return Evaluation(target="m at http://127.0.0.1:1", started="", interrupted=True, missing={"ready": "it ran already"})
