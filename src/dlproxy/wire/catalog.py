"""The models that can be asked for, by name and version. Filled by serve/assemble.py, read by every protocol.

Not aware of: how a model runs; it knows the Service that takes requests for it.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any, Protocol

from dlproxy.message import Failure, FailureKind, InferenceError, Signature
from dlproxy.service import Service
from dlproxy.telemetry.stats import ModelStats


class ModelControl(Protocol):
    """What the control port may see and change of a model. Called on the event loop; neither method blocks."""

    def state(self) -> dict[str, Any]:
        """JSON: the knobs that hold, where batches run, what waits and runs, and how every instance is."""
        ...

    async def scale(self, count: int) -> None:
        """Run so many instances; returns when they are up, or gone. Raises ConfigError."""
        ...

    def change(self, changes: Mapping[str, Any]) -> None:
        """New values for knobs of [models.NAME], for queued requests too. Raises ConfigError and then changes nothing."""
        ...


class ServedModel:
    """One version of one model, as protocols see it. `max_batch`: rows that one request may have.

    `sticky`: what its requests stick to, as the knob has it. `control` is None where nobody may look or change.
    """

    def __init__(
        self,
        *,
        name: str,
        version: str,
        signature: Signature,
        service: Service,
        stats: ModelStats,
        max_batch: int,
        slo_s: float | None,
        is_ready: Callable[[], bool],
        queued_rows: Callable[[], int],
        batch_limit: Callable[[], int],
        sticky: str = "",
        control: ModelControl | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.signature = signature
        self.service = service
        self.stats = stats
        self.max_batch = max_batch
        self.slo_s = slo_s  # may change while the model runs
        self.is_ready = is_ready
        self.queued_rows = queued_rows
        self.batch_limit = batch_limit
        self.sticky = sticky
        self.control = control


class Catalog:
    """Every served model. Ticket ids are drawn here, so they are unique and ascending in one process."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, ServedModel]] = {}
        self.ticket_ids = count(1)
        self.draining = False

    def add(self, model: ServedModel) -> None:
        """Offer a model; the version added last is the one that a request without a version gets."""
        self._models.setdefault(model.name, {})[model.version] = model

    def remove(self, name: str, version: str) -> None:
        """Offer it no more."""
        versions = self._models[name]
        del versions[version]
        if not versions:
            del self._models[name]

    def set_default(self, name: str, version: str) -> None:
        """What a request without a version gets. Raises InferenceError NOT_FOUND."""
        model = self.get(name, version)
        versions = self._models[name]
        versions[version] = versions.pop(model.version)

    def __iter__(self) -> Iterator[ServedModel]:
        for versions in self._models.values():
            yield from versions.values()

    def versions(self, name: str) -> list[str]:
        """Versions of one model, oldest first."""
        return list(self._models.get(name, ()))

    def get(self, name: str, version: str = "") -> ServedModel:
        """The model, or InferenceError NOT_FOUND."""
        versions = self._models.get(name)
        if versions is None:
            raise _not_found(f"Request for unknown model: '{name}' is not found; served are {self._names()}")
        if not version:
            return next(reversed(versions.values()))
        if version not in versions:
            raise _not_found(
                f"Request for unknown model: '{name}' version {version} is not found; served are {', '.join(versions)}"
            )
        return versions[version]

    @property
    def ready(self) -> bool:
        """True if every model has a live instance and the server is not about to stop."""
        return not self.draining and all(model.is_ready() for model in self)

    def _names(self) -> str:
        return ", ".join(f"'{name}'" for name in self._models) or "none"


def _not_found(message: str) -> InferenceError:
    return InferenceError(Failure(FailureKind.NOT_FOUND, message))
