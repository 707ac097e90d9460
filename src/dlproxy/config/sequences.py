"""The knobs of a model whose requests belong to sequences, for the table in knobs.py. Not aware of: other knobs.

serve/states.py says what they mean for a model, policy/sequences.py what for its requests.
"""

from functools import partial
from typing import Annotated, Literal

from dlproxy.config.traits import Only, knob

_loaded = partial(knob, cost="reload")
_live = partial(knob, cost="nothing")
_STATEFUL = Only("sequences", but=("off",))

Sequences = Annotated[
    Literal["off", "oldest", "direct"],
    _loaded(
        "whether requests belong to sequences, whose state is kept between them; oldest: the one that has waited longest "
        "is next; direct: each has a place of its own while it lasts, where the model itself keeps the state",
        only=(Only("run", but=("pipeline",)),),
    ),
]
State = Annotated[
    dict[str, str],
    _loaded(
        'inputs that hold the state of a sequence, each with the output that is its next value, as {state = "stateN"}: the '
        "server keeps them, and clients do not see them",
        only=(_STATEFUL,),
    ),
]
InitialState = Annotated[
    dict[str, str],
    _loaded(
        'sizes of the zeros that a sequence begins with, where the model leaves some open, as {past = "FP32[1,4,0,64]"}',
        only=(_STATEFUL,),
    ),
]
Controls = Annotated[
    dict[str, str],
    _loaded(
        'inputs that the server fills, by what they tell: start, end, ready (1 or 0) and id, as {start = "START"}',
        only=(_STATEFUL,),
    ),
]
IdleSeconds = Annotated[
    float,
    _live(
        "seconds without a request after which a sequence is forgotten",
        unit="s",
        log=True,
        only=(_STATEFUL,),
        gt=0,
        le=864000,
    ),
]
MostSequences = Annotated[
    int,
    _live("sequences that are kept; one more is refused", log=True, only=(_STATEFUL,), ge=1, le=1 << 24),
]
