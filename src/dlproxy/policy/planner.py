"""What is done next, so that what is served becomes what is wanted. Pure and without memory: it looks at both, each time anew.

Called by fleet/control.py after whatever changed, and by lab/simulate. The rules are those of TensorFlow Serving's manager
(what serves goes only when something wanted is up in its place) with a budget of memory. Not aware of: how anything is done.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from math import inf
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from dlproxy.config import ModelConfig
from dlproxy.config.table import knobs
from dlproxy.config.values import nearest
from dlproxy.policy.stages import Key as Key
from dlproxy.policy.stages import Stage, circle, meant, stages_of, with_stages
from dlproxy.policy.wanted import Traffic, Wanted, WantedModel, WantedVersion, number_of

Phase = Literal["loading", "serving", "changing", "leaving"]  # changing: it serves, and is being adjusted or replaced

FIRST_RETRY_S = 1.0  # doubled with every attempt that fails
LONGEST_RETRY_S = 300.0
ROOM_AGAIN_S = 0.05  # how soon to look whether a model that stands in the way has finished its work


class Version(Struct, frozen=True):
    """One version as it is. `made_of`: what it is now; `loaded_as`: what it was when it was loaded. `used_at`: of its last
    request; `busy`: it has some now.
    """

    phase: Phase
    made_of: WantedVersion
    size_bytes: int = 0
    used_at: float = 0.0
    busy: bool = False
    loaded_as: WantedVersion | None = None


class FailedLoad(Struct, frozen=True):
    """The last of so many attempts in a row to make a version this. `for_good`: it would fail again; `blocked`: it is a
    pipeline, and by a model that it asks, which it does not outlast.
    """

    made_of: WantedVersion
    reason: str
    failed_at: float
    times: int = 1
    for_good: bool = False
    blocked: bool = False

    @property
    def again_at(self) -> float:
        """When to try once more."""
        return (
            inf
            if self.for_good or self.blocked
            else self.failed_at + min(FIRST_RETRY_S * 2.0 ** (self.times - 1), LONGEST_RETRY_S)
        )


class Routes(Struct, frozen=True):
    """Who gets which version: `default`, `labels` of those that are up, `traffic` as wanted. What versions would get that are
    not up, the default one gets meanwhile, and nobody else's version changes for that.
    """

    default: str
    labels: Mapping[str, str]
    traffic: Traffic


class Actual(Struct, frozen=True):
    """What is the case. `demanded`: models that requests wait for, the longest wait first. `sizes`: what versions that are
    not loaded would take of the memory, in bytes, as far as is known; `passing`: what must be free besides while they are
    loaded. `memory_bytes`: what all of them may take.
    """

    versions: Mapping[Key, Version] = {}
    failed: Mapping[Key, FailedLoad] = {}
    routes: Mapping[str, Routes] = {}
    demanded: Sequence[str] = ()
    sizes: Mapping[Key, int] = {}
    passing: Mapping[Key, int] = {}
    memory_bytes: float = inf


class VersionState(Struct, frozen=True):
    """How far one version is. `phase`: "wanted", "loading", "serving", "changing", "leaving" or "failed"; `reason`: why it
    failed, also the last attempt to change what serves, or what it waits for. `on_demand`: it is loaded when it is asked for.
    """

    name: str
    version: str
    phase: str
    reason: str = ""
    default: bool = False
    labels: tuple[str, ...] = ()
    share: float = 0.0
    on_demand: bool = False
    size_bytes: int = 0


class Load(Struct, frozen=True):
    """Bring it up beside what serves; `replaces`: the same version made of something else goes when it is up."""

    key: Key
    wanted: WantedVersion
    replaces: bool = False


class Adjust(Struct, frozen=True):
    """Change knobs, or the number of instances, of what serves."""

    key: Key
    wanted: WantedVersion


class Unload(Struct, frozen=True):
    key: Key
    reason: str


class Route(Struct, frozen=True):
    name: str
    routes: Routes


class Refuse(Struct, frozen=True):
    """It cannot be loaded now, or `for_good`, and need not be tried. `blocked`: as in FailedLoad."""

    key: Key
    wanted: WantedVersion
    reason: str
    for_good: bool = True
    blocked: bool = False


class Unblock(Struct, frozen=True):
    """The models that it was refused for are up now, or on their way."""

    key: Key


Action: TypeAlias = Load | Adjust | Unload | Route | Refuse | Unblock


class Plan(Struct, frozen=True):
    """What to start now, and when to look again if nothing happens before."""

    actions: list[Action]
    again_at: float = inf


def plan(wanted: Wanted, actual: Actual, now: float) -> Plan:
    """Actions may be carried out side by side. At most one version is loaded at a time: each measures itself undisturbed."""
    leavers = list(_leavers(wanted, actual))
    actions: list[Action] = [*_routes(wanted, actual), *leavers]
    if leavers:
        leaving = {each.key: msgspec.structs.replace(actual.versions[each.key], phase="leaving") for each in leavers}
        actual = msgspec.structs.replace(actual, versions={**actual.versions, **leaving})
    wanted, actual = _for_pipelines(wanted, actual)
    again_at = inf
    idle = not any(version.phase in ("loading", "changing") for version in actual.versions.values())
    for key, version in _in_order(wanted, actual):
        there, failed = actual.versions.get(key), actual.failed.get(key)
        if there is not None and (there.phase != "serving" or there.made_of == version):
            continue
        if failed is not None and failed.made_of == version and not failed.blocked and now < failed.again_at:
            again_at = min(again_at, failed.again_at)
            continue
        if there is not None and cost(there.made_of, version, there.loaded_as) != "reload":
            actions.append(Adjust(key, version))
            continue
        told, ready = _of_stages(key, version, wanted, actual, now)
        actions += told
        if not ready or not idle:
            continue
        step = _start(key, version, wanted, actual)
        actions += step
        if not any(isinstance(action, Refuse) for action in step):  # the next one only when this one is up
            idle = False
            again_at = min(again_at, inf if step else now + ROOM_AGAIN_S)
    return Plan(actions, again_at)


def cost(
    before: WantedVersion, after: WantedVersion, loaded_as: WantedVersion | None = None
) -> Literal["nothing", "live", "reload"]:
    """Of making one of the other. Its knobs say so; larger batches than it was loaded for are a reload."""
    if after.config.max_batch > (loaded_as or before).config.max_batch:
        return "reload"
    if before.stamp != after.stamp or before.problem != after.problem:
        return "reload"
    changed = {name for name in ModelConfig.__struct_fields__ if getattr(before.config, name) != getattr(after.config, name)}
    count_before, count = count_of(before), count_of(after)
    if changed - _changeable() or (count_before != count and count is None):  # as many as pay is found out by loading it
        return "reload"
    return "live" if changed or count_before != count else "nothing"


def count_of(version: WantedVersion) -> int | None:
    """How many instances are wanted; None: as many as pay."""
    return version.config.instances or None if version.instances is None else version.instances


def newest(versions: Collection[str]) -> str:
    """The one with the largest number; empty if there is none."""
    return max(versions, key=number_of, default="")


def _in_order(wanted: Wanted, actual: Actual) -> list[tuple[Key, WantedVersion]]:
    """Every version that is to be up now: what requests wait for first, then what has not failed; older versions first.

    Of a model that is loaded on demand, all of them while one is there or is asked by a pipeline that is.
    """
    there = [name for (name, _), each in actual.versions.items() if each.phase != "leaving"]
    asked = {name: place for place, name in enumerate(actual.demanded)}
    found: list[tuple[tuple[int, bool, int], Key, WantedVersion]] = []
    for name in to_be_up(wanted, [*actual.demanded, *there]):
        for version, made_of in wanted.models[name].versions.items():
            key = name, version
            urgency = asked.get(name, len(asked)), key in actual.failed, number_of(version)
            found.append((urgency, key, made_of))
    return [(key, made_of) for _, key, made_of in sorted(found, key=lambda entry: entry[0])]


def to_be_up(wanted: Wanted, needed: Collection[str]) -> list[str]:
    """Models that are wanted at once, or are `needed`, for they are asked for or there; and those that they ask."""
    return with_stages([name for name, model in wanted.models.items() if not model.on_demand or name in needed], wanted)


def _for_pipelines(wanted: Wanted, actual: Actual) -> tuple[Wanted, Actual]:
    """What is wanted and used for the sake of pipelines, as if it were for its own."""
    pipelines = [name for name, model in wanted.models.items() if _has_pipeline(model)]
    if not pipelines:
        return wanted, actual
    pinned = with_stages([name for name in pipelines if not wanted.models[name].on_demand], wanted)
    models = {name: msgspec.structs.replace(wanted.models[name], on_demand=False) for name in pinned}
    versions = dict(actual.versions)
    for (name, _), one in actual.versions.items():
        busy = one.busy or one.phase in ("loading", "changing")
        stages = with_stages([name], wanted)[:-1] if name in pipelines else ()  # it comes last itself
        for key in [(stage, version) for stage in stages for version in wanted.models[stage].versions]:
            if (each := versions.get(key)) is None:
                continue
            used_at = max(each.used_at, one.used_at)
            versions[key] = msgspec.structs.replace(each, used_at=used_at, busy=each.busy or busy)
    return (
        msgspec.structs.replace(wanted, models={**wanted.models, **models}),
        msgspec.structs.replace(actual, versions=versions, demanded=with_stages(actual.demanded, wanted)),
    )


def _has_pipeline(model: WantedModel) -> bool:
    return any(stages_of(version.config) for version in model.versions.values())


def _of_stages(key: Key, version: WantedVersion, wanted: Wanted, actual: Actual, now: float) -> tuple[list[Action], bool]:
    """What is to be said of the models that a pipeline asks, and whether it can be loaded as far as they go."""
    failed = actual.failed.get(key)
    said = failed.reason if failed is not None and failed.blocked and failed.made_of == version else ""
    reason = "" if version.problem else _blocking(key, version, wanted, actual, now)
    if (reason or "") == said:
        return [], reason == ""
    if not reason:
        return [Unblock(key)], reason == ""
    return [Refuse(key, version, reason, for_good=False, blocked=True)], False


def _blocking(key: Key, version: WantedVersion, wanted: Wanted, actual: Actual, now: float) -> str | None:
    """Why a pipeline's models cannot be asked; empty if they can; None while some are on their way."""
    stages = stages_of(version.config)
    if stages and (waits := circle(key, wanted)):
        return waits
    found = [_missing(stage, key[0], wanted, actual, now) for stage in stages]
    return next(filter(None, found), None if None in found else "")


