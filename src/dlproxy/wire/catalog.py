"""The models that can be asked for, by name and version; they come and go while requests do. Read by every protocol.

Not aware of: how a model runs; it knows the Service that takes requests for it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import count
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from dlproxy.config import ModelConfig
from dlproxy.message import Failure, FailureKind, InferenceError, Principal, Signature, Ticket
from dlproxy.policy.hops import NO_LOAD, Load
from dlproxy.policy.pipelines import Stage
from dlproxy.policy.view import LaneView
from dlproxy.service import Service
from dlproxy.telemetry.stats import ModelStats
from dlproxy.wire.rights import seen

if TYPE_CHECKING:
    from dlproxy.wire.waiting import Waiting


class ModelControl(Protocol):
    """What the control port may see of a model."""

    def state(self) -> dict[str, Any]:
        """JSON: the knobs that hold, where batches run, what waits and runs, and how every instance is."""
        ...


class ServedModel:
    """One version of one model, as protocols see it. `max_batch`: rows that one request may have.

    `slo_s_by_level`: as terms.by_level has it. `view`: how its lane is. `sticky`: what its requests stick to, as the knob has
    it. `control`: None where there is none. `class_names`: those of its outputs. `headers`: of the client's, those that its
    requests carry. `pipeline`: what it is, if it is one. `hop`: the id that its requests take along to
    other servers, if it runs there.
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
        slo_s_by_level: Sequence[float | None] | None = None,
        sticky: str = "",
        control: ModelControl | None = None,
        headers: Collection[str] = (),
        hop: str = "",
    ) -> None:
        self.name = name
        self.version = version
        self.signature = signature
        self.service = service
        self.stats = stats
        self.max_batch = max_batch  # this and the next two may change while the model runs
        self.slo_s = slo_s
        self.slo_s_by_level = slo_s_by_level
        self.view = view
        self.sticky = sticky
        self.control = control
        self.headers = headers
        self.hop = hop
        self.class_names: Sequence[str] = ()  # set before it is served, as is the next
        self.pipeline: ModelConfig | None = None
        self.would_wait_s: Callable[[Ticket, float], float] = lambda ticket, now: 0.0
        """How long a request with the terms of this ticket would wait for an instance, as far as its lane can tell."""
        self.load: Callable[[], Load] = lambda: NO_LOAD
        """How one more request would find it, for other nodes that ask."""
        self.leaves = False
        """The server is about to stop: it answers what comes, but whoever can ask elsewhere had better do so."""
        self.stage: Callable[[], Stage | None] = lambda: None
        """How it batches, for pipelines of which it is a stage."""
        self.aim: Callable[[str, float | None], None] = lambda who, share_s: None
        """A step of a pipeline gives its requests so long; None: it asks this model no more."""
        self.last_event_at: Callable[[], float] = lambda: 0.0
        """When its lane heard of something, by the driver's clock."""
        self.places: Callable[[], Sequence[Mapping[str, Any]]] = lambda: ()
        """Every instance that is wanted, up or not, as Roster.places has them."""
        self.pilot: Callable[[int], dict[str, Any] | None] = lambda newest: None
        """What the autopilot does with it, and so many of its newest decisions, as Flight.brief has it."""

    @property
    def ready(self) -> bool:
        """At least one instance is up, or is started for the next request, and the server is not about to stop."""
        view = self.view()
        return not self.leaves and (bool(view.instances) or view.asleep)

    def mark(self) -> tuple[float, int]:
        """Another one whenever something was asked of it, or has happened to it. Cheap: it is compared every second."""
        return self.last_event_at(), self.stats.remembered + self.stats.stirred


class Route(Struct, frozen=True):
    """Who answers requests of one model that name no version: `diverted`, else the version `default`, else the one added last.
    `labels` may be named where a version may.
    """

    default: str = ""
    labels: Mapping[str, str] = MappingProxyType({})
    diverted: ServedModel | None = None


NO_ROUTE = Route()


class NotServedError(InferenceError):
    """There is no such model, or not in this version (empty: in any)."""

    def __init__(self, failure: Failure, name: str, version: str) -> None:
        super().__init__(failure)
        self.name = name
        self.version = version


