"""Results for the tests of how they are shown: a tally filled with made-up requests."""

from collections.abc import Callable
from random import Random
from typing import Any

from dlproxy.lab.report.result import Generator, Result, Tally, make_result

Latency = Callable[[Random, float], float]  # of a request due at this second
HOSTILE = "<script>alert('x')</script> & \"quotes\" \x1b[31m\nnew line"


def usual(random: Random, due_at: float) -> float:
    return 0.003 + random.expovariate(500.0)


def ran(
    *,
    rate: float = 100.0,
    duration_s: float = 10.0,
    latency: Latency = usual,
    error: Callable[[Random, float], str | None] = lambda random, due_at: None,
    objective_s: float | None = 0.02,
    seed: int = 1,
    kind: str = "load test",
    setup: dict[str, Any] | None = None,
) -> Result:
    """The result of evenly spaced requests."""
    random = Random(seed)
    tally = Tally(0.0, duration_s, objective_s)
    dues = [number / rate for number in range(round(rate * duration_s))]
    events: list[tuple[float, int, float]] = [(due_at, 0, due_at) for due_at in dues]
    events += [(due_at + latency(random, due_at), 1, due_at) for due_at in dues]
    for now, ended, due_at in sorted(events):
        if not ended:
            tally.sent_one(due_at, now)
        elif failure := error(random, due_at):
            tally.failed(failure, due_at, now)
        else:
            tally.answered(due_at, now)
    options = {"rate": rate, "loop": "open", "model": {"name": "digits"}} if setup is None else setup
    result = make_result(
        tally, kind=kind, started="2026-01-05T10:00:00+00:00", target="digits at http://host:8000", setup=options
    )
    if result.ok:
        result.batch_sizes = {1: 10, 4: 30, 8: 60}
    if kind == "load test":
        result.generator = Generator(cpu_share=0.25, late_p99_ms=0.2, late_max_ms=1.5)
    return result


def all_failed() -> Result:
    return ran(error=lambda random, due_at: "timeout" if random.random() < 0.8 else "HTTP 503")


def nothing_sent() -> Result:
    return ran(rate=0.01)


def one_request() -> Result:
    return ran(rate=0.1)


def hostile() -> Result:
    """Every text that may come from outside tries to break out."""
    result = ran(error=lambda random, due_at: HOSTILE if random.random() < 0.1 else None, setup={HOSTILE: {HOSTILE: [HOSTILE]}})
    result.kind = result.target = result.started = HOSTILE
    result.warnings = [HOSTILE]
    result.variants = {HOSTILE: 1}
    result.instances = {HOSTILE: {HOSTILE: HOSTILE, "utilisation": 0.5}, **{f"{HOSTILE}{n}": {HOSTILE: n} for n in range(3)}}
    return result


def fleet(nodes: int) -> dict[str, Any]:
    """What a simulation reports of its instances."""
    return {
        f"node-{number}": {"thread-0": {"batches": number, "mean_batch": 4.5, "utilisation": number / max(nodes - 1, 1)}}
        for number in range(nodes)
    }


RUNS = {
    "usual": ran(),
    "all failed": all_failed(),
    "nothing sent": nothing_sent(),
    "one request": one_request(),
    "hostile": hostile(),
    "no objective": ran(objective_s=None),
}
