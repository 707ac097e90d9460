"""What the autopilot sees of a loaded model, and how it turns its knobs. Called by serve/models.py.

Not aware of: what the autopilot decides, who else changes the model.
"""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from dlproxy.autopilot.flight import Mode, Tuned
from dlproxy.config import ConfigError, model_of
from dlproxy.config.knobs import LaneSettings
from dlproxy.config.pipelines import PIPELINE
from dlproxy.config.table import tuned_knobs
from dlproxy.cores import usable_cores
from dlproxy.fleet.local import LocalFleet
from dlproxy.policy.tuning.protocol import Knobs, Space, Value
from dlproxy.serve.assemble import LoadedModel

NO_LATENCY_S = 1.0  # objective of models that are to answer as much as they can, however late
LANE = tuple(name for name in tuned_knobs() if name in LaneSettings.__struct_fields__)


def tuned(model: LoadedModel, mode: Mode, *, sessions: bool) -> Tuned:
    """`mode`: of models that have none of their own. `sessions`: a model may be loaded twice for the time of a trial."""
    served, control = model.served, model.control

    def own_mode() -> Mode:
        own = control.config.autopilot
        return mode if own == "auto" else own

    return Tuned(
        name=served.name,
        version=served.version,
        stats=served.stats,
        mode=own_mode,
        space=partial(_space, model, sessions),
        knobs=partial(_knobs, model),
        cores=usable_cores,
        instances=lambda: len(model.roster),
        up=lambda: len(model.lane.pool),
        open_requests=lambda: model.driver.open_requests,
        rows_under_way=model.lane.rows_under_way,
        ready=partial(_ready, model),
        prepare=partial(_prepare, model),
        apply=partial(_apply, model),
        let_go=partial(_let_go, model),
        turn_cores=lambda: model.turn_needs.get("cores", 0.0),
        weight=lambda: control.config.weight,
        weigh=model.driver.weigh,
    )


def _space(model: LoadedModel, sessions: bool) -> Space | str:
    config = model.control.config
    if config.path == PIPELINE:
        return "it is a pipeline: the models that it asks are tuned"
    goal = config.goal
    if goal.latency_s is None and goal.prefers != "rate":
        return 'it has no objective to tune for; set one, such as slo = "p99=20ms"'
    if model.served.signature.streams:
        return "it answers in parts, whose pace is that of whoever reads them"
    return Space(
        cores=usable_cores(),
        max_batch=model.control.most_batch,
        ways=_ways(model, sessions),
        objective_s=goal.latency_s or NO_LATENCY_S,
        tolerated=1.0 - goal.quantile,
        prefers=goal.prefers,
        pinned=frozenset(config.pinned),
    )


def _ways(model: LoadedModel, sessions: bool) -> tuple[tuple[int, int], ...]:
    """The present one alone where others have the say, or where another cannot be had within a moment."""
    fleet = model.fleet
    taken = model.autoscaler is not None or not {"instances", "threads"}.isdisjoint(model.control.config.pinned)
    stays = model.sequences is not None and fleet.signature.told_sequences  # what goes takes its sequences' state along
    if taken or stays or not isinstance(fleet, LocalFleet):
        return (_present(model),)
    return fleet.ways(sessions=sessions)


def _present(model: LoadedModel) -> tuple[int, int]:
    return max(len(model.roster), 1), max(model.fleet.way.threads, 1)


def _knobs(model: LoadedModel) -> dict[str, Value]:
    instances, threads = _present(model)
    return {**{name: model.control.holds(name) for name in LANE}, "instances": instances, "threads": threads}


def holding(model: LoadedModel) -> dict[str, Any]:
    """What its knobs are that can be turned while it serves; not the number of instances where autoscaling chooses it."""
    return {
        name: value for name, value in _knobs(model).items() if name in LANE or (model.autoscaler is None and name != "threads")
    }


def _lane(knobs: Knobs) -> dict[str, Value]:
    return {name: knobs[name] for name in LANE if name in knobs}


def _way(model: LoadedModel, knobs: Knobs) -> tuple[int, int] | None:
    """None if it is the present one, or for others to choose."""
    way = int(knobs["instances"]), int(knobs["threads"])
    own = isinstance(model.fleet, LocalFleet) and model.autoscaler is None
    return way if own and way != _present(model) else None


def _ready(model: LoadedModel, knobs: Knobs) -> bool:
    way, fleet = _way(model, knobs), model.fleet
    return way is None or (isinstance(fleet, LocalFleet) and fleet.is_ready(way[1]))


async def _prepare(model: LoadedModel, knobs: Knobs) -> None:
    """Raises ConfigError, ModelError, and whatever loading a model raises."""
    config = model.control.config
    _check(model, _lane(knobs))
    way, fleet = _way(model, knobs), model.fleet
    if way is None:
        return
    assert isinstance(fleet, LocalFleet)
    try:
        async with asyncio.timeout(config.load_timeout_s):
            await fleet.prepare(way[1])
    except TimeoutError:
        raise ConfigError(f"it could not be loaded once more within {config.load_timeout_s:g} s") from None


def _check(model: LoadedModel, values: Mapping[str, Value]) -> None:
    """Raises ConfigError for values that the knobs do not take."""
    config = model_of({**msgspec.to_builtins(model.control.config), **values}, stated=())
    if config.max_batch > model.control.most_batch:
        raise ConfigError(f"max_batch {config.max_batch} is above {model.control.most_batch}")


def _apply(model: LoadedModel, knobs: Knobs) -> None:
    model.control.tune(_lane(knobs))
    way, fleet = _way(model, knobs), model.fleet
    if way is not None and isinstance(fleet, LocalFleet) and not fleet.way.inline:
        fleet.use(*way)


async def _let_go(model: LoadedModel) -> None:
    if isinstance(model.fleet, LocalFleet):
        await model.fleet.let_go()
