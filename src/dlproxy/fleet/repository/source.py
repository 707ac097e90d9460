"""A repository by what the knob `repository` says: a folder, a URL, or a models.config.

Used by watcher.py, on threads: everything here blocks. Not aware of: what is served, when to look.
"""

from contextlib import suppress
from pathlib import Path

from dlproxy.config import ConfigError
from dlproxy.config.paths import scheme_of
from dlproxy.fleet.remembered import cache_folder
from dlproxy.fleet.repository.model_folder import FoundModel, Knobs
from dlproxy.fleet.repository.remote import RemoteTree
from dlproxy.fleet.repository.scan import Listing, listed, listed_in_config, read_listed, scan, versions_of
from dlproxy.fleet.repository.tree import LocalTree, Tree

Identity = tuple[int, int]


class Source:
    """For one thread at a time, but for `stop`."""

    def __init__(self, place: str) -> None:
        self.folders: dict[str, Identity] = {}
        """On this disk, as they were at the last look; whatever changes below them matters."""
        self._place = place
        self._trees: dict[str, Tree] = {}

    def scan(self) -> dict[str, FoundModel]:
        """All models. Raises ConfigError if nothing can be said of any."""
        listing = self._listing()
        found = scan(listing)
        for tree in self._remote():
            tree.forget()
        return found

    def stop(self) -> None:
        """Whatever is being copied is no longer waited for. For any thread."""
        for tree in self._remote():
            tree.stop()

    def _remote(self) -> list[RemoteTree]:
        return [tree for tree in self._trees.values() if isinstance(tree, RemoteTree)]

    def read(self, name: str, overrides: Knobs | None) -> FoundModel:
        """One model. Raises ConfigError if there is none of that name."""
        listing = self._listing()
        if name not in listing:
            raise ConfigError(f"no model '{name}' in the repository {self._place}")
        return read_listed(name, listing[name], overrides)

    def versions(self) -> dict[str, list[str]]:
        """Those that are there, of each model. Raises ConfigError."""
        return {name: versions_of(one) for name, one in self._listing().items()}

    def _listing(self) -> Listing:
        local = _local(self._place)
        if local is not None and local.is_file():
            listing = listed_in_config(local, self._tree)
            self.folders = self._identities([one.tree.place for one in listing.values()])
            return listing
        listing = listed(self._tree(self._place))
        folders = self._identities([self._place])
        if not listing and self.folders and folders != self.folders:
            raise ConfigError(f"the model repository {self._place} is empty, and another folder than before: is it mounted?")
        self.folders = folders
        return listing

    def _tree(self, place: str) -> Tree:
        if place not in self._trees:
            self._trees[place] = self._opened(place)
        return self._trees[place]

    def _opened(self, place: str) -> Tree:
        local = _local(place)
        if local is not None:
            return LocalTree(local)
        cache = cache_folder("repositories")
        if cache is None:
            raise ConfigError(f"there is no cache folder to copy {place} to: set XDG_CACHE_HOME to one")
        return RemoteTree(place, cache)

    def _identities(self, places: list[str]) -> dict[str, Identity]:
        found = {}
        for local in filter(None, map(_local, places)):
            with suppress(OSError):  # its model says why
                status = local.stat()
                found[str(local)] = status.st_dev, status.st_ino
        return found


def _local(place: str) -> Path | None:
    """A place on this disk, as a path."""
    return None if scheme_of(place) not in ("", "file") else Path(place.removeprefix("file://"))