def _missing(stage: Stage, pipeline: str, wanted: Wanted, actual: Actual, now: float) -> str | None:
    """The same of one of them."""
    others = [name for name in wanted.models if name != pipeline]
    keys = meant(stage, wanted)
    if stage.model not in wanted.models:
        hint = nearest(stage.model, others) if others else "there is no other model"
        return f"{stage} is not served here; {hint}"
    if not keys:
        model = wanted.models[stage.model]
        return f"{stage} is not served here; {nearest(stage.version, [*model.versions, *model.labels])}"
    if any(_is_coming(key, wanted.models[key[0]].versions[key[1]], actual, now) for key in keys):
        return None
    if any(key in actual.versions and actual.versions[key].phase in ("serving", "changing") for key in keys):
        return ""
    return f"{stage} is not loaded: {actual.failed[keys[-1]].reason}"


def _is_coming(key: Key, version: WantedVersion, actual: Actual, now: float) -> bool:
    """It becomes what is wanted, or will be tried to."""
    there, failed = actual.versions.get(key), actual.failed.get(key)
    if there is not None and there.made_of == version:
        return there.phase in ("loading", "leaving")
    return failed is None or failed.made_of != version or now >= failed.again_at


def _start(key: Key, version: WantedVersion, wanted: Wanted, actual: Actual) -> list[Action]:
    """Load it; or make room for it first; or nothing yet, while what stands in the way has work; or say why it never fits.

    What it needs in passing is made room for by what is idle, and nothing is refused for it.
    """
    if version.problem:
        return [Refuse(key, version, version.problem)]
    there = actual.versions.get(key)
    size = actual.sizes.get(key, there.size_bytes if there else 0)
    if size > actual.memory_bytes:
        return [
            Refuse(key, version, f"it takes about {_mib(size)}, more than the memory budget of {_mib(actual.memory_bytes)}")
        ]
    missing = sum(each.size_bytes for each in actual.versions.values()) + size - actual.memory_bytes
    passing = actual.passing.get(key, 0)
    load = Load(key, version, replaces=there is not None)
    if missing + passing <= 0:
        return [load]
    leaving = [each.size_bytes for each in actual.versions.values() if each.phase == "leaving"]
    missing -= sum(leaving)
    gone: list[Action] = []
    for name in _given_up_first(key, wanted, actual):
        if missing + passing <= 0:
            break
        for other in _versions(name, actual):
            gone.append(Unload(other, f"its memory is needed for model '{key[0]}'"))
            missing -= actual.versions[other].size_bytes
    if missing <= 0:  # the load follows when they are gone
        return gone or ([] if leaving else [load])
    if any(_makes_room_later(other, key, wanted, actual) for other in actual.versions):
        return []
    held = sum(each.size_bytes for each in actual.versions.values())
    reason = f"it takes about {_mib(size)}, and {_mib(held)} of {_mib(actual.memory_bytes)} are in use"
    return [Refuse(key, version, reason, for_good=False)]


