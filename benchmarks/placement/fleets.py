"""The placement problems of the benchmark: random models on nodes of four kinds, from a seed; and how a size is
written. Called by __main__.py and cluster.py."""

import argparse
from math import exp, log

import numpy as np

from dlproxy.lab.tune.placement.problem import Model, Node, Problem

GIB = 1 << 30
LOAD = 0.5  # of all cores, if every model ran on cores of speed 1 at the target utilisation
KINDS = (
    {"cores": 8.0, "memory_bytes": 32 * GIB},
    {"cores": 16.0, "memory_bytes": 64 * GIB, "speed": 1.3},
    {"cores": 32.0, "memory_bytes": 64 * GIB, "speed": 0.8},
    {"cores": 16.0, "memory_bytes": 64 * GIB, "accelerators": 2.0, "accelerator_speed": 8.0},
)
SIZES = ((5, 5), (20, 10), (60, 20), (150, 40))


def size_of(text: str) -> tuple[int, int]:
    """Of an option. Raises ArgumentTypeError."""
    models, _, nodes = text.partition("x")
    if not (models.isdigit() and nodes.isdigit() and int(models) and int(nodes)):
        raise argparse.ArgumentTypeError(f"'{text}' is no size; write models x nodes like 20x10")
    return int(models), int(nodes)


def fleet(models: int, nodes: int, seed: int) -> Problem:
    """Models of 1 to 40 ms a row, objectives of 4 to 20 rows' time, 0.2 to 8 GiB; shares of the load are Dirichlet(1)."""
    random = np.random.default_rng((seed, models, nodes))
    machines = [Node(name=f"node-{n}", **KINDS[n % len(KINDS)]) for n in range(nodes)]
    cores = sum(node.cores for node in machines)
    reference = Node(name="reference", cores=64.0, memory_bytes=64 * GIB)
    made = []
    for m, share in enumerate(random.dirichlet(np.ones(models))):
        row_s, overhead = exp(random.uniform(log(1e-3), log(40e-3))), random.uniform(0.1, 0.9)
        model = Model(
            name=f"model-{m}",
            rate=1e9,
            base_s=row_s * overhead,
            row_s=row_s * (1.0 - overhead),
            slo_s=row_s * random.uniform(4.0, 20.0),
            memory_bytes=int(random.uniform(0.2, 8.0) * GIB),
            most_copies=20,
            cores=float(random.choice([1, 2, 4])),
            accelerators=float(random.choice([0.0, 0.25, 0.5, 1.0])),
        )
        usable = float(Problem([model], [reference]).usable[0, 0])
        rate = max(1.0, float(share) * LOAD * cores / model.cores * usable)
        made.append(Model(**{name: getattr(model, name) for name in model.__struct_fields__} | {"rate": rate}))
    return Problem(made, machines)
