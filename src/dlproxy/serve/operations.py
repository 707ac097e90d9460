"""What operators have done with the models of a running server: every action changes what is wanted, and waits until it is so.

Made by serve/server.py, called by the control port. An action is a Struct: its fields are its arguments, `change` makes of
the model that is wanted another one. Not aware of: HTTP, how a change is carried out.
"""

import asyncio
import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from msgspec import Struct

from dlproxy.config import ConfigError, model_of
from dlproxy.config.paths import is_model_name
from dlproxy.fleet.control import Control
from dlproxy.fleet.store import StoreError
from dlproxy.instance.runtime import ModelError
from dlproxy.message import Failure, FailureKind, InferenceError
from dlproxy.policy import changes
from dlproxy.policy.planner import VersionState
from dlproxy.policy.wanted import Wanted, WantedModel, WantedVersion, number_of
from dlproxy.serve.models import Models
from dlproxy.telemetry.event_log import LogError

if TYPE_CHECKING:
    from dlproxy.fleet.repository.watcher import Repository

log = logging.getLogger(__name__)


class Action(Struct, forbid_unknown_fields=True):
    """`change` raises ConfigError for what makes no sense; None: the model is not wanted any more."""

    needs_model: ClassVar[bool] = True

    def change(self, before: WantedModel) -> WantedModel | None:
        raise NotImplementedError


class Load(Action):
    """Serve the file at `path`, on the server, with these knobs of [models.NAME] (`config`); without a path, what the server's
    repository has of it now.

    `version`: empty for the number after the largest. `share`: at first it gets this part (0 to 1) of the requests that name
    no version, not all. `on_demand`: it is loaded when it is asked for; null: as the model was.
    """

    needs_model: ClassVar[bool] = False
    path: str = ""
    version: str = ""
    config: dict[str, Any] = {}
    share: float | None = None
    on_demand: bool | None = None

    def change(self, before: WantedModel) -> WantedModel | None:
        version = self.version or str(max(map(number_of, before.versions), default=0) + 1)
        config = model_of({**self.config, "path": self.path, "version": version})
        after = changes.with_version(before, version, WantedVersion(config))
        if self.share is None:
            after = changes.promoted(after, version) if after.default else after
        else:
            after = changes.with_share(after, version, self.share)
        return after if self.on_demand is None else msgspec.structs.replace(after, on_demand=self.on_demand)


class Unload(Action):
    """This version, or (empty) the whole model."""

    version: str = ""

    def change(self, before: WantedModel) -> WantedModel | None:
        return changes.without_version(before, self.version) if self.version else None


class Label(Action):
    """The label stands for this version; empty: for none any more."""

    label: str
    version: str = ""

    def change(self, before: WantedModel) -> WantedModel | None:
        return changes.labelled(before, self.label, self.version)


class Canary(Action):
    """So much (0 to 1) of the requests that name no version go to this one. `by`: "tenant" or "header:NAME", so that whoever
    has the same always gets the same. `guarded`: the share is taken back when the version does worse.
    """

    version: str
    share: float
    by: str = ""
    guarded: bool = True

    def change(self, before: WantedModel) -> WantedModel | None:
        return changes.with_share(before, self.version, self.share, by=self.by, guarded=self.guarded)


class Shadow(Action):
    """This version is asked too, and its answers are compared and dropped; empty: none is."""

    version: str = ""

    def change(self, before: WantedModel) -> WantedModel | None:
        return changes.with_shadow(before, self.version)


class Tenant(Action):
    """Requests of this tenant that name no version get this one; empty: what everybody gets."""

    tenant: str
    version: str = ""

    def change(self, before: WantedModel) -> WantedModel | None:
        return changes.with_tenant(before, self.tenant, self.version)


class Trunk(Action):
    """Another model computes what the versions of this one take, for all of them together; empty: none does."""

    trunk: str = ""

    def change(self, before: WantedModel) -> WantedModel | None:
        return changes.with_trunk(before, self.trunk)


class Promote(Action):
    """This version (empty: the canary) answers all requests that name none."""

    version: str = ""

    def change(self, before: WantedModel) -> WantedModel | None:
        return changes.promoted(before, self.version)


