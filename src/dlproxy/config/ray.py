"""The knobs of a model that runs on a Ray cluster, for the table in knobs.py. Not aware of: other knobs.

fleet/ray.py says what they mean.
"""

from functools import partial
from typing import Annotated, Literal

from msgspec import Meta

from dlproxy.config.traits import Only, knob

_loaded = partial(knob, cost="reload", only=(Only("run", ("ray",)),))

Address = Annotated[
    str,
    _loaded(
        "the Ray cluster: HOST:PORT; local: one of the server's own; auto: as RAY_ADDRESS says, else one that runs on this "
        "machine, else one of its own",
        pattern=r"^(auto|local|[^\s/@]+:[0-9]{1,5})$",
    ),
]
Cpus = Annotated[float, _loaded("CPUs of a Ray node that each instance takes", unit="cores", ge=0, le=4096)]
Gpus = Annotated[float, _loaded("GPUs of a Ray node that each instance takes; 0.5: two share one", ge=0, le=64)]
Resources = Annotated[
    dict[str, Annotated[float, Meta(gt=0)]],
    _loaded("other resources of a Ray node that each instance takes, by their names, as {tpu = 1}"),
]
Placement = Annotated[
    Literal["spread", "pack", "strict-spread", "strict-pack"],
    _loaded("on many Ray nodes or on few; strict: a placement group for all instances, each on another node, or all on one"),
]
