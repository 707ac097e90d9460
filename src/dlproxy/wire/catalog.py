"""The models that can be asked for, by name and version; they come and go while requests do. Read by every protocol.

Not aware of: how a model runs; it knows the Service that takes requests for it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from typing import Any, Protocol

from msgspec import Struct

from dlproxy.message import Failure, FailureKind, InferenceError, Signature
from dlproxy.policy.view import LaneView
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

    `view`: how its lane is. `sticky`: what its requests stick to, as the knob has it. `control`: None where there is none.
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
        view: Callable[[], LaneView],
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
        self.view = view
        self.sticky = sticky
        self.control = control

    @property
    def ready(self) -> bool:
        """At least one instance is up, or is started for the next request."""
        view = self.view()
        return bool(view.instances) or view.asleep


class ModelView(Struct, frozen=True):
    """One version of a model, and what is being done with it: "serving", "loading", "being replaced", "being unloaded"."""

    name: str
    version: str
    phase: str
    default: bool


class Catalog:
    """Every served model. Ticket ids are drawn here, so they are unique and ascending in one process."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._defaults: dict[str, str] = {}
        self._states: dict[tuple[str, str], str] = {}
        self._listeners: list[Callable[[], None]] = []
        self.ticket_ids = count(1)
        self.draining = False

    def subscribe(self, listener: Callable[[], None]) -> None:
        """It is called after every change of what `get` gives, in the order of subscription."""
        self._listeners.append(listener)

    def add(self, model: ServedModel) -> None:
        """Offer a model, or another in place of the one with its name and version.

        A request without a version gets the version added last, unless `set_default` was called.
        """
        self._models.setdefault(model.name, {})[model.version] = model
        self._states.pop((model.name, model.version), None)
        self._changed()

    def remove(self, name: str, version: str) -> None:
        """Requests no longer reach it; those under way get their answers. Raises InferenceError NOT_FOUND."""
        versions = self._models.get(name, {})
        del versions[self.get(name, version).version]
        if self._defaults.get(name) not in versions:
            self._defaults.pop(name, None)
        if not versions:
            del self._models[name]
        self._changed()

    def set_default(self, name: str, version: str) -> None:
        """Requests without a version get this one until it is removed. Raises InferenceError NOT_FOUND."""
        self._defaults[name] = self.get(name, version).version
        self._changed()

    def announce(self, name: str, version: str, state: str) -> None:
        """What is being done with a version that is not served, such as "is being loaded", for those who ask for it.

        Empty: nothing any more. Adding the version ends it too.
        """
        self._states.pop((name, version), None)
        if state:
            self._states[name, version] = state

    def __iter__(self) -> Iterator[ServedModel]:
        for versions in self._models.values():
            yield from versions.values()

    def versions(self, name: str) -> list[str]:
        """Versions of one model, oldest first."""
        return list(self._models.get(name, ()))

    def get(self, name: str, version: str = "") -> ServedModel:
        """The model, or its default version. Raises InferenceError: NOT_FOUND, or UNAVAILABLE where a state is announced."""
        versions = self._models.get(name, {})
        found = versions.get(version or self._defaults.get(name) or next(reversed(versions), ""))
        if found is None:
            raise InferenceError(self._missing(name, version, versions))
        return found

    @property
    def ready(self) -> bool:
        """True if every model has a live instance and the server is not about to stop."""
        return not self.draining and all(model.ready for model in self)

    def _missing(self, name: str, version: str, versions: Iterable[str]) -> Failure:
        for (model, number), state in self._states.items():
            if model == name and version in ("", number):
                return Failure(FailureKind.UNAVAILABLE, f"model '{name}' version {number} {state}")
        known = ", ".join(versions)
        if known:
            message = f"'{name}' version {version} is not found; the versions served are {known}"
        else:
            names = ", ".join(f"'{known}'" for known in self._models)
            message = f"'{name}' is not found; " + (f"the models served are {names}" if names else "no model is served")
        return Failure(FailureKind.NOT_FOUND, f"Request for unknown model: {message}")

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()
