"""Instances of one model on other servers, which come and go.

Joined by fleet/start.py. Not aware of: lanes, requests, protocols.
"""

import asyncio
from functools import partial

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.config.secrets import read_key, with_key
from dlproxy.fleet.names import instance_name
from dlproxy.fleet.roster import Roster
from dlproxy.instance.remote import RemoteInstance, RemoteSettings, calibrate_upstream, parse_addresses, start_upstreams
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.trial import Way
from dlproxy.instance.warmup import Calibration
from dlproxy.message import Signature


async def join_upstreams(name: str, config: ModelConfig) -> "UpstreamFleet":
    """All servers that the path names. Raises ModelError."""
    settings = RemoteSettings(
        response_timeout_s=config.batch_timeout_s,
        headers=_headers(config),
        ca_file=config.upstream_ca,
        cert_file=config.upstream_cert,
        key_file=config.upstream_cert_key,
    )
    addresses = parse_addresses(config.path)
    instances = [RemoteInstance(instance_name(name, number), address, settings) for number, address in enumerate(addresses)]
    model = await start_upstreams(instances)
    try:
        calibration = await calibrate_upstream(next(instance for instance in instances if instance.up), config.batching)
    except BaseException:
        await asyncio.gather(*(instance.stop() for instance in instances))
        raise
    if not calibration.independent_rows:
        for instance in instances:
            instance.go_single()
    return UpstreamFleet(name, instances, instances[0].model.signature, model.max_batch, calibration)


def _headers(config: ModelConfig) -> dict[str, str]:
    """Raises ModelError for a key that is not there."""
    if not config.upstream_api_key:
        return config.upstream_headers
    try:
        return with_key(config.upstream_headers, read_key(config.upstream_api_key, "upstream_api_key"))
    except ConfigError as error:
        raise ModelError(str(error)) from None


class UpstreamFleet:
    """Upstream servers, an instance each."""

    run = "upstream"

    def __init__(
        self,
        name: str,
        instances: list[RemoteInstance],
        signature: Signature,
        most_rows: int | None,
        calibration: Calibration,
    ) -> None:
        self.signature = signature
        self.calibration = calibration
        self.most_rows = most_rows
        self.way = Way(inline=False, instances=len(instances), threads=0)
        self._name = name
        self._instances = instances

    def attach(self, roster: Roster) -> None:
        for instance in self._instances:
            instance.on_lost = partial(roster.lose_instance, instance.name)
            instance.on_up = partial(roster.add_instance, instance)
            if instance.up:
                roster.add_instance(instance)
            else:
                roster.instance_failed(instance, "it could not be used when the model was loaded")

    async def scale(self, count: int) -> None:
        raise ConfigError(f"model {self._name} runs on other servers: its path names them")

    def elsewhere_bytes(self) -> int:
        return 0

    async def stop(self) -> None:
        await asyncio.gather(*(instance.stop() for instance in self._instances))

    def describe(self) -> str:
        places = ", ".join(instance.address.authority for instance in self._instances)
        return f"on {places}"
