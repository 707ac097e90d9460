"""The knobs of a model that runs on a Ray cluster, for the table in knobs.py. Not aware of: other knobs.

fleet/ray.py says what they mean.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal

from dlproxy.config.traits import Only, knob
from dlproxy.config.values import ConfigError


def check_ray(address: str, resources: Mapping[str, float]) -> None:
    """Raises ConfigError for what is no address of a cluster, and amounts that nobody can have."""
    for name, amount in resources.items():
        if not amount > 0.0 or name in ("CPU", "GPU"):
            instead = f"is above 0, not {amount:g}" if name not in ("CPU", "GPU") else f"is ray_{name.lower()}s"
            raise ConfigError(f"ray_resources.{name} {instead}", "ray_resources")
    if address not in ("auto", "local") and not re.fullmatch(r"[^\s/@]+:[0-9]{1,5}", address):
        hint = ", and the server runs on one of its nodes" if address.startswith("ray:") else ""
        said = "it takes HOST:PORT of the cluster's head, such as 10.0.0.1:6379, local, or auto"
        raise ConfigError(f"ray_address = {address!r} is not understood; {said}{hint}", "ray_address")


_loaded = partial(knob, cost="reload", only=(Only("run", ("ray",)),))

Address = Annotated[
    str,
    _loaded(
        "the Ray cluster: HOST:PORT; local: one of the server's own; auto: as RAY_ADDRESS says, else one that runs on this "
        "machine, else one of its own"
    ),
]
Cpus = Annotated[float, _loaded("CPUs of a Ray node that each instance takes", unit="cores", ge=0, le=4096)]
Gpus = Annotated[float, _loaded("GPUs of a Ray node that each instance takes; 0.5: two share one", ge=0, le=64)]
Resources = Annotated[
    dict[str, float],
    _loaded("other resources of a Ray node that each instance takes, by their names, as {tpu = 1}"),
]
Placement = Annotated[
    Literal["spread", "pack", "strict-spread", "strict-pack"],
    _loaded("on many Ray nodes or on few; strict: a placement group for all instances, each on another node, or all on one"),
]
