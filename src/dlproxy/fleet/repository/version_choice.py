"""Which versions are served, as Triton and TensorFlow Serving both write it.

Called by triton_config.py and tfs_config.py. Not aware of: files, what is there.
"""

from msgspec import Struct

from dlproxy.config import ConfigError
from dlproxy.fleet.repository.version_policy import VersionPolicy


class Latest(Struct, frozen=True):
    num_versions: int = 0


class Specific(Struct, frozen=True):
    versions: tuple[int, ...] = ()


class VersionChoice(Struct, frozen=True):
    """At most one is there."""

    latest: Latest | None = None
    all: dict[str, None] | None = None
    specific: Specific | None = None

    def policy(self) -> VersionPolicy | None:
        """None where nothing is said. Raises ConfigError."""
        if self.all is not None:
            return VersionPolicy(latest=0)
        if self.specific is not None:
            if not self.specific.versions:
                raise ConfigError("specific names no versions")
            return VersionPolicy(specific=tuple(map(str, self.specific.versions)))
        return None if self.latest is None else VersionPolicy(latest=self.latest.num_versions or 1)
