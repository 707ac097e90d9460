"""What a lane looks like at one moment, for whoever asks: the control port, metrics, reports, the simulator, tests.

Made by Lane.view(). Not aware of: how the lane decides.
"""

from typing import Literal

from msgspec import Struct

from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.pool import InstanceState

WaitsFor = Literal["nothing", "start", "instance", "turn", "fill", "other_instance"]
"""Why the oldest request does not run yet: none waits; no instance is up; all are busy; the arbiter; a fuller batch; only
instances are idle that are slow or have failed it."""


class LaneView(Struct, frozen=True):
    """`second_runs`: requests that wait to run again. `batch_limit`: rows of a batch now, `batch_goal`: what the limit aims at.
    `request_limit`: what the adaptive limit lets be under way, None where it is off. `asleep`: no instance is up, and the next
    request has one started. `closing`: why the model goes, if it does.
    """

    queued_requests: int
    queued_rows: int
    second_runs: int
    running_batches: int
    running_requests: int
    batch_limit: int
    batch_goal: int
    request_limit: int | None
    instances: list[InstanceState]
    asleep: bool
    waits_for: WaitsFor
    closing: str
    knobs: LaneKnobs


def why_waiting(*, waiting: bool, up: bool, ready: bool, wants_turn: bool, fills: bool) -> WaitsFor:
    """The first of the reasons that holds."""
    if not waiting:
        return "nothing"
    if not up:
        return "start"
    if not ready:
        return "instance"
    if wants_turn:
        return "turn"
    return "fill" if fills else "other_instance"
