"""What a repository's files change in what is wanted: their models' versions, and nothing that operators have said.

Called by watcher.py, inside a compare-and-set. Pure. Not aware of: files, when what was found.
"""

from collections.abc import Collection, Mapping
from hashlib import blake2b

from msgspec import json
from msgspec.structs import replace

from dlproxy.fleet.repository.model_folder import FoundModel
from dlproxy.fleet.repository.tree import MARK
from dlproxy.policy.changes import with_versions
from dlproxy.policy.wanted import Wanted, WantedModel, WantedVersion


def edited(
    wanted: Wanted,
    found: Mapping[str, FoundModel],
    left_alone: Collection[str],
    before: Mapping[str, FoundModel],
    *,
    on_demand: bool,
) -> tuple[Wanted, list[str]]:
    """With the models that were found, and without those of the repository that were not; and what to warn of.

    `left_alone`: models that stay as they are, as do those of which the files say what was taken up already, by another node
    or in an earlier life. `before`: what was found the last time.
    """
    warnings: list[str] = []
    files = {name: digest for name, digest in wanted.files.items() if name in found or name in left_alone}
    for name in wanted.models:
        gone_from = wanted.models[name]
        if name not in found and name not in left_alone and is_ours(gone_from):
            left = _operators(gone_from)
            wanted = wanted.having(name, with_versions(gone_from, left, on_demand=gone_from.on_demand) if left else None)
    for name, new in found.items():
        old = wanted.models.get(name)
        said = _digest(new.wanted, on_demand)
        if name in left_alone or files.get(name) == said:
            continue
        if old is not None and old.versions and not is_ours(old):
            warnings.append(f"model '{name}' of the repository is left out: another one of that name is served")
        elif new.problem and old is not None and not all(version.problem for version in old.versions.values()):
            warnings.append(f"model '{name}' stays as it was: {new.problem}")
        else:
            gone = before[name].wanted.labels.keys() if name in before else ()
            wanted = wanted.having(name, merged(name, old or WantedModel(), new.wanted, gone, warnings, on_demand=on_demand))
            files[name] = said
    return (wanted if files == wanted.files else replace(wanted, files=files)), warnings


def _digest(model: WantedModel, on_demand: bool) -> str:
    return blake2b(json.encode((model, on_demand), order="deterministic"), digest_size=12).hexdigest()


def is_ours(model: WantedModel) -> bool:
    """Whether a repository has put the model there, or a version of it."""
    return len(_operators(model)) < len(model.versions)


def _operators(model: WantedModel) -> dict[str, WantedVersion]:
    """Versions that operators have loaded beside those of a repository."""
    return {number: version for number, version in model.versions.items() if not version.stamp.startswith(MARK)}


def merged(
    name: str, old: WantedModel, new: WantedModel, old_labels: Collection[str], warnings: list[str], *, on_demand: bool
) -> WantedModel:
    """The new versions under what was said of the old ones, where that still means something.

    `old_labels`: those that came from the repository.
    """
    theirs = {label: version for label, version in old.labels.items() if label not in old_labels}
    model = with_versions(replace(old, labels=theirs), {**_operators(old), **new.versions}, on_demand=on_demand)
    traffic = old.traffic
    uses = {
        "the default version": old.default,
        **{f"label '{label}'": version for label, version in theirs.items()},
        **{f"the share of version {version}": version for version in traffic.shares},
        **{f"the version of tenant '{tenant}'": version for tenant, version in traffic.tenants.items()},
        "the shadow": traffic.shadow,
    }
    for what, version in uses.items():
        if version and version not in model.versions:
            warnings.append(f"model '{name}': {what} is gone with version {version}, which the repository no longer has")
    return replace(model, labels={**model.labels, **new.labels})
