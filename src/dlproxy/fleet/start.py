"""Chooses where the instances of a model run, by its path and its knobs, and starts them there.

Called by serve/assemble.py. Not aware of: how each way works.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from dlproxy.config import ConfigError, ModelConfig, check, is_address, parse_devices
from dlproxy.config.knobs import WAY
from dlproxy.config.node import NodeConfig
from dlproxy.fleet import Fleet
from dlproxy.fleet.local import LocalFleet
from dlproxy.fleet.remembered import Memory
from dlproxy.fleet.warm_model import WarmModel, warm_up
from dlproxy.instance.integrity import Trust
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.formats import ANY, format_of

if TYPE_CHECKING:
    from dlproxy.fleet.lent import Lender

ALONE = NodeConfig()

log = logging.getLogger(__name__)

Start = Callable[[str, ModelConfig, Memory | None, Trust], Awaitable[Fleet]]


async def start_fleet(
    name: str,
    config: ModelConfig,
    memory: Memory | None = None,
    trust: Trust = ANY,
    node: NodeConfig = ALONE,
    lender: "Lender | None" = None,
) -> Fleet:
    """Load and calibrate a model where its configuration says. Raises ModelError, ConfigError.

    `memory`: of what was found out about models in earlier lives of the server. `trust`: which models may be loaded.
    `node`: what this server is to others. `lender`: who has the worker processes, where several processes share them.
    """
    config = config.begun(WAY)
    trust = msgspec.structs.replace(trust, model=name, version=config.version)
    way = await _way(config, trust)
    heed(name, config, *(("inline", "thread") if way == "auto" else (way,)))
    if lender is not None and way == "process":
        from dlproxy.fleet.lent import borrow

        return await borrow(lender, name, config, trust, "" if memory is None else memory.graphs)
    if way == "upstream":
        return await _elsewhere(name, config, node)
    return await WAYS.get(way, _added)(name, config, memory, trust)


async def _way(config: ModelConfig, trust: Trust) -> str:
    """As the table below has it; auto: on the event loop or on threads, whichever is the better. Raises ModelError."""
    if is_address(config.path):
        return "upstream"
    apart = config.run == "auto" and (await asyncio.to_thread(format_of, config.path, pickle=trust.pickle)).apart
    return "process" if apart else config.run


async def _here(name: str, config: ModelConfig, memory: Memory | None, trust: Trust) -> Fleet:
    places = 1 if config.run == "inline" else len(parse_devices(config.device))
    only = memory if places == 1 else None
    warm: list[WarmModel] = []
    for number in range(places):
        await asyncio.to_thread(_append_warm, warm, config, number, only, trust)
    fleet = LocalFleet(name, config, warm)
    warm.clear()
    return fleet


def _append_warm(warm: list[WarmModel], config: ModelConfig, number: int, memory: Memory | None, trust: Trust) -> None:
    """Returned, it would be held by the pool's thread until that gets to run again, perhaps longer than the model is served."""
    warm.append(warm_up(config, number, memory, trust))


async def _in_processes(name: str, config: ModelConfig, memory: Memory | None, trust: Trust) -> Fleet:
    from dlproxy.fleet.processes import start_processes  # most servers start without these

    return await start_processes(name, config, trust, "" if memory is None else memory.graphs)


async def _on_ray(name: str, config: ModelConfig, memory: Memory | None, trust: Trust) -> Fleet:
    from dlproxy.fleet.ray import start_on_ray

    return await start_on_ray(name, config, trust)


async def _elsewhere(name: str, config: ModelConfig, node: NodeConfig) -> Fleet:
    from dlproxy.fleet.upstreams import join_upstreams

    return await join_upstreams(name, config, node)


async def _added(name: str, config: ModelConfig, memory: Memory | None, trust: Trust) -> Fleet:
    from dlproxy.fleet.supervised import start_added

    if trust.signers:
        raise ModelError(
            f"model {name}: run = {config.run!r} loads models by itself, which are not checked for signatures then"
        )
    return await start_added(name, config)


WAYS: Mapping[str, Start] = {
    "auto": _here,
    "inline": _here,
    "thread": _here,
    "process": _in_processes,
    "ray": _on_ray,
}
"""Those of other packages are found by their entry points."""


def heed(name: str, config: ModelConfig, *places: str) -> None:
    """Refuse or warn of knobs that have no effect there. Raises ConfigError."""
    try:
        warnings = check(config, places)
    except ConfigError as error:
        raise ConfigError(f"model {name}: {error}") from None
    for warning in warnings:
        log.warning("model %s: %s", name, warning)
