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
        str,
        _knob(
            "what proposes changes: rules (on a queueing model), bandit (a contextual one) or climb (hill climbing), or the "
            "file of an agent that was trained (.onnx)"
        ),
    ] = "rules"
    watch: Annotated[
        str,
        _knob(
            "what tells that something is unusual with a model, and holds its autopilot meanwhile: off, charts (control "
            "charts), or the file of a network that was trained for it"
        ),
    ] = "off"
    challenger: Annotated[
        str,
        _knob(
            "what is asked beside it, first without effect and then in turns, and takes its place if it is better: as policy; "
            "empty: nothing"
        ),
    ] = ""
    record: Annotated[
        str,
        _knob(
            "folder for what each tuned model was seen to do under which knobs, to train agents on; empty: nothing is written"
        ),
    ] = ""
