"""Which of the versions that lie in a model's folder are served.

Read from config.pbtxt, models.config or dlproxy.toml; asked by model_folder.py. Not aware of: files.
"""

from collections.abc import Iterable

from msgspec import Struct

from dlproxy.policy.wanted import number_of


class VersionPolicy(Struct, frozen=True):
    """The `latest` so many (0: all), or those that are `specific`. The default is Triton's and TensorFlow Serving's, too."""

    latest: int = 1
    specific: tuple[str, ...] = ()

    def chosen(self, versions: Iterable[str]) -> list[str]:
        """In the order of their numbers."""
        ordered = sorted(versions, key=number_of)
        return [version for version in ordered if version in self.specific] if self.specific else ordered[-self.latest :]
