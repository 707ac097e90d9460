"""What lies in a model repository, as models that could be served; a function of its files, and of nothing that was before.

Called by watcher.py. Not aware of: what is served, what has changed.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from dlproxy.config import ConfigError
from dlproxy.config.paths import is_model_name
from dlproxy.fleet.repository.model_file import is_model
from dlproxy.fleet.repository.model_folder import FoundModel, Knobs, broken, printable, read_model, said, versions_in
from dlproxy.fleet.repository.tfs_config import read_models_config
from dlproxy.fleet.repository.tree import LocalTree, Tree
from dlproxy.fleet.repository.version_policy import VersionPolicy
from dlproxy.instance.runtime.formats import suffixes


class Listed(Struct, frozen=True):
    """Where a model is said to be: `entries` of a tree that are files or folders, one if all is well. `problem`: if not."""

    tree: Tree
    entries: dict[str, bool]
    policy: VersionPolicy | None = None
    labels: Mapping[str, str] = {}
    problem: str = ""


Listing = dict[str, Listed]


def listed(tree: Tree) -> Listing:
    """The models in a folder of them. Raises ConfigError if it cannot be read."""
    try:
        tree.refresh()
        found = tree.entries("")
    except OSError as error:
        raise ConfigError(f"the model repository {tree.place} cannot be read: {said(error)}") from None
    known = suffixes()
    groups: defaultdict[str, dict[str, bool]] = defaultdict(dict)
    for entry, is_folder in found.items():
        if is_folder or is_model(entry, known):
            groups[printable(entry if is_folder else Path(entry).stem)][entry] = is_folder
    return {name: Listed(tree, entries) for name, entries in groups.items()}


def listed_in_config(file: Path, open_tree: Callable[[str], Tree]) -> Listing:
    """The models that TensorFlow Serving's models.config names. Raises ConfigError."""
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    listing: Listing = {}
    for name, base_path, policy, labels in read_models_config(text, str(file)):
        problem = f"two models are named '{name}' in {file}" if name in listing else ""
        try:
            tree = open_tree(base_path)
        except ConfigError as error:
            tree, problem = LocalTree(Path(base_path)), str(error)
        listing[name] = Listed(tree, {"": True}, policy, labels, problem)
    return listing


def read_listed(name: str, listed: Listed, override: Knobs | None = None) -> FoundModel:
    """One of the models. Raises nothing."""
    place, entries = listed.tree.place, listed.entries
    if listed.problem:
        return broken(place, listed.problem)
    if "" in entries:  # nobody has looked at this tree yet
        try:
            listed.tree.refresh()
        except OSError as error:
            return broken(place, said(error))
    if not is_model_name(name):
        return broken(f"{place}/{name}", f"{name!r} cannot be a model's name: use printable text")
    if len(entries) > 1:
        both = " and ".join(f"{entry}{'/' * is_folder}" for entry, is_folder in entries.items())
        return broken(f"{place}/{name}", f"{both} in {place} are both named '{name}': leave one")
    ((entry, is_folder),) = entries.items()
    found = read_model(listed.tree, entry, is_folder, suffixes(), policy=listed.policy, override=override)
    labels = {label: version for label, version in listed.labels.items() if _is_use(label, version, found)}
    left_out = tuple(
        f"label '{label}' of version {listed.labels[label]} is left out: labels are words, of versions that are served"
        for label in listed.labels.keys() - labels.keys()
    )
    return replace(found, wanted=replace(found.wanted, labels=labels), warnings=(*found.warnings, *left_out))


def _is_use(label: str, version: str, found: FoundModel) -> bool:
    return label.isidentifier() and version in found.wanted.versions


def versions_of(listed: Listed) -> list[str]:
    """All that are there, in the order of their numbers, without a look inside; none of what cannot be read."""
    found: set[str] = set()
    with suppress(OSError):
        for entry, is_folder in listed.entries.items():
            numbers = versions_in(listed.tree.entries(entry), suffixes())[0] if is_folder else {}
            found |= numbers.keys() or {"1"}
    return sorted(found, key=int)


def scan(listing: Listing) -> dict[str, FoundModel]:
    """All of it. Raises nothing: what is wrong is wrong with one model."""
    return {name: read_listed(name, listed) for name, listed in listing.items()}
