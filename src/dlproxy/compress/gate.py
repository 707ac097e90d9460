"""Decides whether a candidate is taken: it must be shown to pay, and to lose no more than is allowed. Pure.

Called by search.py with what was measured. Not aware of: how anything was measured, which recipe a candidate is of.
"""

import re
from math import ceil, floor, isfinite, log10
from typing import Literal

import msgspec
from msgspec import Struct

from dlproxy.compress import CompressError

KEPT = 0.9  # of the original's speed: what a smaller model is shown to have at least
_IN_PERCENT = ("accuracy", "f1", "agreement")
_MANY = 1_000_000  # examples
_CHANCE = "which may be chance: measure it when the machine is idle"
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_RATIO = re.compile(r"(\d+(?:\.\d+)?)\s*[x\xd7]", re.IGNORECASE)
_LIMIT = re.compile(r"(size|memory)\s*=\s*(\d+(?:\.\d+)?)\s*([kmg]?i?b)", re.IGNORECASE)
_LOSS = re.compile(r"(\d*\.?\d+)\s*(%?)")


class Speed(Struct, frozen=True):
    """Of one batch size, original and candidate measured in turns. Medians in seconds; `ratio`: how many times as quick the
    candidate is, with the ends of its 95 % interval.
    """

    rows: int
    original_s: float
    candidate_s: float
    ratio: float
    low: float
    high: float


class Accuracy(Struct, frozen=True):
    """On the same held-out examples. `loss`: original less candidate, on all examples above `low` and below `high`, each but
    for 5 % (statistics.py). `agreement`: the share of examples to which both answer alike. `worst_class`: the label that lost
    the most and how much, where labels are classes and any lost.
    """

    metric: str
    examples: int
    original: float
    candidate: float
    loss: float
    low: float
    high: float
    agreement: float
    worst_class: tuple[str, float] | None = None


class Footprint(Struct, frozen=True):
    """What a model takes. `memory_bytes`: resident memory of a process with it and a batch of the larger size, less that of
    one without it.
    """

    file_bytes: int
    load_s: float
    memory_bytes: int


class Measured(Struct, frozen=True):
    """All that is known of a candidate. `speeds`: of batch 1 and of the larger batch."""

    accuracy: Accuracy
    speeds: tuple[Speed, ...]
    original: Footprint
    candidate: Footprint


class Bar(Struct, frozen=True, kw_only=True):
    """What is asked of a candidate. `most_loss`: of the metric, in its own unit. `least_ratio`: at every batch size, unless
    `most_file_bytes` or `most_memory_bytes` is asked for, which then are what has to be met and speed need only be kept.
    """

    most_loss: float = 0.01
    least_ratio: float = 1.15
    most_file_bytes: int = 0
    most_memory_bytes: int = 0


class Verdict(Struct, frozen=True):
    """`reasons`: why it is refused, in words; of one that is taken, why it is."""

    status: Literal["accepted", "refused"]
    reasons: list[str]


Finding = tuple[bool, str]  # whether the bar is met, and why


def judge(measured: Measured, bar: Bar) -> Verdict:
    """A test of non-inferiority in accuracy, and of superiority in speed or size. What is not known counts against it."""
    findings = [on_loss(measured.accuracy, bar.most_loss)]
    limits = (("file", bar.most_file_bytes, "file_bytes"), ("memory", bar.most_memory_bytes, "memory_bytes"))
    asked = [(what, most, name) for what, most, name in limits if most]
    for what, most, name in asked:
        findings.append(_size(what, getattr(measured.original, name), getattr(measured.candidate, name), most))
    findings += [_kept(speed) if asked else _quicker(speed, bar.least_ratio) for speed in measured.speeds]
    if not measured.speeds:
        findings.append((False, "its speed was not measured"))
    against = [why for met, why in findings if not met]
    return Verdict("refused", against) if against else Verdict("accepted", [why for _, why in findings])


def on_loss(accuracy: Accuracy, most: float) -> Finding:
    """Whether it is shown that no more than `most` is lost, and why in words."""
    loss, high, allowed = (amount(accuracy.metric, value) for value in (accuracy.loss, accuracy.high, most))
    lost = f"loses {loss} of {accuracy.metric}" if accuracy.loss > 0.0 else f"loses no {accuracy.metric}"
    if accuracy.loss <= accuracy.high <= most:
        bound = f"at most {high}" if accuracy.high >= 0.0 else f"gains at least {amount(accuracy.metric, -accuracy.high)}"
        return True, f"{lost} on {accuracy.examples:,} held-out examples, and {bound} on all there are (95 % sure)"
    if not (isfinite(accuracy.loss) and isfinite(accuracy.high) and accuracy.loss <= accuracy.high):
        return False, f"what it loses of {accuracy.metric} is not known"
    if accuracy.loss >= most:
        return False, f"{lost}, {allowed} is allowed"
    needed = examples_to_show(most, examples=accuracy.examples, loss=accuracy.loss, low=accuracy.low, high=accuracy.high)
    would = f"about {needed:,} would" if needed <= _MANY else "more than a million would be needed"
    return False, f"{lost}, but {accuracy.examples:,} held-out examples cannot show less than {high}: {would}"


