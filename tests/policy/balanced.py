"""What the balancers' tests share: a fleet in virtual time behind one balancer, and what it sent where."""

from collections import Counter
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from random import Random

from dlproxy.policy.balancing import BALANCERS, Balancer

LATENCY_AWARE = ("peak-ewma", "fastest-response", "power-of-two", "prequal", "nearest")
WEIGHTED = tuple(name for name in BALANCERS if name != "round-robin")


def drive(
    balancer: Balancer,
    names: Sequence[str],
    *,
    requests: int,
    gap_s: float,
    service_s: float | Mapping[str, float] = 0.1,
    failing: frozenset[str] = frozenset(),
    keys: Sequence[str] = ("",),
    from_s: float = 0.0,
) -> Counter[str]:
    """Send a request every `gap_s`; those on a failing instance end with an error after a tenth of a millisecond."""
    in_flight = dict.fromkeys(names, 0)
    running: list[tuple[float, int, str, float]] = []
    sent: Counter[str] = Counter()

    def end_until(now: float) -> None:
        while running and running[0][0] <= now:
            at, _, name, took_s = heappop(running)
            in_flight[name] -= 1
            balancer.observe(name, took_s, ok=name not in failing, now=at)

    for number in range(requests):
        now = from_s + number * gap_s
        end_until(now)
        name = balancer.choose(names, in_flight, now, keys[number % len(keys)])
        assert name in in_flight
        in_flight[name] += 1
        sent[name] += 1
        normal_s = service_s if isinstance(service_s, float) else service_s[name]
        took_s = 1e-4 if name in failing else normal_s
        heappush(running, (now + took_s, number, name, took_s))
    end_until(float("inf"))
    return sent


def mentions(thing: object, name: str, seen: set[int] | None = None) -> bool:
    """Whether this name is anywhere within a balancer's memory."""
    seen = set() if seen is None else seen
    if isinstance(thing, str):
        return thing == name
    if id(thing) in seen or isinstance(thing, int | float | Random | type):
        return False
    seen.add(id(thing))
    if isinstance(thing, dict):
        return any(mentions(part, name, seen) for pair in thing.items() for part in pair)
    if isinstance(thing, list | tuple | set | frozenset) or type(thing).__name__ == "deque":
        return any(mentions(part, name, seen) for part in thing)  # type: ignore[attr-defined]
    fields = [getattr(thing, field) for field in getattr(thing, "__struct_fields__", ())]
    return any(mentions(part, name, seen) for part in [*fields, *getattr(thing, "__dict__", {}).values()])
