"""Chooses where the instances of a model run, by its path and its knobs, and starts them there.

Called by serve/assemble.py. Not aware of: how each way works.
"""

import asyncio

from dlproxy.config import ModelConfig, is_address, parse_devices
from dlproxy.fleet import Fleet
from dlproxy.fleet.local import LocalFleet
from dlproxy.fleet.remembered import Memory
from dlproxy.fleet.warm_model import warm_up
from dlproxy.instance.runtime.formats import Kind, runtime_kind

OF_OTHERS: tuple[Kind, ...] = ("python", "torchscript", "torch_export", "saved_model", "keras")  # run in processes by default:
# their code is the user's, or holds the GIL, or sets the threads of the whole process


async def start_fleet(name: str, config: ModelConfig, memory: Memory | None = None) -> Fleet:
    """Load and calibrate a model where its configuration says. Raises ModelError, ConfigError.

    `memory`: of what was found out about models in earlier lives of the server.
    """
    if is_address(config.path):
        from dlproxy.fleet.upstreams import join_upstreams  # most servers start without these

        return await join_upstreams(name, config)
    kind = await asyncio.to_thread(runtime_kind, config.path)
    if config.run == "process" or (config.run == "auto" and kind in OF_OTHERS):
        from dlproxy.fleet.processes import start_processes

        return await start_processes(name, config, kind)
    places = 1 if config.run == "inline" else len(parse_devices(config.device))
    only = memory if places == 1 else None
    return LocalFleet(name, config, [await asyncio.to_thread(warm_up, config, number, only) for number in range(places)])