def _given_up_first(key: Key, wanted: Wanted, actual: Actual) -> list[str]:
    """Models that may be unloaded for it, that which was not used for longest first; no stage before its pipeline."""
    used_at: dict[str, float] = {}
    for other, each in actual.versions.items():
        idle = each.phase == "serving" and not each.busy and _may_go(other, key, wanted) and other[0] not in actual.demanded
        used_at[other[0]] = max(used_at.get(other[0], -inf), each.used_at if idle else inf)
    unused = [name for name in used_at if used_at[name] < inf]
    return sorted(unused, key=lambda name: (used_at[name], not _has_pipeline(wanted.models[name])))


def _makes_room_later(other: Key, key: Key, wanted: Wanted, actual: Actual) -> bool:
    """It goes already; or it may, once it has come up, has answered those who wait for it, and has no work left."""
    each = actual.versions[other]
    occupied = each.phase != "serving" or each.busy or other[0] in actual.demanded
    return each.phase == "leaving" or (occupied and _may_go(other, key, wanted))


def _versions(name: str, actual: Actual) -> list[Key]:
    return [key for key in actual.versions if key[0] == name]


def _may_go(other: Key, key: Key, wanted: Wanted) -> bool:
    model = wanted.models.get(other[0])
    return model is not None and model.on_demand and other[0] != key[0]


