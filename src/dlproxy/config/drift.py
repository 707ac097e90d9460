"""The knob of what is compared with how it was at first, for the table in knobs.py. Not aware of: other knobs.

serve/drift.py does it.
"""

from typing import Annotated, Literal

from dlproxy.config.traits import knob

Drift = Annotated[
    Literal["off", "on"],
    knob(
        "whether samples of what comes and what is answered are compared with the first ones, to tell when they drift",
        cost="reload",
    ),
]
