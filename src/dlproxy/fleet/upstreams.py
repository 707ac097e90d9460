"""Instances of one model on other servers, which come and go.

Joined by fleet/start.py. Not aware of: lanes, requests, protocols.
"""

import asyncio
import logging
import re
import socket
from collections.abc import Callable
from functools import partial
from random import Random
from secrets import token_bytes, token_hex

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.config.node import NodeConfig
from dlproxy.config.secrets import read_key, with_key
from dlproxy.fleet.members import Finder, finder_of
from dlproxy.fleet.names import instance_name
from dlproxy.fleet.registry import reason
from dlproxy.fleet.roster import Roster
from dlproxy.fleet.tasks import end_all
from dlproxy.instance.remote import (
    Address,
    RemoteInstance,
    RemoteSettings,
    calibrate_upstream,
    parse_addresses,
    start_upstreams,
)
from dlproxy.instance.remote.codec import UpstreamModel
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.trial import Way
from dlproxy.instance.warmup import Calibration
from dlproxy.policy.membership import Membership

ALONE = NodeConfig()
JITTER = 0.2  # of the pause between looks, as between checks

log = logging.getLogger(__name__)


async def join_upstreams(name: str, config: ModelConfig, node: NodeConfig = ALONE) -> "UpstreamFleet":
    """All servers that the path names, now and later. Raises ModelError."""
    settings = RemoteSettings(
        response_timeout_s=config.batch_timeout_s,
        headers=_headers(config),
        ca_file=config.upstream_ca,
        cert_file=config.upstream_cert,
        key_file=config.upstream_cert_key,
        hop=hop_of(node),
        zone=node.zone,
    )
    finder = finder_of(config, node)
    try:
        if finder is None:
            addresses = {instance_name(name, number): each for number, each in enumerate(parse_addresses(config.path))}
        else:
            addresses = await _first_look(name, finder)
        instances = [RemoteInstance(instance, address, settings) for instance, address in addresses.items()]
        model, calibration = await _started(instances, config)
    except BaseException:
        if finder is not None:
            await finder.close()
        raise
    fleet = UpstreamFleet(name, instances, model, calibration, settings)
    if finder is not None:
        fleet.follow(finder, node.refresh_s)
    return fleet


async def _first_look(name: str, finder: Finder) -> dict[str, Address]:
    """Those that can be used when the model is loaded decide what it is. Raises ModelError."""
    try:
        found = await finder.look()
    except OSError as error:
        raise ModelError(f"{finder.words} cannot be found out: {reason(error)}") from None
    if not found:
        raise ModelError(f"there is none among {finder.words}")
    return {member_name(name, place): address for place, address in found.items()}


async def _started(instances: list[RemoteInstance], config: ModelConfig) -> tuple[UpstreamModel, Calibration]:
    model = await start_upstreams(instances)
    try:
        calibration = await calibrate_upstream(next(instance for instance in instances if instance.up), config.batching)
    except BaseException:
        await asyncio.gather(*(instance.stop() for instance in instances))
        raise
    if not calibration.independent_rows:
        for instance in instances:
            instance.go_single()
    return model, calibration


def member_name(model: str, place: str) -> str:
    """By its place, not by a number: all nodes that follow a group have the same ring of names, whatever came first."""
    return f"{model}-{place}"


def hop_of(node: NodeConfig) -> str:
    """A new id each time, so that a node may stand before another model of its own."""
    name = node.name or re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:60]
    return f"{name}-{token_hex(3)}"


def _headers(config: ModelConfig) -> dict[str, str]:
    """Raises ModelError for a key that is not there."""
    if not config.upstream_api_key:
        return config.upstream_headers
    try:
        return with_key(config.upstream_headers, read_key(config.upstream_api_key, "upstream_api_key"))
    except ConfigError as error:
        raise ModelError(str(error)) from None


