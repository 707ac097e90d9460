"""Instances of one model in actors of a Ray cluster: what each asks of its node, and what is done when a node goes.

Called by fleet/start.py. Not aware of: lanes, requests, how an actor is reached.
"""

import asyncio
import logging
import os

import msgspec

from dlproxy.config import ModelConfig
from dlproxy.config.paths import is_file
from dlproxy.config.secrets import ENV, hold
from dlproxy.fleet.names import number_of
from dlproxy.fleet.supervised import SupervisedFleet, start_all
from dlproxy.fleet.supervisor import Supervisor
from dlproxy.fleet.warm_model import how_to_warm_up, options
from dlproxy.instance.integrity import Trust
from dlproxy.instance.integrity.files import is_secret
from dlproxy.instance.process.instance import WorkerSettings
from dlproxy.instance.ray.cluster import Cluster, depart, enter
from dlproxy.instance.ray.instance import RayInstance
from dlproxy.instance.ray.messages import Demand
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.content import Content
from dlproxy.instance.runtime.devices import CPU
from dlproxy.instance.runtime.formats import format_of
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.instance.trial import Way
from dlproxy.instance.warmup import Calibration
from dlproxy.message import Signature, text_of

TOGETHER_S = 0.05  # in which all instances of a node that drains have heard of it
AGAIN_S = 10.0  # after a replacement that did not start

log = logging.getLogger(__name__)


async def start_on_ray(name: str, config: ModelConfig, trust: Trust) -> "RayFleet":
    """As many instances as the configuration wants. Raises ModelError."""
    if trust.key_variable:
        hold(ENV + trust.key_variable)
    config = _found_anywhere(config)
    if await asyncio.to_thread(is_secret, config.path):
        raise ModelError(
            f"model {name}: encrypted models do not run on Ray, where their key would cross the network in the clear"
        )
    trust = msgspec.structs.replace(trust, master_key=b"", key_variable="")
    finds_device = (await asyncio.to_thread(format_of, config.path, pickle=trust.pickle)).finds_device
    count = config.instances or (1 if config.autoscale == "off" else max(config.min_instances, 1))
    demand = _demand(name, config, count)
    threads = config.threads or max(int(config.ray_cpus), 1)
    device = CPU if config.device == "auto" and not config.ray_gpus and not finds_device else config.device
    spec = PythonSpec(
        "dlproxy.instance.runtime.formats:open_runtime",
        {"path": config.path, **options(config, threads, "auto" if finds_device else device)},
    )
    settings = WorkerSettings(
        warm_up=how_to_warm_up(config),
        start_timeout_s=config.load_timeout_s,
        batch_timeout_s=config.batch_timeout_s,
        content=Content(config.path),
        trust=trust,
    )
    cluster = enter(config.ray_address)
    leaving: asyncio.Queue[str] = asyncio.Queue()

    def make(instance: str) -> RayInstance:
        place = msgspec.structs.replace(demand, bundle=number_of(instance)) if demand.group else demand
        made = RayInstance(instance, spec, settings, cluster=cluster, demand=place)
        made.on_leaving = lambda reason: _told(leaving, made.name, reason)
        return made

    try:
        supervisor, signature, calibration = await start_all(name, count, make)
    except BaseException:
        if demand.group:
            cluster.disband(demand.group)
        depart(cluster)
        raise
    way = Way(inline=False, instances=count, threads=0)
    return RayFleet(supervisor, signature, calibration, way, cluster=cluster, demand=demand, leaving=leaving)


def _found_anywhere(config: ModelConfig) -> ModelConfig:
    """With absolute paths: an actor has another folder, and they are the same on every node."""
    path = os.path.abspath(config.path) if is_file(config.path) else config.path
    samples = os.path.abspath(config.samples) if config.samples else ""
    return msgspec.structs.replace(config, path=path, samples=samples)


def _demand(name: str, config: ModelConfig, count: int) -> Demand:
    """Raises ModelError for a group that would have to grow."""
    strict = config.ray_placement.startswith("strict")
    if strict and config.autoscale != "off":
        raise ModelError(
            f"model {name}: ray_placement = {config.ray_placement!r} is for a fixed number of instances, as Ray's placement "
            "groups do not grow: leave autoscale off, or take 'spread' or 'pack'"
        )
    return Demand(
        cpus=config.ray_cpus,
        gpus=config.ray_gpus,
        resources=config.ray_resources,
        strategy={"spread": "SPREAD", "pack": "DEFAULT"}.get(
            config.ray_placement, config.ray_placement.upper().replace("-", "_")
        ),
        group=f"{name}-{config.version}-{os.getpid()}-{id(config):x}" if strict else "",
        bundles=count if strict else 0,
    )


def _told(leaving: "asyncio.Queue[str]", instance: str, reason: str) -> None:
    log.warning("%s: %s: another one is started in its place", instance, reason)
    leaving.put_nowait(instance)


class RayFleet(SupervisedFleet):
    """An actor each. Those whose node drains are replaced before they are stopped."""

    def __init__(
        self,
        supervisor: Supervisor,
        signature: Signature,
        calibration: Calibration,
        way: Way,
        *,
        cluster: Cluster,
        demand: Demand,
        leaving: "asyncio.Queue[str]",
    ) -> None:
        super().__init__("ray", supervisor, signature, calibration, way)
        self._cluster = cluster
        self._demand = demand
        self._leaving = leaving
        self._replacing: asyncio.Task[None] | None = None
        if not demand.group:  # whose places are those that it has; Ray moves them when the node is gone
            self._replacing = asyncio.get_running_loop().create_task(self._replace(), name="dlproxy-ray-drain")

    def room(self) -> int:
        """Instances for which there are nodes now."""
        return self._cluster.room(self._demand)

    async def scale(self, count: int) -> None:
        if self._demand.group and count > self._demand.bundles:
            raise ModelError(
                f"a placement group of {self._demand.bundles} instances does not grow; use ray_placement = 'spread'"
            )
        await super().scale(count)

    async def stop(self) -> None:
        if self._replacing is not None:
            self._replacing.cancel()
        try:
            await super().stop()
        finally:
            if self._demand.group:
                self._cluster.disband(self._demand.group)
            if depart(self._cluster):
                await self._cluster.left()

    def describe(self) -> str:
        count, hosts = len(self._supervisor.instances), sorted({_host(instance) for instance in self._supervisor.instances})
        shown = ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")
        return f"on Ray, {count} instance{'s' * (count > 1)} on {shown}"

    async def _replace(self) -> None:
        while True:
            names = {await self._leaving.get()}
            await asyncio.sleep(TOGETHER_S)
            while not self._leaving.empty():
                names.add(self._leaving.get_nowait())
            try:
                await self._supervisor.replace(sorted(names))
            except ModelError as error:
                log.error("%s: no other could be started before the node goes: %s", ", ".join(sorted(names)), text_of(error))
                await asyncio.sleep(AGAIN_S)
                for name in names:
                    self._leaving.put_nowait(name)


def _host(instance: object) -> str:
    address = getattr(instance, "address", None)
    return "?" if address is None else address.host
