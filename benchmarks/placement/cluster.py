"""`dlproxy place`'s search beside the integer program: `python -m benchmarks.placement.cluster` (`--write` writes CLUSTER.md).

Clusters of 5 models on 4 nodes to 1,000 on 100, with room and tight, placed from nothing and again when a node is lost. Needs
scipy (extra: tune).
"""

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

from msgspec import Struct

from benchmarks.harness.options import minute, options_of, utc_now
from benchmarks.harness.running import run
from benchmarks.placement.fleets import size_of
from benchmarks.placement.page import where
from dlproxy.lab.tune.placement.cluster import solve_cluster
from dlproxy.lab.tune.placement.problem import PlacementError
from dlproxy.policy.placement.problem import Model, Node, Placement, Problem
from dlproxy.policy.placement.solve import solve

PAGE = Path(__file__).parent / "CLUSTER.md"
SIZES = ((5, 4), (20, 8), (60, 20), (200, 40), (1000, 100))
LOADS = {"room": 0.6, "tight": 0.9}  # of the memory and cores of all nodes are asked for, before replicas do not fit whole
HEAD = """| models x nodes | asked for | placed | search: cost | short | s | integer program: cost | no less than | short | s |
|---|---|---|---|---|---|---|---|---|---|"""
ABOUT = """A cost is in moves: a replica that is loaded costs 1, one that is missing 1,000, a model without any 10,000 more,
several replicas in one domain 100, load beyond 70 % of a node ten times the share ([guide](../../docs/guides/placement.md)).
`short`: replicas that found no place. `no less than`: what the integer program has proven of any placement."""


class Line(Struct):
    size: tuple[int, int]
    asked: str
    placed: str
    search: tuple[float, int, float]
    exact: tuple[float, float, int, float] | None

    def text(self) -> str:
        cost, short, seconds = self.search
        cells = ["{} x {}".format(*self.size), self.asked, self.placed, f"{cost:,.1f}", str(short), f"{seconds:.2f}"]
        if self.exact is None:
            return "| " + " | ".join([*cells, "nothing in time", "", "", ""]) + " |"
        cost, bound, short, seconds = self.exact
        return "| " + " | ".join([*cells, f"{cost:,.1f}", f"{bound:,.1f}", str(short), f"{seconds:.2f}"]) + " |"


def cluster(models: int, nodes: int, asked: float, seed: int) -> tuple[list[Model], list[Node]]:
    """Nodes of 16 to 64 GB, 8 or 16 cores, three domains, an accelerator on every third; models of one to three replicas."""
    chance = random.Random(f"{seed} {models} {nodes} {asked}")
    machines = [
        Node(
            name=f"node-{n}",
            has={"memory_mb": chance.choice([16e3, 32e3, 64e3]), "cores": 16, **({"npu": 4} if n % 3 == 0 else {})},
            capacity=chance.choice([8.0, 16.0]),
            domain=f"domain-{n % 3}",
        )
        for n in range(nodes)
    ]
    each = {kind: asked * sum(node.has.get(kind, 0.0) for node in machines) / models / 1.8 for kind in ("memory_mb", "cores")}
    busy = 0.5 * sum(node.capacity for node in machines) / models
    return [
        Model(
            name=f"model-{m}",
            takes={kind: round(chance.uniform(0.2, 1.8) * amount, 1) for kind, amount in each.items()}
            | ({"npu": chance.choice([0.25, 0.5, 1.0])} if chance.random() < 0.3 * nodes / models + 0.05 else {}),
            replicas=chance.choice([1, 1, 2, 2, 3]),
            load=chance.uniform(0.0, 2.0) * busy,
        )
        for m in range(models)
    ], machines


def measure(options: argparse.Namespace) -> Iterator[Line]:
    for size in options.size or SIZES:
        for asked, share in LOADS.items():
            models, nodes = cluster(*size, share, options.seed)
            before: Placement = {}
            for placed, up in (("from nothing", nodes), ("a node is lost", nodes[1:])):
                problem = Problem(models, up, before)
                began_at = perf_counter()
                found = solve(problem)
                search = (problem.cost(found), _short(problem, found), perf_counter() - began_at)
                assert not problem.violations(found)
                yield Line(size, asked, placed, search, _exact(problem, options.seconds))
                before = found


def _exact(problem: Problem, seconds: float) -> tuple[float, float, int, float] | None:
    began_at = perf_counter()
    try:
        found, bound = solve_cluster(problem, seconds=seconds)
    except PlacementError:
        return None
    assert not problem.violations(found)
    return problem.cost(found), bound, _short(problem, found), perf_counter() - began_at


def _short(problem: Problem, found: Placement) -> int:
    return sum(model.replicas - len(found[name]) for name, model in problem.models.items())


def measured(options: argparse.Namespace) -> None:
    lines = []
    for line in measure(options):
        print(line.text(), file=sys.stderr)
        lines.append(line.text())
    command = f"python -m benchmarks.placement.cluster --seconds {options.seconds:g} --seed {options.seed}"
    made = f"`{command}` on {minute(utc_now())}. Written by `--write`."
    page = "\n\n".join(["# Models on the nodes of a cluster", made, where(), ABOUT, "\n".join([HEAD, *lines])]) + "\n"
    print(page)
    if options.write:
        PAGE.write_text(page, "utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = options_of("placement.cluster", __doc__)
    parser.add_argument("--size", action="append", type=size_of, help="models x nodes, as 20x8; may be given several times")
    parser.add_argument("--seconds", type=float, default=60.0, help="that the integer program may take (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="of the clusters (default 1)")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    options = parser.parse_args(arguments)
    return run(lambda: measured(options))


if __name__ == "__main__":
    sys.exit(main())
