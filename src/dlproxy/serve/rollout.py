"""Which versions share the requests of a model: builds traffic layers, follows versions that come and go, and watches canaries.

Held by serve/models.py. Not aware of: who wants what, how a canary's share is taken back.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from time import monotonic

from msgspec import Struct

from dlproxy.config import ConfigError
from dlproxy.message import FailureKind, InferenceError, Signature
from dlproxy.policy.canary import Judge, Seen
from dlproxy.policy.traffic import Splitter
from dlproxy.policy.wanted import Traffic
from dlproxy.serve.assemble import LoadedModel
from dlproxy.serve.traffic import Shadow, TrafficLayer, difference_between
from dlproxy.serve.trunk import TrunkLayer, joined
from dlproxy.service import Service
from dlproxy.telemetry.stats import ModelStats, Timings
from dlproxy.wire.catalog import Catalog, ServedModel

TICK_S = 1.0
MOST_TIMED = 4096  # answers of a tick whose latencies are looked at, the last ones
MODELS_FAULT = (FailureKind.MODEL_FAILED, FailureKind.UNAVAILABLE)
NO_TIME = (FailureKind.QUEUE_FULL, FailureKind.OVERLOADED, FailureKind.DEADLINE, FailureKind.LATE)

log = logging.getLogger(__name__)

OnWorse = Callable[[str, str, str], None]
"""Called with a model's name, the version that does worse, and why; again as long as that goes on."""


class DivertedModel(ServedModel):
    """The default version as protocols see it, but that `service` may send its requests to others."""

    def __init__(
        self, default: ServedModel, service: Service, signature: Signature, asked: Sequence[ServedModel], sticky: str
    ) -> None:
        """`asked`: all that a request may go to."""
        self._default = default
        self._asked = asked
        super().__init__(
            name=default.name,
            version=default.version,
            signature=signature,
            service=service,
            stats=default.stats,
            max_batch=default.max_batch,
            slo_s=default.slo_s,
            slo_s_by_level=default.slo_s_by_level,
            view=default.view,
            sticky=sticky,
        )

    @property
    def slo_s(self) -> float | None:
        """Follows what is changed in the default version."""
        return self._default.slo_s

    @slo_s.setter
    def slo_s(self, slo_s: float | None) -> None:
        self._default.slo_s = slo_s

    @property
    def slo_s_by_level(self) -> Sequence[float | None] | None:
        return self._default.slo_s_by_level

    @slo_s_by_level.setter
    def slo_s_by_level(self, slo_s_by_level: Sequence[float | None] | None) -> None:
        self._default.slo_s_by_level = slo_s_by_level

    @property
    def max_batch(self) -> int:
        """What all of them take, as it changes."""
        return min(served.max_batch for served in self._asked)

    @max_batch.setter
    def max_batch(self, max_batch: int) -> None:
        self._default.max_batch = max_batch


class _Meter:
    """Reads what one version did since the last time, less what its result cache answered: the cache of a version with a small
    share is colder, which is not the version's fault.
    """

    def __init__(self, stats: ModelStats) -> None:
        self.stats = stats
        self._timings = Timings(MOST_TIMED)
        stats.readers.append(self._timings)
        self._answered = self._failed = self._refused = 0
        self.read()

    def read(self) -> Seen:
        stats = self.stats
        stats.settle()
        answered = stats.computed
        failed, refused = (sum([stats.failures[kind] for kind in kinds]) for kinds in (MODELS_FAULT, NO_TIME))
        seen = Seen(answered - self._answered, failed - self._failed, refused - self._refused, list(self._timings.newest_s))
        self._answered, self._failed, self._refused = answered, failed, refused
        self._timings.newest_s.clear()
        return seen

    def end(self) -> None:
        self.stats.readers.remove(self._timings)


class _Rollout(Struct, eq=False):
    """What is wanted of one model, and what was made of it. `versions`: those that take part, the default
    one first; `problems`: why others do not.
    """

    traffic: Traffic
    versions: list[LoadedModel] = []
    problems: list[str] = []
    trunk: ServedModel | None = None
    splitter: Splitter | None = None
    meters: dict[LoadedModel, _Meter] = {}
    judges: dict[tuple[LoadedModel, LoadedModel, float], Judge] = {}
    """By the default version, the other one and its share: each has a judge of its own, and whatever changes needs another."""


