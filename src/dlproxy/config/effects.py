"""Whether the values of a section make sense together: texts that mean something, knobs that have an effect.

Called by reading.py, and by whatever else makes or changes a section. Not aware of: files, models.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

import msgspec
from msgspec import Struct

from dlproxy.config.goals import parse_goal, parse_latency
from dlproxy.config.knobs import Config, ModelConfig, Place
from dlproxy.config.limits import HttpLimits, TenantConfig
from dlproxy.config.messages import explain, what_and_where
from dlproxy.config.node import NodeConfig, check_members, check_node
from dlproxy.config.paths import check_forecast, check_way, is_address, parse_devices
from dlproxy.config.pipelines import PIPELINE, wired
from dlproxy.config.ray import check_ray
from dlproxy.config.table import Knob, first_knobs, knobs, tuned_knobs
from dlproxy.config.tracing import TracingConfig, check_endpoint
from dlproxy.config.traits import Only
from dlproxy.config.values import ConfigError, check_origins, nearest

LEVELS = ("1", "2", "3", "4", "5", "6", "7", "8")  # of priority: policy/queueing has so many
_WORDS: dict[str, str] = {
    "inline": "on the event loop",
    "thread": "on a thread",
    "process": "in a process of their own",
    "ray": "in an actor of Ray",
    "upstream": "on another server",
    "pipeline": "in other models, as steps of a pipeline",
}


def check(section: Struct, places: Sequence[str] = ()) -> list[str]:
    """Raises ConfigError for what is not understood or surely a mistake; returns warnings of what else has no effect.

    `places`: where the model's batches may run, if more is known than its configuration says. What other packages' ways of
    running heed, they know themselves.
    """
    if isinstance(section, ModelConfig):
        _check_goals(section)
        parse_devices(section.device)
        check_way(section.run)
        check_ray(section.ray_address, section.ray_resources)
        check_forecast(section.forecast)
        if is_address(section.path):
            check_members(section.members, section.path)
        _check_bounds(section)
        _check_names("pinned", section.pinned, tuned_knobs())
        if section.path == PIPELINE:
            wired(section.steps, section.inputs, section.outputs)
        if len(set(section.variants)) < len(section.variants):
            raise ConfigError(f"variants: a model is named twice in {', '.join(section.variants)}", "variants")
    elif isinstance(section, HttpLimits):
        check_origins(section.cors_origins)
    elif isinstance(section, NodeConfig):
        check_node(section)
    elif isinstance(section, TracingConfig):
        check_endpoint(section.endpoint)
    warnings = []
    for knob, only, message in _without_effect(section, places):
        if only.surely:
            raise ConfigError(message, knob.name)
        warnings.append(message)
    if isinstance(section, ModelConfig) and section.start:
        warnings += [warning for warning in _check_start(section, places) if warning not in warnings]
    return warnings


def _check_goals(model: ModelConfig) -> None:
    """Raises ConfigError for an objective that is none."""
    parse_goal(model.slo)
    for priority, text in model.slo_by_priority.items():
        if priority not in LEVELS:
            raise ConfigError(f"slo_by_priority: {priority!r} is no priority; there are {', '.join(LEVELS)}", "slo_by_priority")
        try:
            parse_latency(text)
        except ConfigError as error:
            raise ConfigError(f"slo_by_priority.{priority}: {error}", "slo_by_priority") from None


def _check_names(knob: str, names: Iterable[str], known: Sequence[str]) -> None:
    """Raises ConfigError for one that is not among those known."""
    for name in names:
        if name not in known:
            raise ConfigError(f"{knob}: {name!r} is no knob that the autopilot changes; {nearest(name, known)}", knob)


def _check_start(model: ModelConfig, places: Sequence[str]) -> list[str]:
    """Raises ConfigError for first values that the knobs would not take; returns warnings of what has no effect."""
    _check_names("start", model.start, first_knobs())
    try:
        first = msgspec.convert({**msgspec.to_builtins(model), **model.start, "start": {}}, ModelConfig)
        warnings = check(first, places)
    except msgspec.ValidationError as error:
        what, knob = what_and_where(error)
        raise ConfigError(f"start.{knob}: {explain(what, ModelConfig, knob)}", "start") from None
    except ConfigError as error:
        raise ConfigError(f"start: {error}", "start") from None
    if first.max_batch > model.max_batch:
        raise ConfigError(f"start: max_batch = {first.max_batch} is above max_batch = {model.max_batch} itself", "start")
    return warnings


def _check_bounds(model: ModelConfig) -> None:
    """Raises ConfigError for a number of instances that autoscaling could not keep to."""
    least, most = model.min_instances, model.max_instances
    if model.autoscale == "off":
        return
    if most and least > most:
        raise ConfigError(f"min_instances = {least} is above max_instances = {most}", "min_instances")
    if model.instances and not least <= model.instances <= (most or model.instances):
        bounds = f"{least} to {most}" if most else f"{least} or more"
        raise ConfigError(f"instances = {model.instances}, to start with, must be {bounds}", "instances")


def without_effect(config: Config) -> list[str]:
    """Warnings of tenants' shares that no model heeds, and of models that are to be tuned for nothing."""
    aimless = [
        f'models.{name}: the autopilot has nothing to tune for: set slo = "p99=20ms" or the like, or --slo p99=20ms'
        for name, model in config.served()
        if (config.autopilot.mode if model.autopilot == "auto" else model.autopilot) != "off"
        if model.path != PIPELINE and model.goal.latency_s is None and model.goal.prefers != "rate"
    ]
    if any(model.discipline == "fair" for _, model in config.served()):
        return aimless
    return aimless + [
        f"tenants.{name}: weight = {tenant.weight:g} has no effect: it needs a model with discipline = 'fair'"
        for name, tenant in config.tenants.items()
        if tenant.weight != TenantConfig().weight
    ]


