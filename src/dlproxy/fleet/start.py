"""Chooses where the instances of a model run, by its path and its knobs, and starts them there.

Called by serve/assemble.py. Not aware of: how each way works.
"""

import asyncio
import logging

from dlproxy.config import ConfigError, ModelConfig, check, is_address, parse_devices
from dlproxy.config.effects import possible_places
from dlproxy.config.knobs import Place
from dlproxy.fleet import Fleet
from dlproxy.fleet.local import LocalFleet
from dlproxy.fleet.remembered import Memory
from dlproxy.fleet.warm_model import WarmModel, warm_up
from dlproxy.instance.runtime.formats import format_of

log = logging.getLogger(__name__)


async def start_fleet(name: str, config: ModelConfig, memory: Memory | None = None) -> Fleet:
    """Load and calibrate a model where its configuration says. Raises ModelError, ConfigError.

    `memory`: of what was found out about models in earlier lives of the server.
    """
    if is_address(config.path):
        from dlproxy.fleet.upstreams import join_upstreams  # most servers start without these

        _heed(name, config, "upstream")
        return await join_upstreams(name, config)
    kind = await asyncio.to_thread(format_of, config.path)
    if config.run == "process" or (config.run == "auto" and kind.apart):
        from dlproxy.fleet.processes import start_processes

        _heed(name, config, "process")
        return await start_processes(name, config, kind)
    _heed(name, config, *(("inline", "thread") if config.run == "auto" else possible_places(config)))
    places = 1 if config.run == "inline" else len(parse_devices(config.device))
    only = memory if places == 1 else None
    warm: list[WarmModel] = []
    for number in range(places):
        await asyncio.to_thread(_append_warm, warm, config, number, only)
    fleet = LocalFleet(name, config, warm)
    warm.clear()
    return fleet


def _append_warm(warm: list[WarmModel], config: ModelConfig, number: int, memory: Memory | None) -> None:
    """Returned, it would be held by the pool's thread until that gets to run again, perhaps longer than the model is served."""
    warm.append(warm_up(config, number, memory))


def _heed(name: str, config: ModelConfig, *places: Place) -> None:
    """Refuse or warn of knobs that have no effect there. Raises ConfigError."""
    try:
        warnings = check(config, places)
    except ConfigError as error:
        raise ConfigError(f"model {name}: {error}") from None
    for warning in warnings:
        log.warning("model %s: %s", name, warning)