def _leavers(wanted: Wanted, actual: Actual) -> Iterator[Unload]:
    """What is not wanted any more, once something wanted serves in its place, or the whole model is not wanted."""
    for (name, version), each in actual.versions.items():
        model = wanted.models.get(name)
        if each.phase != "serving" or (model is not None and version in model.versions):
            continue
        if model is None or not model.versions or _routed_past(name, version, model, actual):
            yield Unload((name, version), "it is not wanted any more")


def _routed_past(name: str, version: str, model: WantedModel, actual: Actual) -> bool:
    """A wanted version serves, and requests go to it already."""
    routes = actual.routes.get(name)
    return bool(_up(name, model, actual)) and routes is not None and routes.default != version


def _routes(wanted: Wanted, actual: Actual) -> Iterator[Route]:
    for name in dict.fromkeys(name for name, _ in actual.versions):
        model = wanted.models.get(name)
        up = _up(name, model, actual) if model is not None else []
        if model is None or not up:
            continue
        default = model.default if model.default in up else newest(up)
        traffic = model.traffic
        routes = Routes(
            default=default,
            labels={label: version for label, version in model.labels.items() if version in up},
            traffic=msgspec.structs.replace(
                traffic,
                shares={version: share for version, share in traffic.shares.items() if version != default},
                shadow=traffic.shadow if traffic.shadow != default else "",
            ),
        )
        if actual.routes.get(name) != routes:
            yield Route(name, routes)


def _up(name: str, model: WantedModel, actual: Actual) -> list[str]:
    """Versions that are wanted and serve."""
    there = actual.versions
    return [v for v in model.versions if (name, v) in there and there[name, v].phase in ("serving", "changing")]


@cache
def _changeable() -> frozenset[str]:
    """Knobs that change while a model serves; the number of instances is one. How one that serves began does not matter."""
    return frozenset(name for name, knob in knobs(ModelConfig).items() if knob.traits.cost != "reload" or name == "start")


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"