def check_gateways(config: Config) -> None:
    """Raises ConfigError for a model that several processes cannot serve together."""
    if config.server.gateways != 1:
        for name, model in config.served():
            check_shared(name, model)


def check_shared(name: str, model: ModelConfig) -> None:
    """The same of one model, if the processes are several."""
    if model.sequences != "off":
        raise ConfigError(f"models.{name}: sequences: one process must see all of a sequence, so set gateways = 1", "sequences")
    if model.run == "ray":
        raise ConfigError(f"models.{name}: run: each gateway would have actors of its own, so set gateways = 1", "run")
    if model.autoscale != "off" and model.run == "process":
        raise ConfigError(
            f"models.{name}: autoscale: gateways share worker processes, whose number is fixed; set instances", "autoscale"
        )


def possible_places(model: ModelConfig) -> Sequence[str]:
    """Where batches may run, as far as the configuration tells."""
    if is_address(model.path):
        return ("upstream",)
    if model.path == PIPELINE:
        return ("pipeline",)
    return ("inline", "thread", "process") if model.run == "auto" else (model.run,)


def _without_effect(section: Struct, places: Sequence[str]) -> Iterator[tuple[Knob, Only, str]]:
    for knob in knobs(type(section)).values():
        value = getattr(section, knob.name)
        for only in knob.traits.only:
            if value == knob.default or value in only.harmless:
                continue
            actual: Sequence[str | float] = [getattr(section, name) for name in (only.knob, *only.alternatives)]
            if only.knob == "run" and isinstance(section, ModelConfig):
                actual = places or possible_places(section)
                if not set(actual) <= set(_WORDS):
                    continue
            if not any(_allows(only, one) for one in actual):
                found = "" if only.but and only.knob != "run" else f", not {_actual(only, actual)}"
                yield knob, only, f"{_shown(knob, value)} has no effect: it needs {needs(only)}{found}"


def _allows(only: Only, value: str | float) -> bool:
    return value in only.among if only.among else value not in only.but


def needs(only: Only) -> str:
    """What there must be for a knob to have an effect, in words."""
    if only.knob == "run":
        allowed = [_WORDS[place] for place in get_args(Place) if _allows(only, place)]
        return f"batches that run {'here' if only.but == ('upstream', 'pipeline') else _or(allowed)}"
    if only.among:
        return f"{only.knob} = {_or(list(map(repr, only.among)))}"
    if only.but == ("",):
        return f"a{'n' * (only.knob[0] in 'aeiou')} {only.knob}"
    return f"another {_or([only.knob, *only.alternatives])} than {_or(list(map(repr, only.but)))}"


def _actual(only: Only, actual: Sequence[str | float]) -> str:
    return _or([_WORDS[str(value)] if only.knob == "run" else repr(value) for value in actual])


def _or(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _shown(knob: Knob, value: Any) -> str:
    """Without what stands in tables, which may be secret."""
    if isinstance(value, dict):
        return knob.name
    return f"{knob.name} = {str(value).lower() if isinstance(value, bool) else repr(value)}"
