"""What a user wants of a model, as the knob `slo` says it: "p95=50ms, rate>=500, min cores" to a Goal, and back.

Called by the rest of config/ and by whatever judges whether a goal is met. Not aware of: what can be met.
"""

import difflib
import re
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from math import inf
from typing import Any, Literal

from msgspec import Struct

from dlproxy.config.values import ConfigError, seconds_of

EXAMPLES = ("p99=20ms", "rate>=500", "max rate", "min cores", "accuracy>=0.97")

_NUMBER = "[0-9.]+"
_PREFERENCES: dict[str, Literal["rate", "cores"]] = {"max": "rate", "min": "cores"}


class Goal(Struct, frozen=True):
    """`latency_s`: within which the share `quantile` of the answers shall come, None if nothing is said. `least_rate`: requests
    per second that shall be answered. `prefers`: of what there shall be the most (rate) or the least (cores), where the rest
    leaves a choice. `least_accuracy`: 0 to 1.
    """

    latency_s: float | None = None
    quantile: float = 0.99
    least_rate: float = 0.0
    prefers: Literal["", "rate", "cores"] = ""
    least_accuracy: float = 0.0

    def __str__(self) -> str:
        """In normal form, which parse_goal takes."""
        parts = []
        if self.latency_s is not None:
            parts.append(f"p{_plain(self.quantile, 2)}={duration_text(self.latency_s)}")
        if self.least_rate:
            parts.append(f"rate>={_plain(self.least_rate)}")
        if self.prefers:
            parts.append("max rate" if self.prefers == "rate" else "min cores")
        if self.least_accuracy:
            parts.append(f"accuracy>={_plain(self.least_accuracy)}")
        return ", ".join(parts)


@lru_cache(maxsize=256)
def parse_goal(text: str) -> Goal:
    """Of clauses with commas between them; nothing for the empty text. Raises ConfigError."""
    said: dict[str, Any] = {}
    clauses = text.split(",") if text.strip() else []
    for clause in clauses:
        found = _understood(clause.strip())
        if not said.keys().isdisjoint(found):
            first = next(other.strip() for other in clauses if _understood(other.strip()).keys() & found.keys())
            both = f"both {first!r} and {clause.strip()!r}"
            raise ConfigError(f"slo {text!r} says {both}; leave one of them out", "slo")
        said |= found
    return Goal(**said)


def parse_latency(text: str) -> float:
    """Seconds of an objective that is a latency alone. Raises ConfigError for any other, or none."""
    goal = parse_goal(text)
    if goal.latency_s is None or goal != Goal(goal.latency_s, goal.quantile):
        raise ConfigError(f"slo {text!r} is no latency alone; write it like p99=10ms", "slo")
    return goal.latency_s


def duration_text(seconds: float) -> str:
    """As a duration is written: 20ms."""
    for unit, digits in (("s", 0), ("ms", 3)):
        if seconds * 10**digits >= 1.0:
            return _plain(seconds, digits) + unit
    return _plain(seconds, 6) + "us"


def _understood(clause: str) -> dict[str, Any]:
    """What one clause says of a goal, by the names of Goal's fields. Raises ConfigError."""
    for pattern, meaning in _CLAUSES:
        match = re.fullmatch(pattern, clause)
        said = meaning(match) if match else None
        if said is not None:
            return said
    raise ConfigError(f"slo {clause!r} is not understood; {_hint(clause)}", "slo")


def _latency(match: re.Match[str]) -> dict[str, Any] | None:
    quantile, latency_s = _number(match[1], -2), seconds_of(match[2])
    return {"latency_s": latency_s, "quantile": quantile} if 0.0 < quantile < 1.0 and latency_s > 0.0 else None


def _rate(match: re.Match[str]) -> dict[str, Any] | None:
    rate = _number(match[1])
    return {"least_rate": rate} if rate > 0.0 else None


def _accuracy(match: re.Match[str]) -> dict[str, Any] | None:
    accuracy = _number(match[1], -2 if match[2] else 0)
    return {"least_accuracy": accuracy} if 0.0 < accuracy <= 1.0 else None


_CLAUSES: tuple[tuple[str, Callable[[re.Match[str]], dict[str, Any] | None]], ...] = (
    (rf"p({_NUMBER})\s*=(.*)", _latency),
    (rf"rate\s*>=\s*({_NUMBER})\s*(?:/\s*s)?", _rate),
    (rf"accuracy\s*>=\s*({_NUMBER})\s*(%?)", _accuracy),
    (r"(max)\s+rate|(min)\s+cores", lambda match: {"prefers": _PREFERENCES[match[1] or match[2]]}),
)


def _hint(clause: str) -> str:
    """The nearest that would be understood, with the numbers that stand there where they make sense in it."""
    clause = clause.lower()
    percentile = re.match(f"p({_NUMBER})", clause)
    amount = re.search(r"([0-9]+(?:\.[0-9]+)?)\s*(us|ms|s)?\s*(/\s*s|%)?\s*$", clause[percentile.end() if percentile else 0 :])
    value, unit = (amount[1], amount[2] or "") if amount else ("", "")
    shapes = {re.sub(_NUMBER, "", example): example for example in EXAMPLES}
    near = difflib.get_close_matches(re.sub(_NUMBER, "", clause), shapes, n=1, cutoff=0.5)
    if not near and not unit:
        return f"write it like {', '.join(EXAMPLES)}"
    example = EXAMPLES[0] if unit else shapes[near[0]]
    guess = {
        "p99=20ms": f"p{percentile[1] if percentile else 99}={value}{unit or 'ms'}",
        "rate>=500": f"rate>={value}",
        "accuracy>=0.97": f"accuracy>={value}{'%' if value and float(value) > 1.0 else ''}",
    }.get(example, example)
    return f"did you mean {(guess if _makes_sense(guess) else example)!r}?"


def _makes_sense(clause: str) -> bool:
    return any((match := re.fullmatch(pattern, clause)) and meaning(match) for pattern, meaning in _CLAUSES)


def _number(text: str, exponent: int = 0) -> float:
    """0 for what is none, or too large."""
    try:
        value = float(f"{text}e{exponent}")
    except ValueError:
        return 0.0
    return value if value < inf else 0.0


def _plain(value: float, exponent: int = 0) -> str:
    """The shortest decimal that is read as this value, times so many powers of ten."""
    return f"{Decimal(repr(value)).scaleb(exponent).normalize():f}"