def examples_to_show(most: float, *, examples: int, loss: float, low: float, high: float) -> int:
    """By which the bound of a loss below `most` would fall below it, if all else stayed: it shrinks with the root of their
    number, and with their number where nothing differs. Of two digits, rounded up.
    """
    times = min((high - loss) / (most - loss), float(_MANY))
    needed = examples * (times if loss == low == 0.0 else times**2)
    place = float(10 ** max(floor(log10(max(needed, 1.0))) - 1, 0))
    return ceil(needed / place) * int(place)


def _quicker(speed: Speed, least: float) -> Finding:
    said = f"{speed.ratio:.2f} times as quick at batch {speed.rows} ({speed.low:.2f} to {speed.high:.2f})"
    if not speed.ratio >= least:
        return False, f"{said}, {least:.2f} times is asked for"
    if not speed.low > 1.0:
        return False, f"{said}, {_CHANCE}"
    return True, said


def _kept(speed: Speed) -> Finding:
    said = f"{speed.ratio:.2f} times as quick at batch {speed.rows} ({speed.low:.2f} to {speed.high:.2f})"
    if not speed.high >= 1.0:
        return False, f"{said}, which is slower"
    if not speed.low >= KEPT:
        return False, f"{said}, {_CHANCE}"
    return True, said


def _size(what: str, original: int, candidate: int, most: int) -> Finding:
    said = f"{what} of {in_bytes(candidate)}"
    if candidate <= 0:
        return False, f"what its {what} takes is not known"
    if candidate > most:
        return False, f"{said}, at most {in_bytes(most)} is asked for"
    if candidate >= original:
        return False, f"{said}, which is no less than the original's {in_bytes(original)}"
    return True, said


def amount(metric: str, value: float) -> str:
    """A value of this metric, or a loss of it, for people."""
    if metric not in _IN_PERCENT:
        return f"{value:.4g}"
    percent = f"{100 * value:.2f}".rstrip("0").rstrip(".")
    return f"{'0' if percent == '-0' else percent} %"


def in_bytes(size: int) -> str:
    """A size for people, in the units that `bar_of` reads."""
    unit = next((unit for unit in ("GB", "MB", "kB") if abs(size) >= _UNITS[unit.lower()]), "B")
    return f"{size / _UNITS[unit.lower()]:.3g} {unit}"


def bar_of(*, target: str = "", max_loss: str = "") -> Bar:
    """What a user asks for: 2x, size=1MB, memory=64MB, or the last two with a comma; and 1% or 0.01. Raises CompressError."""
    asked: dict[str, float] = {"most_loss": _most_loss(max_loss)} if max_loss else {}
    for part in filter(None, (part.strip() for part in target.split(","))):
        ratio, limit = _RATIO.fullmatch(part), _LIMIT.fullmatch(part)
        if ratio:
            name, value = "least_ratio", float(ratio[1])
        elif limit:
            name = "most_file_bytes" if limit[1].lower() == "size" else "most_memory_bytes"
            value = int(float(limit[2]) * _UNITS[limit[3].lower()])
        else:
            raise CompressError(f"--target {part}: write how many times as quick (2x), or size=1MB, or memory=64MB")
        if name in asked:
            raise CompressError(f"--target {target} says the same thing twice: leave one")
        if value < 1.0:
            raise CompressError(f"--target {part}: a model that is slower, or takes nothing, is not looked for: write more")
        asked[name] = value
    if "least_ratio" in asked and len(asked.keys() - {"most_loss"}) > 1:
        raise CompressError(f"--target {target}: ask for a speed or for a size; of what is small enough, the speed is kept")
    return msgspec.convert(asked, Bar)


def _most_loss(text: str) -> float:
    match = _LOSS.fullmatch(text.strip())
    if match is None:
        raise CompressError(f"--max-loss {text}: write a share like 1% or 0.01")
    value = float(match[1]) / (100.0 if match[2] else 1.0)
    if value >= 1.0:
        raise CompressError(f"--max-loss {text} allows everything to be lost: write 1% or 0.01")
    if value <= 0.0:
        raise CompressError(f"--max-loss {text}: that nothing at all is lost, no number of examples shows; write 0.1% or more")
    return value
