"""What operators do to a model that is wanted: each function makes another WantedModel of one. Pure.

Called, through `Control.change`, by the control port, the inference port's repository routes, and repositories' files. All
raise ConfigError for what makes no sense. Not aware of: what is up.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import msgspec

from dlproxy.config import ConfigError, ModelConfig, model_of
from dlproxy.config.reading import with_pins
from dlproxy.config.table import knobs, tuned_knobs
from dlproxy.config.values import nearest
from dlproxy.policy.planner import newest
from dlproxy.policy.wanted import Traffic, WantedModel, WantedVersion

STABLE = "stable"  # the label that follows the default version once it is set

T = TypeVar("T")


def with_versions(before: WantedModel | None, versions: Mapping[str, WantedVersion], *, on_demand: bool = False) -> WantedModel:
    """These versions from now on. What operators said of versions that stay is kept; the rest of it goes."""
    if before is None:
        return WantedModel(versions, on_demand=on_demand)
    kept = {
        version: msgspec.structs.replace(wanted, instances=before.versions[version].instances)
        if version in before.versions and wanted.instances is None
        else wanted
        for version, wanted in versions.items()
    }
    traffic = before.traffic
    return msgspec.structs.replace(
        before,
        versions=kept,
        on_demand=on_demand,
        default=before.default if before.default in kept else "",
        labels={label: version for label, version in before.labels.items() if version in kept},
        traffic=msgspec.structs.replace(
            traffic,
            shares=_of(kept, traffic.shares),
            tenants={tenant: version for tenant, version in traffic.tenants.items() if version in kept},
            shadow=traffic.shadow if traffic.shadow in kept else "",
        ),
    )


def with_version(before: WantedModel | None, version: str, wanted: WantedVersion) -> WantedModel:
    """This version too, or in the place of the one with its number."""
    before = before or WantedModel()
    return msgspec.structs.replace(before, versions={**before.versions, version: wanted})


def without_version(before: WantedModel, version: str) -> WantedModel | None:
    """None if that was its last one."""
    _known(before, version)
    left = {other: wanted for other, wanted in before.versions.items() if other != version}
    return with_versions(before, left, on_demand=before.on_demand) if left else None


def labelled(before: WantedModel, label: str, version: str) -> WantedModel:
    """The label stands for this version; empty: for none."""
    if version:
        _known(before, version)
    elif label not in before.labels:
        raise ConfigError(f"there is no label '{label}'; there are: {', '.join(before.labels) or 'none'}")
    labels = {other: to for other, to in before.labels.items() if other != label}
    return msgspec.structs.replace(before, labels={**labels, label: version} if version else labels)


def with_share(before: WantedModel, version: str, share: float, *, by: str = "", guarded: bool = True) -> WantedModel:
    """So much (0 to 1) of the requests that name no version go to this one; the default version stays what it is.

    The first canary of a model pins its default to the newest of the other versions. 0 ends the share.
    """
    _known(before, version)
    default = before.default or newest([other for other in before.versions if other != version])
    if version == default or not default:
        raise ConfigError(f"version {version} answers all requests that name none already: a share is for another version")
    shares = {other: part for other, part in before.traffic.shares.items() if other != version}
    if share:
        shares[version] = share
    traffic = msgspec.structs.replace(before.traffic, shares=shares, by=by, guarded=guarded and bool(shares))
    return msgspec.structs.replace(before, default=default, traffic=traffic)


def with_shadow(before: WantedModel, version: str) -> WantedModel:
    """This version is asked too, and its answers are compared and dropped; empty: none is."""
    default = before.default
    if version:
        _known(before, version)
        default = default or newest([other for other in before.versions if other != version])
    return msgspec.structs.replace(before, default=default, traffic=msgspec.structs.replace(before.traffic, shadow=version))


def with_tenant(before: WantedModel, tenant: str, version: str) -> WantedModel:
    """The tenant's requests that name no version get this one; empty: what everybody gets."""
    tenants = {other: to for other, to in before.traffic.tenants.items() if other != tenant}
    default = before.default
    if version:
        _known(before, version)
        tenants[tenant] = version
        default = default or newest([other for other in before.versions if other != version])
    elif tenant not in before.traffic.tenants:
        known = ", ".join(before.traffic.tenants) or "none"
        raise ConfigError(f"tenant '{tenant}' has no version of its own; there are: {known}")
    return msgspec.structs.replace(before, default=default, traffic=msgspec.structs.replace(before.traffic, tenants=tenants))


def with_trunk(before: WantedModel, trunk: str) -> WantedModel:
    """Another model computes what these versions take, for all of them together; empty: none does."""
    return msgspec.structs.replace(before, traffic=msgspec.structs.replace(before.traffic, trunk=trunk))


def promoted(before: WantedModel, version: str = "") -> WantedModel:
    """This version (empty: the one that has a share) answers the requests that name none; nobody has a share any more."""
    if not version:
        candidates = list(before.traffic.shares) or ([before.traffic.shadow] if before.traffic.shadow else [])
        if len(candidates) != 1:
            raise ConfigError(f"say which version to promote; there are: {', '.join(before.versions)}")
        version = candidates[0]
    _known(before, version)
    traffic = msgspec.structs.replace(
        before.traffic, shares={}, guarded=False, shadow="" if before.traffic.shadow == version else before.traffic.shadow
    )
    labels = {**before.labels, STABLE: version} if STABLE in before.labels else before.labels
    return msgspec.structs.replace(before, default=version, traffic=traffic, labels=labels)


