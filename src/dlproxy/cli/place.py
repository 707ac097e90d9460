"""`dlproxy place`: models on the nodes of a cluster, where there is room for them, and again when load or nodes change.

Not aware of: where a model should be (policy/placement), how nodes are watched (cluster.py).
"""

import argparse
from pathlib import Path
from queue import Empty
from time import monotonic
from typing import TYPE_CHECKING

from dlproxy.cli.credentials import Credentials, add_credentials, credentials_of
from dlproxy.cli.terminal import FAILED, INTERRUPTED, OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from dlproxy.cli.cluster import Operator, Solve
    from dlproxy.cli.told import ModelState
    from dlproxy.config.cluster import ClusterConfig, PlacedConfig
    from dlproxy.policy.placement.problem import Placement, Problem

EXACT_PAIRS = 2_000  # models times nodes for which the optimum is looked for, where scipy is installed
EXACT_S = 2.0


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    place = commands.add_parser(
        "place",
        help="load models on the nodes of a cluster, where there is room",
        description="Watch the control ports of several servers, and load and unload models there, so that each is served "
        "where there is room for it. The servers need it for nothing else: when it ends, they serve on.",
    )
    place.add_argument("--config", type=Path, required=True, metavar="FILE", help="cluster.toml: the nodes and the models")
    how = place.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="end when nothing is left to do (default)")
    how.add_argument("--follow", action="store_true", help="go on, and do again what load or nodes ask for")
    how.add_argument("--dry-run", action="store_true", help="only say what would be done first")
    add_credentials(place)
    place.set_defaults(command=_place)


def _place(args: argparse.Namespace) -> int:
    from dlproxy.cli.cluster import Operator
    from dlproxy.cli.control_port import ControlError
    from dlproxy.config import ConfigError
    from dlproxy.config.cluster import load_cluster

    try:
        cluster = load_cluster(args.config)
        ports = {name: Port(name, node.control, credentials_of(args)) for name, node in cluster.nodes.items()}
    except (ConfigError, ControlError) as error:
        complain(str(error))
        return USER_ERROR
    patience_s = None if args.follow else 0.0
    operator = Operator(cluster, ports, solver(), say, patience_s=patience_s, dry=args.dry_run)
    try:
        if args.follow:
            _follow(operator, cluster)
        return _once(operator, cluster, dry=args.dry_run)
    except KeyboardInterrupt:
        complain("interrupted; the nodes serve on, and end what they have begun")
        return INTERRUPTED


def _once(operator: "Operator", cluster: "ClusterConfig", *, dry: bool) -> int:
    """Until nothing is left to do."""
    while True:
        found = operator.round(monotonic())
        if dry or not found.under_way:
            break
        operator.done.put(operator.done.get())  # wait for the first that ends, and leave it to the next round
    for line in shown(found.target):
        say(line)
    return FAILED if found.lacks or found.silent else OK


def _follow(operator: "Operator", cluster: "ClusterConfig") -> None:
    """Until it is interrupted."""
    while True:
        operator.round(monotonic())
        try:
            operator.done.put(operator.done.get(timeout=cluster.place.every_s))
        except Empty:
            continue


def shown(target: "Placement") -> list[str]:
    """A line for each model."""
    width = max(map(len, target), default=0)
    return [f"{name:<{width}}  {', '.join(sorted(nodes)) or 'nowhere'}" for name, nodes in sorted(target.items())]


def solver() -> "Solve":
    """The search; where scipy is installed and the cluster is small, the better of it and the integer program."""
    from importlib.util import find_spec

    from dlproxy.policy.placement.solve import solve

    if find_spec("scipy") is None:
        return solve

    def better(problem: "Problem") -> "Placement":
        found = solve(problem)
        if not problem.cost(found) or len(problem.models) * len(problem.nodes) > EXACT_PAIRS:
            return found
        from dlproxy.lab.tune.placement.cluster import solve_cluster
        from dlproxy.lab.tune.placement.problem import PlacementError

        try:
            exact, _ = solve_cluster(problem, seconds=EXACT_S)
        except PlacementError:  # it found nothing in time
            return found
        return min(found, exact, key=problem.cost)

    return better


class Port:
    """A node's control port. Raises ControlError, also for a URL that is none."""

    def __init__(self, name: str, url: str, asks: Credentials) -> None:
        from dlproxy.cli.control_port import ControlError, ControlPort

        try:
            self._port = ControlPort(url, asks)
        except ControlError as error:
            raise ControlError(f"nodes.{name}: {str(error).removeprefix('--')}") from None

    def models(self) -> "list[ModelState]":
        return self._port.states(self._port.models())

    def cores(self) -> float:
        return float(self._port.dashboard()["server"]["cores"])

    def load(self, model: str, wanted: "PlacedConfig") -> None:
        self._port.act(model, "load", {"path": wanted.path, "config": wanted.config})

    def unload(self, model: str) -> None:
        self._port.act(model, "unload", {})
