"""What of a server's configuration one of its gateways gets: its part of what there is once, and files of its own.

Called by gateway.py. Not aware of: processes.
"""

from pathlib import Path

import msgspec

from dlproxy.config import Config


def share_of(config: Config, number: int, count: int) -> Config:
    """That of gateway `number` of `count`. Memory and the arbiter's cores are parted; rates of tenants are not, as gateways
    tell each other what they charge; limits of connections hold for each gateway.
    """
    server, cache = config.server, config.cache
    mine = f"gateway-{number}"
    return msgspec.structs.replace(
        config,
        server=msgspec.structs.replace(
            server,
            audit_log=server.audit_log and f"{server.audit_log}.{mine}",
            event_log=server.event_log and str(Path(server.event_log, mine)),
            memory_budget_mb=_part(server.memory_budget_mb, count),
            cores=_part(server.cores, count),
        ),
        autopilot=msgspec.structs.replace(
            config.autopilot, record=config.autopilot.record and str(Path(config.autopilot.record, mine))
        ),
        cache=msgspec.structs.replace(cache, memory_mb=_part(cache.memory_mb, count)),
    )


def _part(whole: int, count: int) -> int:
    """Rounded up; 0 stays 0, which is no limit."""
    return -(-whole // count)