def rolled_back(before: WantedModel) -> WantedModel:
    """What stood before the last change of versions, default or traffic. A share that is being tried is taken back first."""
    if before.traffic.shares or before.traffic.shadow:
        traffic = Traffic(tenants=before.traffic.tenants, trunk=before.traffic.trunk)
        return msgspec.structs.replace(before, traffic=traffic)
    if before.previous is None:
        raise ConfigError("there is nothing to go back to: its versions and its default have not changed")
    return before.previous


def without_share(before: WantedModel, version: str) -> WantedModel:
    """Nobody is sent to this version any more but who asks for it."""
    shares = {other: share for other, share in before.traffic.shares.items() if other != version}
    return msgspec.structs.replace(before, traffic=msgspec.structs.replace(before.traffic, shares=shares))


def differing(before: WantedModel | None, after: WantedModel) -> set[str]:
    """The versions that are not wanted alike in both."""
    old = before.versions if before is not None else {}
    return {version for version in {*old, *after.versions} if old.get(version) != after.versions.get(version)}


def undone(now: WantedModel | None, before: WantedModel | None, after: WantedModel | None) -> WantedModel | None:
    """`before`, if nobody has changed `after`; else as it is now, but for versions that are as they became in `after`."""
    if now == after:
        return before
    if now is None or after is None:
        return now
    old, versions = before.versions if before is not None else {}, dict(now.versions)
    for version in differing(before, after) & versions.keys():
        if versions[version] == after.versions.get(version):
            del versions[version]
            if version in old:
                versions[version] = old[version]
    return with_versions(now, versions, on_demand=now.on_demand) if versions else None


def scaled(before: WantedModel, version: str, instances: int | None) -> WantedModel:
    """So many instances of this version (empty: of all), whatever its configuration says; None: as configured."""
    if instances is not None:
        check_instances(instances)
    if version:
        _known(before, version)
    versions = {
        other: msgspec.structs.replace(wanted, instances=instances) if version in ("", other) else wanted
        for other, wanted in before.versions.items()
    }
    return msgspec.structs.replace(before, versions=versions)


def check_instances(count: int) -> None:
    """Raises ConfigError for more than a model may have, or fewer than none."""
    most = knobs(ModelConfig)["instances"].high or 0
    if not 0 <= count <= most:
        raise ConfigError(f"instances {count} is out of range; give 0 to {most}")


def with_knobs(before: WantedModel, version: str, values: Mapping[str, Any]) -> WantedModel:
    """Other values of knobs of this version (empty: of all), which then are pinned."""

    def change(config: ModelConfig) -> ModelConfig:
        start = {name: value for name, value in config.start.items() if name not in values}
        return with_pins(with_values(msgspec.structs.replace(config, start=start), values), values)

    return _each(before, version, change)


def pinned(before: WantedModel, version: str, names: Collection[str], values: Mapping[str, Any]) -> WantedModel:
    """The autopilot leaves these knobs of this version (empty: of all) as they are, those in `values` as they are there."""
    known = tuned_knobs()
    for name in (*names, *values):
        if name not in known:
            raise ConfigError(f"{name!r} is no knob that the autopilot changes; {nearest(name, known)}")
    after = with_knobs(before, version, values)
    return _each(after, version, lambda config: with_pins(config, [*names, *values]))


def unpinned(before: WantedModel, version: str, names: Collection[str]) -> WantedModel:
    """The autopilot may turn these knobs of this version (empty: of all)."""

    def free(config: ModelConfig) -> ModelConfig:
        for name in names:
            if name not in config.pinned:
                raise ConfigError(f"{name!r} is not pinned; pinned are: {', '.join(config.pinned) or 'none'}")
        return msgspec.structs.replace(config, pinned=[name for name in config.pinned if name not in names])

    return _each(before, version, free)


def _each(before: WantedModel, version: str, change: Callable[[ModelConfig], ModelConfig]) -> WantedModel:
    if version:
        _known(before, version)
    versions = {
        other: msgspec.structs.replace(wanted, config=change(wanted.config)) if version in ("", other) else wanted
        for other, wanted in before.versions.items()
    }
    return msgspec.structs.replace(before, versions=versions)


def with_values(config: ModelConfig, values: Mapping[str, Any]) -> ModelConfig:
    """The configuration with other values of these knobs, checked; nobody's say so pins them."""
    return model_of({**msgspec.to_builtins(config), **values}, stated=())


def _known(model: WantedModel, version: str) -> None:
    if version not in model.versions:
        raise ConfigError(f"version {version} is not wanted; there are: {', '.join(model.versions) or 'none'}")


def _of(versions: Mapping[str, object], shares: Mapping[str, T]) -> dict[str, T]:
    return {version: share for version, share in shares.items() if version in versions}