class Rollback(Action):
    """Take a canary back, or else undo the last change of versions or of the default."""

    def change(self, before: WantedModel) -> WantedModel | None:
        return changes.rolled_back(before)


class Scale(Action):
    """So many instances of this version (empty: of every one); null: as its configuration says."""

    instances: int | None
    version: str = ""

    def change(self, before: WantedModel) -> WantedModel | None:
        return changes.scaled(before, self.version, self.instances)


class Set(Action):
    """Other values of knobs that can be changed while it serves, of this version (empty: of every one)."""

    knobs: dict[str, Any]
    version: str = ""

    def change(self, before: WantedModel) -> WantedModel | None:
        return changes.with_knobs(before, self.version, self.knobs)


class Pin(Action):
    """The autopilot leaves these knobs of this version (empty: of every one) alone: with these values, or as they are now."""

    knobs: list[str] = []
    values: dict[str, Any] = {}
    version: str = ""

    def change(self, before: WantedModel) -> WantedModel | None:
        return changes.pinned(before, self.version, self.knobs, self.values)


class Unpin(Action):
    """It may turn them again."""

    knobs: list[str]
    version: str = ""

    def change(self, before: WantedModel) -> WantedModel | None:
        return changes.unpinned(before, self.version, self.knobs)


ACTIONS: dict[str, type[Action]] = {
    kind.__name__.lower(): kind
    for kind in (Load, Unload, Label, Canary, Shadow, Tenant, Trunk, Promote, Rollback, Scale, Set, Pin, Unpin)
}


class ServerOperations:
    """An Operations. What cannot be done is not wanted either: it leaves no trace."""

    def __init__(self, control: Control, models: Models, repository: "Repository | None" = None) -> None:
        self._repository = repository
        self._control = control
        self._models = models
        self._taking_back: dict[tuple[str, str], asyncio.Task[None]] = {}
        models.on_worse = self._take_back

    def states(self) -> Sequence[VersionState]:
        return self._control.states()

    async def act(self, name: str, action: str, arguments: Mapping[str, Any]) -> None:
        asked = _asked(action, arguments)
        try:
            if isinstance(asked, Load) and not asked.path:
                await self._load_from_repository(name, asked)
            else:
                await self._change(name, asked)
        except StoreError as error:
            raise _cut_off(error) from None

    async def _change(self, name: str, asked: Action) -> None:
        before: WantedModel | None = None
        after: WantedModel | None = None

        def edit(wanted: Wanted) -> Wanted:
            nonlocal asked, before, after
            before = wanted.models.get(name)
            if before is None and asked.needs_model:
                raise _not_found(f"Request for unknown model: '{name}' is not found")
            if before is None and not is_model_name(name):
                raise ConfigError(f"{name!r} cannot be a model's name: use printable text without a slash")
            if isinstance(asked, Set):
                self._models.check_knobs(name, asked.version, asked.knobs)
            if isinstance(asked, Pin):
                asked = self._as_they_are(name, asked)
            edited = wanted.having(name, asked.change(before or WantedModel()))
            after = edited.models.get(name)
            return edited

        await self._control.change(edit)
        await settled_or_as_before(self._control, name, before, after)

    def _as_they_are(self, name: str, asked: Pin) -> Pin:
        """With the values that its knobs have now, as far as it is served."""
        here = self._models.holds(name, asked.version)
        now = {knob: here[knob] for knob in asked.knobs if knob in here}
        return Pin([*asked.knobs, *asked.values], {**now, **asked.values}, asked.version)

    async def _load_from_repository(self, name: str, asked: Load) -> None:
        if self._repository is None:
            raise ConfigError("load: give the path of a file on the server; it has no repository")
        if asked.version or asked.share is not None:
            raise ConfigError("load: the repository says which versions there are: see canary for shares of one of them")
        await _load_from(self._repository, self._control, name, asked.config or None)

    def _take_back(self, name: str, version: str, reason: str) -> None:
        """A guarded version does worse than the default one: it loses its share. Told again until that is done."""
        if (name, version) in self._taking_back:
            return
        log.error("model '%s' version %s gets no share of the requests any more: %s", name, version, reason)

        def edit(wanted: Wanted) -> Wanted:
            before = wanted.models.get(name)
            return wanted if before is None else wanted.having(name, changes.without_share(before, version))

        async def take_back() -> None:
            try:
                await self._control.change(edit)
            except ConfigError as error:
                log.error("model '%s' version %s keeps its share of the requests for now: %s", name, version, error)
            finally:
                del self._taking_back[name, version]

        self._taking_back[name, version] = asyncio.get_running_loop().create_task(take_back())


