"""What the control port sees and changes of one lane. Called by wire/control/http.py through ModelControl.

Not aware of: HTTP.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from dlproxy.config import ConfigError, ModelConfig
from dlproxy.config.knobs import LaneSettings
from dlproxy.config.table import live_knobs
from dlproxy.fleet import Fleet
from dlproxy.fleet.autoscale import Autoscaler
from dlproxy.fleet.roster import Roster
from dlproxy.instance.runtime import ModelError
from dlproxy.policy.changes import check_instances, with_values
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.lane import Lane
from dlproxy.policy.view import LaneView
from dlproxy.serve.drift import DriftLayer
from dlproxy.serve.driver import Driver
from dlproxy.serve.partition import PartitionLayer
from dlproxy.serve.sequences import SequenceLayer

OBJECTIVES = frozenset({"slo", "slo_by_priority"})
BOUNDS = frozenset({"min_instances", "max_instances"})
ROWS = frozenset({"max_batch", "max_queue_rows"})


class LaneControl:
    """A ModelControl. What is changed here is lost when the process ends; dlproxy.toml is what it starts with."""

    def __init__(
        self,
        config: ModelConfig,
        lane: Lane,
        driver: Driver,
        knobs: LaneKnobs,
        fleet: Fleet,
        roster: Roster,
        most_batch: int,
    ) -> None:
        """`knobs`: what the lane begins with, which may differ from what is configured. `most_batch`: as LanePlan has it."""
        self._fleet = fleet
        self._roster = roster
        holds = {name: getattr(knobs, name) for name in LaneSettings.__struct_fields__}
        self._config = msgspec.structs.replace(config, **holds, start={})
        self._lane = lane
        self._driver = driver
        self._knobs = knobs
        self.most_batch = most_batch  # 1 where the model has no batch axis
        self._tuned: dict[str, Any] = {}
        self._aims: dict[str, float] = {}  # by step of a pipeline: its share of the objective
        self._batching = "on" if most_batch > 1 else "off"
        self._padding = "on" if knobs.max_padding > 0.0 else "off"
        self.on_slo: Callable[[], None] = lambda: None
        """Called when the objectives have changed: they give requests their deadlines."""
        self.on_rows: Callable[[], None] = lambda: None
        """Called when requests may have another number of rows."""
        self.on_changing: Callable[[], None] = lambda: None
        self.on_changed: Callable[[], None] = lambda: None
        """Called before and after an operator's change: the autopilot ends what it tries, and looks anew."""
        self.check: Callable[[ModelConfig], None] = lambda config: None
        """Raises ConfigError for a configuration that this model cannot take while it serves."""
        self.tell: Callable[[str], None] = lambda words: None
        """Told what has changed, for those who ask why a request was slow."""
        self.on_variants: Callable[[], None] = lambda: None
        """Called when variants are named."""
        self.autoscaler: Autoscaler | None = None
        self.partition: PartitionLayer | None = None
        self.sequences: SequenceLayer | None = None
        self.drift: DriftLayer | None = None
        self.variants: Callable[[], dict[str, Any] | None] = lambda: None
        """How they are, of a model that has some."""
        self.steps: Callable[[], list[dict[str, Any]] | None] = lambda: None
        """How they are, of a pipeline."""
        self.on_scaled: Callable[[], None] = lambda: None
        """Called when the number of instances has changed."""

    @property
    def config(self) -> ModelConfig:
        """What holds now, but for what is tuned."""
        return self._config

    @property
    def tuned(self) -> dict[str, Any]:
        """Knobs that have another value here than they are declared to have."""
        return dict(self._tuned)

    def holds(self, name: str) -> Any:
        """The value of a knob now."""
        return self._tuned.get(name, getattr(self._config, name))

    @property
    def slo_s(self) -> float | None:
        return self._knobs.slo_s

    def state(self) -> dict[str, Any]:
        view = self._lane.view()
        return {
            "run": self._fleet.run,
            "knobs": {name: self.holds(name) for name in live_knobs()},
            "tuned": {name: {"value": value, "declared": getattr(self._config, name)} for name, value in self._tuned.items()},
            "arbitrated": self._knobs.arbitrated,
            "batching": self._batching,
            "padding": self._padding,
            "batch_limit_rows": view.batch_goal,
            "queued_requests": view.queued_requests,
            "queued_rows": view.queued_rows,
            "running_batches": view.running_batches,
            "instances": self._instances(view),
            "autoscale": None if self.autoscaler is None else self.autoscaler.state(),
            "variants": self.variants(),
            "steps": self.steps(),
            "sequences": None if self.sequences is None else self.sequences.state(),
            "drift": None if self.drift is None else self.drift.state(),
        }

    def _instances(self, view: LaneView) -> list[dict[str, Any]]:
        """Every instance that is wanted; the lane knows more of those that are up."""
        up = {instance.name: msgspec.to_builtins(instance) for instance in view.instances}
        nothing = {"circuit": None, "in_flight": 0, "capacity": 0}
        return [{**place, **up.get(place["name"], nothing)} for place in self._roster.places()]

    def change(self, changes: Mapping[str, Any]) -> None:
        """What is set or pinned is tuned no more."""
        config = self.changed(changes)
        self.on_changing()
        self.tell(f"an operator set {_in_words(changes)}")
        self._config = config
        self._tuned = {name: value for name, value in self._tuned.items() if name not in {*changes, *config.pinned}}
        self._hold()
        if not OBJECTIVES.isdisjoint(changes):
            self.on_slo()
        if not ROWS.isdisjoint(changes):
            self.on_rows()
        if self.sequences is not None:
            self.sequences.configure(config)
        if config.variants and "variants" in changes:
            self.on_variants()
        if self.autoscaler is not None and not BOUNDS.isdisjoint(changes):
            self.autoscaler.configure(min_instances=config.min_instances, max_instances=config.max_instances)
        self.on_changed()

    def tune(self, values: Mapping[str, Any]) -> None:
        """These hold on this node whatever is declared, until they are set or pinned; all others as declared. Unchecked."""
        tuned = {name: value for name, value in values.items() if value != getattr(self._config, name)}
        if tuned != self._tuned:
            self.tell(f"the autopilot set {_in_words(tuned) or 'everything as declared'}")
            self._tuned = tuned
            self._hold()

    def _hold(self) -> None:
        config = self._config
        values = {name: getattr(config, name) for name in LaneSettings.__struct_fields__}
        self.turn_knobs(slo_s=self._aim_s, **{**values, **self._tuned})

    def aim(self, who: str, share_s: float | None) -> None:
        """A step of a pipeline gives its requests so long, or asks this model no more. Where the model has no objective of its
        own, its batches are made for the least of these.
        """
        if share_s is None:
            self._aims.pop(who, None)
        else:
            self._aims[who] = share_s
        if self._aim_s != self._knobs.slo_s:
            self.turn_knobs(slo_s=self._aim_s)

    @property
    def _aim_s(self) -> float | None:
        """What batches are made for."""
        own_s = self._config.slo_s
        return min(self._aims.values(), default=None) if own_s is None else own_s

    def changed(self, changes: Mapping[str, Any]) -> ModelConfig:
        """What `change` would make of the configuration. Raises ConfigError."""
        changeable = live_knobs()
        for name in changes:
            if name not in changeable:
                near = difflib.get_close_matches(name, changeable, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"these can: {', '.join(changeable)}"
                raise ConfigError(f"'{name}' cannot be changed while the model runs; {hint}")
        config = with_values(self._config, changes)
        if config.max_batch > self.most_batch:
            raise ConfigError(f"max_batch {config.max_batch} is above {self.most_batch}, which the model was loaded with")
        self.check(config)
        return config

    def stop_batching(self, reason: str) -> None:
        """A row's answer is not its own: from now on requests run one by one."""
        self.on_changing()
        self._batching = f"off: {reason}"
        self.most_batch = 1
        if self.partition is not None:
            self.partition.end()
        self._config = msgspec.structs.replace(self._config, max_batch=1)
        self._tuned.pop("max_batch", None)
        self.turn_knobs(max_batch=1)
        self.on_rows()
        self.on_changed()

    def stop_padding(self, reason: str) -> None:
        """A padded request's answer is not its own: from now on only requests of one length share a batch."""
        self._padding = f"off: {reason}"
        self.turn_knobs(max_padding=0.0)

    async def scale(self, count: int) -> None:
        """Run so many instances; returns when they are up, or gone. Raises ConfigError, also if one cannot be started.

        Autoscaling holds this number, until its bounds are changed.
        """
        check_instances(count)
        self.on_changing()
        before = None if self.autoscaler is None else self.autoscaler.hold(count)
        try:
            await self.set_instances(count)
        except BaseException:
            if self.autoscaler is not None and before is not None:
                self.autoscaler.release(before)
            raise
        finally:
            self.on_changed()

    async def set_instances(self, count: int) -> None:
        """The same, by autoscaling."""
        try:
            await self._fleet.scale(count)
        except ModelError as error:
            raise ConfigError(str(error)) from None
        self.on_scaled()

    def turn_knobs(self, **values: Any) -> None:
        """New values of LaneKnobs, unchecked."""
        self._knobs = msgspec.structs.replace(self._knobs, **values)
        self._driver.change_knobs(self._knobs)
        if self.partition is not None:
            self.partition.configure(self._knobs)


def _in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())
