"""What the control port sees and changes of one lane. Called by wire/control_http.py through ModelControl.

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
from dlproxy.serve.driver import Driver

BOUNDS = frozenset({"min_instances", "max_instances"})


class LaneControl:
    """A ModelControl. What is changed here is lost when the process ends; dlproxy.toml is what it starts with."""

    def __init__(self, config: ModelConfig, lane: Lane, driver: Driver, knobs: LaneKnobs, fleet: Fleet, roster: Roster) -> None:
        self._fleet = fleet
        self._roster = roster
        self._config = msgspec.structs.replace(config, max_batch=knobs.max_batch)  # 1 where the model has no batch axis
        self._lane = lane
        self._driver = driver
        self._knobs = knobs
        self._most_batch = knobs.max_batch
        self._batching = "on" if knobs.max_batch > 1 else "off"
        self._padding = "on" if knobs.max_padding > 0.0 else "off"
        self.on_slo: Callable[[float | None], None] | None = None
        """Told of the objective whenever knobs change: it gives requests their deadlines."""
        self.on_max_batch: Callable[[int], None] | None = None
        """Told of the rows that a batch, and so a request, may have from now on."""
        self.autoscaler: Autoscaler | None = None
        self.on_scaled: Callable[[], None] = lambda: None
        """Called when the number of instances has changed."""

    @property
    def most_batch(self) -> int:
        """The largest max_batch that it takes: what it was loaded with, or 1 where rows share no batch."""
        return self._most_batch

    @property
    def slo_s(self) -> float | None:
        return self._knobs.slo_s

    def state(self) -> dict[str, Any]:
        view = self._lane.view()
        return {
            "run": self._fleet.run,
            "knobs": {name: getattr(self._config, name) for name in live_knobs()},
            "arbitrated": self._knobs.arbitrated,
            "batching": self._batching,
            "padding": self._padding,
            "batch_limit_rows": view.batch_goal,
            "queued_requests": view.queued_requests,
            "queued_rows": view.queued_rows,
            "running_batches": view.running_batches,
            "instances": self._instances(view),
            "autoscale": None if self.autoscaler is None else self.autoscaler.state(),
        }

    def _instances(self, view: LaneView) -> list[dict[str, Any]]:
        """Every instance that is wanted; the lane knows more of those that are up."""
        up = {instance.name: msgspec.to_builtins(instance) for instance in view.instances}
        nothing = {"circuit": None, "in_flight": 0, "capacity": 0}
        return [{**place, **up.get(place["name"], nothing)} for place in self._roster.places()]

    def change(self, changes: Mapping[str, Any]) -> None:
        self._config = config = self.changed(changes)
        values = {name: getattr(config, name) for name in LaneSettings.__struct_fields__}
        self.turn_knobs(slo_s=config.slo_s, **values)
        if self.on_max_batch is not None and "max_batch" in changes:
            self.on_max_batch(config.max_batch)
        if self.autoscaler is not None and not BOUNDS.isdisjoint(changes):
            self.autoscaler.configure(min_instances=config.min_instances, max_instances=config.max_instances)

    def changed(self, changes: Mapping[str, Any]) -> ModelConfig:
        """What `change` would make of the configuration. Raises ConfigError."""
        changeable = live_knobs()
        for name in changes:
            if name not in changeable:
                near = difflib.get_close_matches(name, changeable, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"these can: {', '.join(changeable)}"
                raise ConfigError(f"'{name}' cannot be changed while the model runs; {hint}")
        config = with_values(self._config, changes)
        if config.max_batch > self._most_batch:
            raise ConfigError(f"max_batch {config.max_batch} is above {self._most_batch}, which the model was loaded with")
        return config

    def stop_batching(self, reason: str) -> None:
        """A row's answer is not its own: from now on requests run one by one."""
        self._batching = f"off: {reason}"
        self._most_batch = 1
        self._config = msgspec.structs.replace(self._config, max_batch=1)
        self.turn_knobs(max_batch=1)

    def stop_padding(self, reason: str) -> None:
        """A padded request's answer is not its own: from now on only requests of one length share a batch."""
        self._padding = f"off: {reason}"
        self.turn_knobs(max_padding=0.0)

    async def scale(self, count: int) -> None:
        """Run so many instances; returns when they are up, or gone. Raises ConfigError, also if one cannot be started.

        Autoscaling holds this number, until its bounds are changed.
        """
        check_instances(count)
        if self.autoscaler is None:
            await self.set_instances(count)
            return
        before = self.autoscaler.hold(count)
        try:
            await self.set_instances(count)
        except BaseException:
            self.autoscaler.release(before)
            raise

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
        if self.on_slo is not None:
            self.on_slo(self._knobs.slo_s)
