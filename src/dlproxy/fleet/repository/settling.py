"""Which of the models found have been left alone for long enough to be taken up.

Asked by watcher.py after each scan. Pure: instants are arguments. Not aware of: files.
"""

from collections.abc import Mapping
from math import inf

from dlproxy.fleet.repository.model_folder import FoundModel

SETTLE_S = 1.0  # as often as TensorFlow Serving looks; who writes more slowly than that writes a byte now and then


class Settling:
    """Remembers since when each model is as it is, those that have gone included."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[FoundModel | None, float]] = {}
        self._first = True

    def unsettled(self, found: Mapping[str, FoundModel], now: float, wall_ns: int) -> set[str]:
        """Those that have changed within SETTLE_S, by two looks or by their files' times; the first look has only those."""
        names: set[str] = set()
        for name in [*found, *(self._since.keys() - found.keys())]:
            model = found.get(name)
            before = self._since.get(name)
            since = before[1] if before is not None and before[0] == model else -inf if self._first else now
            self._since[name] = model, since
            if now - since < SETTLE_S or (model is not None and is_young(model, wall_ns)):
                names.add(name)
            elif model is None:
                del self._since[name]
        self._first = False
        return names


def is_young(model: FoundModel, wall_ns: int) -> bool:
    """Whether one of its files has just changed. A file from the future is not waited for."""
    return 0.0 <= (wall_ns - model.newest_ns) / 1e9 < SETTLE_S
