"""The table's rows for whatever tunes the models of a server. Taken in by knobs.py; not aware of: models."""

from typing import Annotated, Literal

from msgspec import Struct

from dlproxy.config.traits import knob as _knob


class AutopilotConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[autopilot]: whether dlproxy tunes what its models leave open, to meet their objectives."""

    mode: Annotated[
        Literal["off", "advise", "on"],
        _knob("off: it measures nothing; advise: it says what it would change, and changes nothing; on: it changes it"),
    ] = "off"
    policy: Annotated[
        Literal["rules", "bandit", "climb"],
        _knob("what proposes changes: rules on a queueing model, a contextual bandit, or hill climbing, for comparison"),
    ] = "rules"
    watch: Annotated[
        str,
        _knob(
            "what tells that something is unusual with a model, and holds its autopilot meanwhile: off, charts (control "
            "charts), or the file of a network that was trained for it"
        ),
    ] = "off"
