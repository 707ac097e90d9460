"""Triton's sequence batching as the knobs of sequences: which inputs are the state, and what the server fills.

Called by triton_config.py. Not aware of: files, the model itself.
"""

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from dlproxy.config import ConfigError, ModelConfig

IDLE_S = 1.0  # Triton's own, where nothing is said
_MOST_IDLE_S, _MOST_SEQUENCES, _MOST_WAIT_S = 864_000.0, 1 << 24, 60.0  # the ranges of the knobs
_KINDS = {
    "CONTROL_SEQUENCE_START": "start",
    "CONTROL_SEQUENCE_END": "end",
    "CONTROL_SEQUENCE_READY": "ready",
    "CONTROL_SEQUENCE_CORRID": "id",
}


class InitialState(Struct, frozen=True):
    name: str = ""
    data_type: str = "TYPE_INVALID"
    dims: tuple[int, ...] = ()
    zero_data: bool = False
    data_file: str = ""


class State(Struct, frozen=True):
    input_name: str = ""
    output_name: str = ""
    data_type: str = "TYPE_INVALID"
    dims: tuple[int, ...] = ()
    initial_state: tuple[InitialState, ...] = ()


class Control(Struct, frozen=True):
    kind: str = "CONTROL_SEQUENCE_START"
    int32_false_true: tuple[int, ...] = ()
    fp32_false_true: tuple[float, ...] = ()
    bool_false_true: tuple[bool, ...] = ()
    data_type: str = "TYPE_INVALID"

    @property
    def type(self) -> str:
        """Of the input."""
        told = {"INT32": self.int32_false_true, "FP32": self.fp32_false_true, "BOOL": self.bool_false_true}
        return next((f"TYPE_{name}" for name, values in told.items() if values), self.data_type)


class ControlInput(Struct, frozen=True):
    name: str = ""
    control: tuple[Control, ...] = ()


class Direct(Struct, frozen=True):
    max_queue_delay_microseconds: int = 0


class Oldest(Struct, frozen=True):
    max_candidate_sequences: int = 0
    max_queue_delay_microseconds: int = 0


class Sequencing(Struct, frozen=True):
    max_sequence_idle_microseconds: int = 0
    control_input: tuple[ControlInput, ...] = ()
    state: tuple[State, ...] = ()
    iterative_sequence: bool = False
    direct: Direct | None = None
    oldest: Oldest | None = None


def sequence_knobs(sequencing: Sequencing, *, batched: bool, ignored: list[str]) -> dict[str, Any]:
    """`batched`: requests have rows. `ignored` gets what has no effect. Raises ConfigError for what cannot be told a model."""
    if sequencing.iterative_sequence:
        raise ConfigError("it has an iterative_sequence, which asks its model again and again, and dlproxy does not")
    oldest = sequencing.oldest or Oldest()
    strategy = oldest if sequencing.oldest is not None else sequencing.direct or Direct()
    knobs: dict[str, Any] = {
        "sequences": "direct" if sequencing.oldest is None else "oldest",
        "sequence_idle_s": min(sequencing.max_sequence_idle_microseconds / 1e6 or IDLE_S, _MOST_IDLE_S),
        "sequence_controls": dict(_controls(sequencing)),
        "state": {one.input_name: one.output_name for one in sequencing.state},
        "initial_state": {one.input_name: found for one in sequencing.state if (found := _first(one, batched=batched))},
    }
    if batched:
        knobs["max_wait_s"] = min(strategy.max_queue_delay_microseconds / 1e6, _MOST_WAIT_S)
    if len(knobs["state"]) < len(sequencing.state):
        raise ConfigError("two states have one input_name")
    default = ModelConfig(path="").max_sequences
    if oldest.max_candidate_sequences > default:
        knobs["max_sequences"] = min(oldest.max_candidate_sequences, _MOST_SEQUENCES)
    elif oldest.max_candidate_sequences:
        ignored.append(f"max_candidate_sequences (up to {default} sequences are kept, none waits for another to end)")
    return knobs


def filled(sequencing: Sequencing) -> tuple[list[tuple[str, str, tuple[int, ...]]], list[tuple[str, str, tuple[int, ...]]]]:
    """Inputs and outputs of the model that the configuration has here and nowhere else: name, type, sizes without the rows."""
    states = [(one.data_type, one.dims, one.input_name, one.output_name) for one in sequencing.state]
    controls = [(one.name, one.control[0].type, (1,)) for one in sequencing.control_input if one.control]
    return (
        [*controls, *((taken, kind, dims) for kind, dims, taken, _ in states)],
        [(given, kind, dims) for kind, dims, _, given in states],
    )


def _controls(sequencing: Sequencing) -> Iterator[tuple[str, str]]:
    """What is told, and the input that it is told in."""
    told: dict[str, str] = {}
    for one in sequencing.control_input:
        if len(one.control) != 1:
            raise ConfigError(f"control_input '{one.name}' has {len(one.control)} controls; dlproxy fills an input with one")
        (control,) = one.control
        what = _KINDS[control.kind]
        if what in told:
            raise ConfigError(f"control_input '{one.name}' tells what '{told[what]}' tells, too: {control.kind}")
        values = control.int32_false_true or control.fp32_false_true or control.bool_false_true
        if what != "id" and (len(values) != 2 or values[1] != 1 or (values[0] != 0 and what != "ready")):  # never unready
            raise ConfigError(f"control_input '{one.name}' tells {list(values)} for false and true; dlproxy tells 0 and 1")
        told[what] = one.name
        yield what, one.name


def _first(state: State, *, batched: bool) -> str:
    """What a sequence begins with, where the configuration says how large that is."""
    if any(one.data_file for one in state.initial_state):
        raise ConfigError(f"the initial_state of '{state.input_name}' is a file; here it is zeros")
    dims = state.initial_state[0].dims if state.initial_state else state.dims
    if -1 in dims or state.data_type == State().data_type:
        return ""
    sizes = ",".join(map(str, (*([1] if batched else []), *dims)))
    return f"{state.data_type.removeprefix('TYPE_').replace('STRING', 'BYTES')}[{sizes}]"
