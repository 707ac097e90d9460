"""What operators have done with the models of a running server: every action changes what is wanted, and waits until it is so.

Made by serve/server.py, called by the control port. An action is a Struct: its fields are its arguments, `change` makes of
the model that is wanted another one. Not aware of: HTTP, how a change is carried out.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
from msgspec import Struct

from dlproxy.config import ConfigError, model_of
from dlproxy.fleet.control import Control
from dlproxy.instance.runtime import ModelError
from dlproxy.message import Failure, FailureKind, InferenceError
from dlproxy.policy import changes
from dlproxy.policy.planner import VersionState, newest
from dlproxy.policy.wanted import Wanted, WantedModel, WantedVersion, number_of
from dlproxy.serve.models import Models


class Action(Struct, forbid_unknown_fields=True):
    """`change` raises ConfigError for what makes no sense; None: the model is not wanted any more."""

    needs_model: ClassVar[bool] = True

    def change(self, before: WantedModel) -> WantedModel | None:
        raise NotImplementedError


class Load(Action):
    """Serve the file at `path`, on the server, with these knobs of [models.NAME] (`config`).

    `version`: empty for the number after the largest. `share`: at first it gets this part (0 to 1) of the requests that name
    no version, not all. `on_demand`: it is loaded when it is asked for.
    """

    needs_model: ClassVar[bool] = False
    path: str
    version: str = ""
    config: dict[str, Any] = {}
    share: float | None = None
    on_demand: bool = False

    def change(self, before: WantedModel) -> WantedModel | None:
        version = self.version or str(max(map(number_of, before.versions), default=0) + 1)
        config = model_of({**self.config, "path": self.path, "version": version})
        pinned = before
        if self.share is not None and not before.default:
            pinned = msgspec.structs.replace(before, default=newest(before.versions))
        after = changes.with_version(pinned, version, WantedVersion(config))
        if self.share is None:
            after = changes.promoted(after, version) if after.default else after
        else:
            after = changes.with_share(after, version, self.share)
        return msgspec.structs.replace(after, on_demand=self.on_demand)


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


ACTIONS: dict[str, type[Action]] = {
    kind.__name__.lower(): kind for kind in (Load, Unload, Label, Canary, Shadow, Promote, Rollback, Scale, Set)
}


class ServerOperations:
    """An Operations. What cannot be done is not wanted either: it leaves no trace."""

    def __init__(self, control: Control, models: Models) -> None:
        self._control = control
        self._models = models

    def states(self) -> Sequence[VersionState]:
        return self._control.states()

    async def act(self, name: str, action: str, arguments: Mapping[str, Any]) -> None:
        asked = _asked(action, arguments)
        before: WantedModel | None = None
        after: WantedModel | None = None

        def edit(wanted: Wanted) -> Wanted:
            nonlocal before, after
            before = wanted.models.get(name)
            if before is None and asked.needs_model:
                known = ", ".join(wanted.models)
                raise _not_found(f"Request for unknown model: '{name}' is not found; the models are {known or 'none'}")
            if isinstance(asked, Set):
                self._models.check_knobs(name, asked.version, asked.knobs)
            edited = wanted.having(name, asked.change(before or WantedModel()))
            after = edited.models.get(name)
            return edited

        await self._control.change(edit)
        try:
            await self._control.settled(name)
        except (ConfigError, InferenceError, ModelError):
            await self._control.change(
                lambda wanted: wanted.restored(name, before) if wanted.models.get(name) == after else wanted
            )
            raise


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


def _not_found(message: str) -> InferenceError:
    return InferenceError(Failure(FailureKind.NOT_FOUND, message))
