"""Which models the pipelines ask: what is loaded for their sake, and in which order.

Asked by planner.py and fleet/control.py, and by serve/proxy.py for the order. Not aware of: what is up, how pipelines run.
"""

from collections.abc import Callable, Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple, TypeAlias

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.config.pipelines import PIPELINE
from dlproxy.policy.wanted import Wanted, WantedModel, WantedVersion

Key: TypeAlias = tuple[str, str]  # name and version


class Stage(NamedTuple):
    """A step of a pipeline, and the model that it asks. `version`: a number or a label; empty: the default one."""

    step: str
    model: str
    version: str

    def __str__(self) -> str:
        return f"stage '{self.step}': model '{self.model}'{f' version {self.version}' if self.version else ''}"


def stages_of(config: ModelConfig) -> list[Stage]:
    """None, if it is no pipeline or asks no models."""
    if config.path != PIPELINE:
        return []
    return [Stage(name, *_named(step.model)) for name, step in config.steps.items() if step.model]


def meant(stage: Stage, wanted: Wanted) -> list[Key]:
    """Versions that it may get, of those that are wanted."""
    model = wanted.models.get(stage.model, WantedModel())
    number = model.labels.get(stage.version, stage.version)
    return [(stage.model, version) for version in model.versions if number in ("", version)]


def waiting_for(config: ModelConfig, wanted: Wanted, serves: Callable[[Key], bool]) -> str:
    """Which models a pipeline is not loaded before, in words; empty if it waits for none."""
    missing = [stage.model for stage in stages_of(config) if not any(map(serves, meant(stage, wanted)))]
    return f"waits for {', '.join(dict.fromkeys(missing))}" if missing else ""


def with_stages(names: Iterable[str], wanted: Wanted) -> list[str]:
    """These models and those that they ask, which come first."""
    found: dict[str, None] = {}
    way, seen = list(names)[::-1], set[str]()
    while way:
        ahead = [] if way[-1] in seen else [name for name in _asked_by(way[-1], wanted) if name not in seen]
        seen.add(way[-1])
        if ahead:
            way += ahead[::-1]
        else:
            found[way.pop()] = None
    return list(found)


def circle(key: Key, wanted: Wanted) -> str:
    """That a pipeline waits for itself, in words; empty if it does not."""
    way, asked_by = [key], dict[Key, Key]()
    for one in way:
        for other in _before(one, wanted):
            if other not in asked_by:
                asked_by[other] = one
                way.append(other)
    if key not in asked_by:
        return ""
    names, one = [key[0]], asked_by[key]
    while one != key:
        names.append(one[0])
        one = asked_by[one]
    asked = ", which asks ".join(f"'{name}'" for name in [*reversed(names[1:]), key[0]])
    return f"pipelines wait for each other: '{key[0]}' asks {asked}"


def loading_order(models: Sequence[tuple[str, ModelConfig]]) -> list[int]:
    """Places of these models, none before those that it asks, else as they are. Raises ConfigError for a circle."""
    versions: dict[str, dict[str, WantedVersion]] = {}
    for name, config in models:
        versions.setdefault(name, {})[config.version] = WantedVersion(config)
    wanted = Wanted({name: WantedModel(found) for name, found in versions.items()})
    places = {(name, config.version): place for place, (name, config) in enumerate(models)}
    try:
        order = TopologicalSorter({key: _before(key, wanted) for key in places}).static_order()
        return [places[key] for key in order]
    except CycleError as error:
        raise ConfigError(circle(error.args[1][0], wanted)) from None


def _asked_by(name: str, wanted: Wanted) -> list[str]:
    """Models, of those that are wanted, that some version of this one asks."""
    model = wanted.models.get(name, WantedModel())
    asked = [stage.model for version in model.versions.values() for stage in stages_of(version.config)]
    return [name for name in dict.fromkeys(asked) if name in wanted.models]


def _before(key: Key, wanted: Wanted) -> list[Key]:
    version = wanted.models[key[0]].versions[key[1]]
    return [other for stage in stages_of(version.config) for other in meant(stage, wanted)]


def _named(text: str) -> tuple[str, str]:
    name, _, version = text.partition(":")
    return name, version
