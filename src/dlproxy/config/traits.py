"""What a row of the table of knobs can say beside its type, default and range.

Used by knobs.py, and read by the rest of config/. Not aware of: any one knob.
"""

from typing import Any, Literal

from msgspec import Meta, Struct

Scale = Literal["linear", "log", "choice", "text"]
Cost = Literal["nothing", "relearn", "instances", "reload", "restart"]
"""Of a change: nothing; what was learnt; instances that are started or stopped; the model, or all of the server, anew."""
Unit = Literal["", "s", "bytes", "bytes/s", "MiB", "rows", "rows/s", "requests", "requests/s", "cores", "threads"]


class Only(Struct, frozen=True):
    """A knob has an effect only if another, `knob`, has a value `among` these, or one `but` these; `run` is where batches run.
    `alternatives`: further knobs, of which one with such a value suffices.

    Else it is refused, if that is `surely` a mistake, or warned of, but for its default and `harmless` values.
    """

    knob: str
    among: tuple[str, ...] = ()
    but: tuple[str | float, ...] = ()
    surely: bool = True
    harmless: tuple[Any, ...] = ()
    alternatives: tuple[str, ...] = ()


class Traits(Struct, frozen=True):
    """What Meta has no field for. `least`: the smallest value above 0 that makes a difference, where 0 means something else;
    `choices`: of a text, all that there are without other packages.
    """

    cost: Cost
    unit: Unit = ""
    log: bool = False
    least: float = 0.0
    tuned: bool = False
    only: tuple[Only, ...] = ()
    choices: tuple[str, ...] = ()


def knob(
    description: str,
    *,
    cost: Cost = "restart",
    unit: Unit = "",
    log: bool = False,
    least: float = 0.0,
    tuned: bool = False,
    only: tuple[Only, ...] = (),
    choices: tuple[str, ...] = (),
    **limits: Any,
) -> Meta:
    return Meta(description=description, extra={"traits": Traits(cost, unit, log, least, tuned, only, choices)}, **limits)
