"""Who proposes changes of knobs: the configuration's policy, beside it a challenger; either may be a file, which is followed.

Made by serve/models.py, asked by host.py for a policy of each model. Not aware of: models, what the policies decide.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from dlproxy.autopilot.learnt import Learnt, Network, read_agent
from dlproxy.config import ConfigError
from dlproxy.config.paths import NETWORK, is_network
from dlproxy.instance.integrity import Trust
from dlproxy.instance.runtime import ModelError
from dlproxy.policy.tuning import KNOB_POLICIES, make_knob_policy
from dlproxy.policy.tuning.duel import Duel, Side

log = logging.getLogger(__name__)

MakeSide = Callable[[], Side]
_Stamp = tuple[int, int]  # time of the last change, bytes


class Agents:
    """`policy`, `challenger`: as in [autopilot]; no challenger if that is empty. A policy is made for each model."""

    def __init__(self, policy: str, challenger: str, trust: Trust) -> None:
        """Raises ConfigError."""
        self._trust = trust
        self._readings: dict[str, int] = {}
        self._stamps: dict[str, _Stamp | None] = {}
        self._champion = self._found("policy", policy)
        self._challenger: MakeSide | None = self._found("challenger", challenger) if challenger else None

    def make(self) -> Duel:
        """For one model."""
        return Duel(self._champion(), None if self._challenger is None else self._challenger())

    def read(self, name: str) -> MakeSide | None:
        """What makes this policy; nothing for an empty name. Takes a moment, on any thread. Raises ConfigError, ModelError."""
        return self._side(name) if name else None

    def enter(self, challenger: MakeSide | None) -> None:
        """Of all models that come from now on."""
        self._challenger = challenger

    def changed(self) -> list[MakeSide]:
        """Files that are others than when they were read: each read again, as a challenger. On any thread."""
        found = []
        for path, stamp in list(self._stamps.items()):
            now = _stamp(path)
            if now is None or now == stamp:
                continue
            self._stamps[path] = now
            try:
                found.append(self._side(path))
            except ModelError as error:
                log.error("the agent stays as it was: %s", error)
        return found

    def _found(self, knob: str, name: str) -> MakeSide:
        try:
            return self._side(name)
        except (ConfigError, ModelError) as error:
            raise ConfigError(f"[autopilot] {knob}: {error}") from None

    def _side(self, name: str) -> MakeSide:
        if name in KNOB_POLICIES:
            return lambda: Side(name, make_knob_policy(name))
        if not is_network(name):
            raise ConfigError(f"there is no policy '{name}': give {', '.join(KNOB_POLICIES)}, or an agent's file ({NETWORK})")
        stamp = _stamp(name)  # before it is read: what changes meanwhile is read again
        network: Network = read_agent(name, self._trust)
        self._stamps[name] = stamp
        self._readings[name] = number = self._readings.get(name, 0) + 1
        shown = network.name if number == 1 else f"{network.name} ({number})"
        return lambda: Side(shown, Learnt(network))


def _stamp(path: str) -> _Stamp | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