class ServerRepository:
    """A ModelRepository: what clients may do, if the server's mode lets them."""

    def __init__(self, control: Control, repository: "Repository | None", mode: str) -> None:
        self._control = control
        self._repository = repository
        self.explicit = repository is not None and mode == "explicit"

    def states(self) -> Sequence[VersionState]:
        return self._control.states()

    async def index(self) -> Sequence[VersionState]:
        states = self._control.states()
        if self._repository is None:
            return states
        known = {(state.name, state.version) for state in states}
        try:
            there = await self._repository.available()
        except ConfigError as error:
            raise InferenceError(Failure(FailureKind.UNAVAILABLE, str(error))) from None
        rest = [(name, version) for name, versions in there.items() for version in versions]
        return [*states, *(VersionState(*key, "", reason="unloaded") for key in rest if key not in known)]

    async def load(self, name: str, overrides: Mapping[str, Any] | None) -> None:
        repository = self._allowed()
        try:
            await _load_from(repository, self._control, name, overrides)
        except StoreError as error:
            raise _cut_off(error) from None
        except (ConfigError, LogError, ModelError) as error:
            message = f"failed to load '{name}', {error}"
            raise InferenceError(Failure(FailureKind.INVALID_ARGUMENT, message)) from None

    async def unload(self, name: str) -> None:
        self._allowed()
        if name not in self._control.wanted.models:
            raise _not_found(f"failed to unload '{name}', it is not loaded")
        try:
            await self._control.change(lambda wanted: wanted.having(name, None))
        except ConfigError as error:
            raise _cut_off(error) from None
        await self._control.settled(name)

    def _allowed(self) -> "Repository":
        if self._repository is None or not self.explicit:
            message = "explicit model load / unload is not allowed: start with --repository FOLDER --repository-mode explicit"
            raise InferenceError(Failure(FailureKind.UNAVAILABLE, message))
        return self._repository


async def settled_or_as_before(control: Control, name: str, before: WantedModel | None, after: WantedModel | None) -> None:
    """Returns when what differs is as wanted. If that cannot be, it is wanted as before again, and the reason is raised."""
    try:
        await control.settled(name, None if after is None or after == before else changes.differing(before, after))
    except (ConfigError, InferenceError, LogError, ModelError):
        await control.change(lambda wanted: wanted.restored(name, changes.undone(wanted.models.get(name), before, after)))
        raise


async def _load_from(repository: "Repository", control: Control, name: str, overrides: Mapping[str, Any] | None) -> None:
    before = control.wanted.models.get(name)
    await repository.load(name, overrides)
    await settled_or_as_before(control, name, before, control.wanted.models.get(name))


def _asked(action: str, arguments: Mapping[str, Any]) -> Action:
    kind = ACTIONS.get(action)
    if kind is None:
        near = difflib.get_close_matches(action, ACTIONS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(ACTIONS)}"
        raise _not_found(f"no such action: {action}; {hint}")
    try:
        return msgspec.convert(arguments, kind)
    except msgspec.ValidationError as error:
        takes = ", ".join(kind.__struct_fields__) or "nothing"
        text = str(error)
        raise ConfigError(f"{action}: {text[:1].lower()}{text[1:]}; it takes {takes}") from None


def _cut_off(error: ConfigError) -> InferenceError:
    return InferenceError(Failure(FailureKind.UNAVAILABLE, str(error)))


def _not_found(message: str) -> InferenceError:
    return InferenceError(Failure(FailureKind.NOT_FOUND, message))