class Rollouts:
    """`loaded`: the versions that are up, as they come and go with the catalog."""

    def __init__(
        self,
        catalog: Catalog,
        loaded: Mapping[tuple[str, str], LoadedModel],
        on_worse: OnWorse,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._clock = clock
        self._catalog = catalog
        self._loaded = loaded
        self._on_worse = on_worse
        self._rollouts: dict[str, _Rollout] = {}
        self._timer: asyncio.TimerHandle | None = None
        catalog.subscribe(self._follow)

    def route(self, name: str, default: str, labels: Mapping[str, str], traffic: Traffic) -> None:
        """Who answers from now on. What versions would get that are not up, the default one gets.

        Raises InferenceError if the default version or that of a label is not up, and then nothing has changed; ConfigError for
        versions that cannot share requests, and then all else holds.
        """
        rollout = self._rollouts.pop(name, None)  # which is not to follow this
        try:
            self._catalog.route(name, default, labels)
        except InferenceError:
            if rollout is not None:
                self._rollouts[name] = rollout
            raise
        if rollout is None:
            rollout = _Rollout(traffic)
        elif rollout.traffic != traffic:
            if traffic.trunk != rollout.traffic.trunk:
                rollout.trunk = None
            rollout.traffic, rollout.versions = traffic, []
        self._rollouts[name] = rollout
        self._renew(name, rollout)
        self._follow()
        if rollout.problems:
            raise ConfigError("; ".join(rollout.problems))

    def _follow(self) -> None:
        """Split anew what versions have come to, gone from, or changed in."""
        for name, rollout in list(self._rollouts.items()):
            known = rollout.problems
            try:
                self._renew(name, rollout)
            except InferenceError:  # the whole model has gone
                self._rollouts.pop(name, None)
                self._measure(rollout, [])
            for problem in rollout.problems:
                if problem not in known:
                    log.error("%s", problem)
        watched = any(rollout.judges for rollout in self._rollouts.values())
        if watched and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._look)
        elif not watched and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _renew(self, name: str, rollout: _Rollout) -> None:
        """Raises InferenceError if the model is not served at all."""
        default, route = self._loaded[name, self._catalog.get(name).version], self._catalog.route_of(name)
        rollout.problems = problems = []
        trunk = self._trunk(rollout, default.served) if rollout.traffic.trunk else None
        versions = [default]
        for version in _others(rollout.traffic, default.served.version):
            other = self._loaded.get((name, version))
            problem = "" if other is None else _why_apart(default.served, other.served, rollout.traffic)
            if problem:
                problems.append(problem)
            elif other is not None:
                versions.append(other)
        diverts = len(versions) > 1 or trunk is not None
        if (versions, trunk) == (rollout.versions, rollout.trunk) and diverts == (route.diverted is not None):
            return
        rollout.versions, rollout.trunk = versions, trunk
        self._measure(rollout, versions)
        self._catalog.route(name, route.default, route.labels, self._diverted(rollout) if diverts else None)

    def _trunk(self, rollout: _Rollout, head: ServedModel) -> ServedModel | None:
        """None, and a problem, if there is none that fits."""
        name, problems = rollout.traffic.trunk, rollout.problems
        below = self._rollouts.get(name)
        if name == head.name or (below is not None and below.traffic.trunk):
            problems.append(f"model '{head.name}' cannot have the trunk '{name}': a trunk has none itself")
            return None
        try:
            trunk = self._catalog.asked(name)
            joined(trunk, head)
        except InferenceError as error:
            if rollout.trunk is None:
                problems.append(f"model '{head.name}' has no trunk: {error}")
            return rollout.trunk  # one that goes says so itself
        except ConfigError as error:
            problems.append(str(error))
            return None
        return trunk

    def _diverted(self, rollout: _Rollout) -> ServedModel:
        default, trunk, by = rollout.versions[0].served, rollout.trunk, rollout.traffic.by
        taking_part = [model.served for model in rollout.versions]
        service: Service = _layer(rollout)
        signature = default.signature
        if trunk is not None:
            taking_part.append(trunk)
            service = chained = TrunkLayer(trunk, default, service, self._clock)
            signature = chained.signature
        sticky = by if by.startswith("header:") else default.sticky
        return DivertedModel(default, service, signature, taking_part, sticky)

    def _measure(self, rollout: _Rollout, versions: list[LoadedModel]) -> None:
        """Judge what is guarded among these."""
        traffic, default = rollout.traffic, versions[:1]
        judged = [
            (default[0], other, traffic.shares[other.served.version])
            for other in versions[1:]
            if traffic.guarded and traffic.shares.get(other.served.version)
        ]
        rollout.judges = {key: rollout.judges.get(key) or Judge() for key in judged}
        metered = dict.fromkeys(model for default, other, _ in judged for model in (default, other))
        for model, meter in rollout.meters.items():
            if model not in metered:
                meter.end()
        rollout.meters = {model: rollout.meters.get(model) or _Meter(model.served.stats) for model in metered}

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._look)
        for name, rollout in list(self._rollouts.items()):
            seen = {model: meter.read() for model, meter in rollout.meters.items()}
            for key, judge in list(rollout.judges.items()):
                default, other, _ = key
                reason = judge.look(seen[default], seen[other])
                if reason and key in rollout.judges:
                    self._on_worse(name, other.served.version, reason)


def _others(traffic: Traffic, default: str) -> list[str]:
    """The versions beside the default one that may be asked."""
    shared = [version for version, share in traffic.shares.items() if share]
    return [
        version
        for version in dict.fromkeys((*shared, *traffic.tenants.values(), traffic.shadow))
        if version not in ("", default)
    ]


def _layer(rollout: _Rollout) -> TrafficLayer:
    traffic, before = rollout.traffic, rollout.splitter
    served = {model.served.version: model for model in rollout.versions}
    default = rollout.versions[0].served
    rollout.splitter = splitter = Splitter(default.name, default.version, traffic, served)
    if before is not None:
        splitter.at = before.at
    shadowing = served.get(traffic.shadow)
    shadow = None if shadowing is None else Shadow(shadowing.served, shadowing.service)
    services = {version: model.served.service if rollout.trunk is None else model.service for version, model in served.items()}
    return TrafficLayer(splitter, services, shadow)


def _why_apart(default: ServedModel, other: ServedModel, traffic: Traffic) -> str:
    """Why both cannot share requests so; empty if they can."""
    name = default.name
    difference = difference_between(default.signature, other.signature)
    if difference:
        return f"model '{name}': version {other.version} cannot answer what is asked of version {default.version}: {difference}"
    if traffic.by.startswith("header:") and default.sticky not in ("", traffic.by):
        return f"model '{name}': splitting by {traffic.by} needs the same 'sticky', which is {default.sticky}"
    return ""
