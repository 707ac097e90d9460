"""The rows of the table of knobs, read from its annotations, and what others take from them.

Called by the rest of config/, cli/, serve/control.py, docs/generate.py and tuners. Not aware of: any one knob.
"""

from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import NODEFAULT, Meta, Struct

from dlproxy.config.knobs import SECTIONS, LaneSettings, ModelConfig
from dlproxy.config.traits import Cost, Scale, Traits

GLOBAL = ("server", "http", "tls", "auth", "integrity", "autopilot", "cache", "tracing", "node")
"""The sections that there are once: environment variables and options set their knobs."""


class Knob(Struct, frozen=True):
    """One row of the table. `type`: as annotated; `low`, `high`: the range of a number; `required`: there is no default."""

    name: str
    type: Any
    default: Any
    description: str
    scale: Scale
    traits: Traits
    low: float | None
    high: float | None
    above: bool  # low itself is not allowed
    pattern: str | None

    @property
    def required(self) -> bool:
        return self.default is NODEFAULT

    @property
    def choices(self) -> tuple[Any, ...]:
        """All its values, if they can be counted."""
        if self.type is bool:
            return (False, True)
        return get_args(self.type) if get_origin(self.type) is Literal else self.traits.choices

    @property
    def live(self) -> bool:
        """Whether the control port may change it while the model serves."""
        return self.traits.cost in ("nothing", "relearn")


class Dimension(Struct, frozen=True):
    """One of a tuner's choices: a number from `low` to `high`, or one of `choices`, such as 0 for "off" beside the range."""

    name: str
    scale: Scale
    cost: Cost
    whole: bool = False
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()


@cache
def knobs(struct: type[Struct]) -> dict[str, Knob]:
    """The rows of a section by name, its own before those that it shares with lanes."""
    hints = get_type_hints(struct, include_extras=True)
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    inherited = [name for name in fields if name not in struct.__annotations__]
    return {name: _row(fields[name], *get_args(hints[name])) for name in [*struct.__annotations__, *inherited]}


def _row(field: msgspec.structs.FieldInfo, kind: Any, meta: Meta) -> Knob:
    default = field.default if field.default_factory is NODEFAULT else field.default_factory()
    traits: Traits = (meta.extra or {})["traits"]
    countable = kind is bool or get_origin(kind) is Literal or bool(traits.choices)
    scale: Scale = "choice" if countable else "text" if kind not in (int, float) else "log" if traits.log else "linear"
    low = meta.ge if meta.gt is None else meta.gt
    above = meta.gt is not None
    return Knob(field.name, kind, default, meta.description or "", scale, traits, low, meta.le, above, meta.pattern)


def live_knobs() -> tuple[str, ...]:
    """The knobs of a model that can be changed while it serves."""
    return tuple(name for name, knob in knobs(ModelConfig).items() if knob.live)


@cache
def tuned_knobs() -> tuple[str, ...]:
    """The knobs of a model that a tuner may turn."""
    return tuple(name for name, knob in knobs(ModelConfig).items() if knob.traits.tuned)


@cache
def first_knobs() -> tuple[str, ...]:
    """The knobs of a model that `start` may have a first value for: what a tuner may turn, and all that its lane takes."""
    return tuple(name for name in knobs(ModelConfig) if name in LaneSettings.__struct_fields__ or name in tuned_knobs())


def option(section: str, knob: str) -> str:
    """What options and environment variables call a knob of a section that there is once."""
    return knob if section in ("server", "http") else section if knob == "mode" else f"{section}_{knob}"


def option_help(name: str) -> str:
    """For the option that sets such a knob: what it does, and its default."""
    knob = {option(section, knob.name): knob for section in GLOBAL for knob in knobs(SECTIONS[section]).values()}[name]
    default = "" if knob.default in ("", []) else f" (default {knob.default})"
    return (knob.description + default).replace("%", "%%")


def space(section: type[Struct]) -> list[Dimension]:
    """What a tuner may turn, and within which bounds: no promises to clients, nothing that could change an answer."""
    return [_dimension(knob) for knob in knobs(section).values() if knob.traits.tuned]


def _dimension(knob: Knob) -> Dimension:
    cost, least = knob.traits.cost, knob.traits.least
    if knob.scale == "choice":
        return Dimension(knob.name, knob.scale, cost, choices=knob.choices)
    return Dimension(knob.name, knob.scale, cost, knob.type is int, least or knob.low, knob.high, (0,) if least else ())