class UpstreamFleet:
    """Upstream servers, an instance each. `model`: what holds for all, as start_upstreams has it."""

    run = "upstream"

    def __init__(
        self,
        name: str,
        instances: list[RemoteInstance],
        model: UpstreamModel,
        calibration: Calibration,
        settings: RemoteSettings,
    ) -> None:
        self.signature = instances[0].model.signature
        self.calibration = calibration
        self.most_rows = model.max_batch
        self.hop = settings.hop
        self.may_retry: Callable[[], bool] = lambda: True
        """Whether the lane runs again what has failed."""
        self._name = name
        self._model = model
        self._settings = settings
        self._instances = {instance.name: instance for instance in instances}
        self.way = self._way()
        self._leaving: set[asyncio.Task[None]] = set()
        self._roster: Roster | None = None
        self._finder: Finder | None = None
        self._refresh_s = 0.0
        self._following: asyncio.Task[None] | None = None
        self._random = Random(token_bytes(8))

    def follow(self, finder: Finder, refresh_s: float) -> None:
        """Look again every so many seconds, from the time on that it is attached."""
        self._finder, self._refresh_s = finder, refresh_s

    def attach(self, roster: Roster) -> None:
        self._roster = roster
        for instance in self._instances.values():
            self._tell(instance, roster)
            if instance.up:
                roster.add_instance(instance)
            else:
                roster.instance_failed(instance, "it could not be used when the model was loaded")
        if self._finder is not None:
            self._following = asyncio.create_task(self._look_on(self._finder, roster), name=f"members-{self._name}")

    async def scale(self, count: int) -> None:
        raise ConfigError(f"model {self._name} runs on other servers: its path names them")

    def elsewhere_bytes(self) -> int:
        return 0

    async def stop(self) -> None:
        if self._following is not None:
            await end_all([self._following])
        if self._finder is not None:
            await self._finder.close()
        for instance in self._instances.values():
            self._let_go(instance)
        self.may_retry = _never
        await asyncio.gather(*(instance.stop() for instance in self._instances.values()), *self._leaving)

    def describe(self) -> str:
        places = ", ".join(instance.address.place for instance in self._instances.values())
        followed = f" ({self._finder.words}, looked at every {self._refresh_s:g} s)" if self._finder is not None else ""
        return f"on {places}{followed}"

    # Who comes and goes

    def _way(self) -> Way:
        return Way(inline=False, instances=len(self._instances), threads=0)

    def _tell(self, instance: RemoteInstance, roster: Roster) -> None:
        instance.on_lost = partial(roster.lose_instance, instance.name)
        instance.on_leaves = partial(roster.suspend_instance, instance.name)
        instance.on_up = partial(roster.add_instance, instance)
        instance.retries = self._retries

    def _let_go(self, instance: RemoteInstance) -> None:
        """Nothing that it meets any more matters; and they hold each other."""
        instance.on_lost = instance.on_leaves = instance.on_up = None
        instance.retries = _never

    def _retries(self) -> bool:
        """Another could run what fails on one: then none of those behind them does, and one budget holds for all."""
        return self.may_retry() and sum([instance.up for instance in self._instances.values()]) > 1

    async def _look_on(self, finder: Finder, roster: Roster) -> None:
        clock, trouble = asyncio.get_running_loop().time, ""
        members = Membership(self._instances, clock(), grace_s=finder.grace_s)
        while True:
            await asyncio.sleep(self._refresh_s * self._random.uniform(1.0 - JITTER, 1.0 + JITTER))
            try:
                found = {member_name(self._name, place): address for place, address in (await finder.look()).items()}
                why = "" if found else "nobody is there"
            except (OSError, ModelError) as error:
                found, why = {}, reason(error)
            if why and why != trouble:
                log.warning("model %s: %s cannot be found out, those known stay: %s", self._name, finder.words, why)
            elif trouble and not why:
                log.info("model %s: %s are known again", self._name, finder.words)
            trouble = why
            joining, leaving = members.looked(found, clock())
            for instance in joining:
                self._join(instance, found[instance], roster)
            for instance in leaving:
                self._leave(instance, roster)
            self.way = self._way()

    def _join(self, name: str, address: Address, roster: Roster) -> None:
        """It gets batches once it has shown that it serves the same model."""
        instance = RemoteInstance(name, address, self._settings)
        self._instances[name] = instance
        instance.start_lost(self._model)
        if not self.calibration.independent_rows:
            instance.go_single()
        self._tell(instance, roster)
        roster.instance_starts(instance)
        log.info("model %s: %s joins", self._name, name)

    def _leave(self, name: str, roster: Roster) -> None:
        """It gets no more; what runs there ends well."""
        instance = self._instances.pop(name)
        log.info("model %s: %s leaves", self._name, name)
        self._let_go(instance)
        roster.retire_instance(name)
        task = asyncio.create_task(instance.stop(), name=f"leave-{name}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


def _never() -> bool:
    return False