class Catalog:
    """Every served model. Ticket ids are drawn here, so they are unique and ascending in one process."""

    def __init__(self) -> None:
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._routes: dict[str, Route] = {}
        self._states: dict[tuple[str, str], str] = {}
        self._listeners: list[Callable[[], None]] = []
        self.ticket_ids = count(1)
        self.waiting: Waiting | None = None
        """Where requests wait for models that are loaded on demand, if there may be some."""
        self.draining = False

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Called after every change of what `get` or `asked` gives, and when the server stops; in the order of subscription."""
        self._listeners.append(listener)

    def add(self, model: ServedModel) -> None:
        """Offer a model, or another in place of the one with its name and version.

        A request without a version gets the version added last, unless `route` says otherwise.
        """
        self._models.setdefault(model.name, {})[model.version] = model
        self._states.pop((model.name, model.version), None)
        self._changed()

    def remove(self, name: str, version: str) -> None:
        """Requests no longer reach it; those under way get their answers. Raises InferenceError NOT_FOUND."""
        versions = self._models.get(name, {})
        gone = versions.pop(self.get(name, version).version)
        if not versions:
            del self._models[name]
            self._routes.pop(name, None)
        elif name in self._routes:
            route = self._routes[name]
            labels = {label: version for label, version in route.labels.items() if version != gone.version}
            stays = route.default != gone.version
            diverted = route.diverted if route.diverted is not None and route.diverted.version != gone.version else None
            self._routes[name] = Route(route.default if stays else "", labels, diverted)
        self._changed()

    def route(self, name: str, default: str, labels: Mapping[str, str], diverted: ServedModel | None = None) -> None:
        """Who answers, instead of what was said before, until the versions named go; as Route has it.

        Raises InferenceError NOT_FOUND, and then nothing has changed.
        """
        versions = self._models.get(name, {})
        for version in (default or next(reversed(versions), ""), *labels.values()):
            if version not in versions:
                raise InferenceError(self._missing(name, version))
        self._routes[name] = Route(default, labels, diverted)
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

    def route_of(self, name: str) -> Route:
        """As it was set, less what has gone since."""
        return self._routes.get(name, NO_ROUTE)

    def default(self, name: str) -> str:
        """The version that requests get which name none and are not diverted; empty if the model is not served."""
        return self.route_of(name).default or next(reversed(self._models.get(name, {})), "")

    def get(self, name: str, version: str = "", who: Principal | None = None) -> ServedModel:
        """The version of that number or label, or the default one. `who` must be allowed to ask for it (wire/rights.py).

        Raises NotServedError: UNAVAILABLE if it comes or goes, else NOT_FOUND, naming what `who`, if that is said, may see.
        """
        versions, route = self._models.get(name, {}), self.route_of(name)
        found = versions.get(route.labels.get(version, version) or route.default or next(reversed(versions), ""))
        if found is None:
            raise NotServedError(self._missing(name, version, who), name, version)
        return found

    def up(self, name: str, version: str = "", who: Principal | None = None) -> ServedModel:
        """As `get`, for whoever looks how it is now, and loads nothing by that. Raises InferenceError."""
        try:
            return self.get(name, version, who)
        except NotServedError as missing:
            raise InferenceError(missing.failure) from None

    def asked(self, name: str, version: str = "", who: Principal | None = None) -> ServedModel:
        """Who takes a request: as `get`, or what requests without a version are diverted to."""
        diverted = None if version else self.route_of(name).diverted
        return diverted or self.get(name, version, who)

    def doors(self) -> Iterator[ServedModel]:
        """Everything that `asked` may give."""
        yield from self
        for route in self._routes.values():
            if route.diverted is not None:
                yield route.diverted

    def drain(self) -> None:
        """The server stops: it is not ready any more, and no request waits for a model."""
        self.draining = True
        for model in self.doors():
            model.leaves = True
        if self.waiting is not None:
            self.waiting.close()
        self._changed()

    @property
    def ready(self) -> bool:
        """True if every model has a live instance and the server is not about to stop."""
        return not self.draining and all(model.ready for model in self)

    def _missing(self, name: str, version: str, who: Principal | None = None) -> Failure:
        for (model, number), state in self._states.items():
            if model == name and version in ("", number):
                return Failure(FailureKind.UNAVAILABLE, f"model '{name}' version {number} {state}")
        if self.waiting is not None and self.waiting.may_come(name, version):
            return Failure(FailureKind.UNAVAILABLE, f"model '{name}' is not loaded now; a request for it will load it")
        known = ", ".join((*self._models.get(name, ()), *self.route_of(name).labels))
        if known:
            message = f"'{name}' version {version} is not found; the versions served are {known}"
        else:
            names = ", ".join(dict.fromkeys(f"'{model.name}'" for model in seen(self, who))) if who is not None else ""
            message = f"'{name}' is not found" + (f"; the models served are {names}" if names else "")
            message += "" if self._models else "; no model is served"
        return Failure(FailureKind.NOT_FOUND, f"Request for unknown model: {message}")

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()
