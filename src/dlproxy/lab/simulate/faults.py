"""Faults of a simulation: an instance slows down, dies and comes back, or fails fast, at given times.

Written like `slow:node=node-0,at=10,for=30,factor=12`. Called by lab/simulate/run.py. Not aware of: why things break.
"""

from math import inf
from typing import Literal

from msgspec import Struct

from dlproxy.lab.simulate.engine import Node, SimulatedModel, Simulation
from dlproxy.lab.simulate.instance import SimulatedInstance

Kind = Literal["slow", "die", "fail"]
EXAMPLES = (
    "slow:node=node-0,at=10,for=30,factor=12; die:node=node-0,instance=digits-0,at=10,for=5; fail:node=node-1,at=10,for=30"
)


class FaultError(ValueError):
    """A fault that is not understood or names what does not exist."""


class Fault(Struct, frozen=True, kw_only=True):
    """One fault. `instance`: empty for every one of the node's. Seconds from the start of the run; `for_s` may be infinite.

    slow: batches take `factor` times as long. die: the instance is lost and comes up again. fail: batches end with an
    error after `after_s`.
    """

    text: str = ""
    kind: Kind
    node: str
    instance: str = ""
    at_s: float = 0.0
    for_s: float = inf
    factor: float = 10.0
    after_s: float = 0.001


_OPTIONS = {"at": "at_s", "for": "for_s", "factor": "factor", "after": "after_s"}
_OF_ONE_KIND = {"factor": "slow", "after": "fail"}


def parse(text: str) -> Fault:
    """A fault from its description. Raises FaultError."""
    kind, _, rest = text.partition(":")
    if kind not in ("slow", "die", "fail"):
        raise FaultError(f"fault '{text}': there is no kind '{kind}'; choose slow, die or fail, for example {EXAMPLES}")
    names: dict[str, str] = {}
    numbers: dict[str, float] = {}
    for part in filter(None, rest.split(",")):
        name, _, value = part.partition("=")
        if name in ("node", "instance"):
            names[name] = value
        elif _OF_ONE_KIND.get(name, kind) != kind:
            raise FaultError(f"fault '{text}': {name} only has a meaning with {_OF_ONE_KIND[name]}")
        elif name in _OPTIONS:
            try:
                numbers[_OPTIONS[name]] = float(value)
            except ValueError:
                raise FaultError(f"fault '{text}': {name} takes a number, not '{value}'") from None
            number = numbers[_OPTIONS[name]]
            if not number >= 0.0 or (number == inf and name != "for"):
                raise FaultError(f"fault '{text}': {name} must be 0 or more, not '{value}'")
        else:
            raise FaultError(f"fault '{text}': there is no option '{name}'; choose from node, instance, {', '.join(_OPTIONS)}")
    if not names.get("node"):
        raise FaultError(f"fault '{text}' must name a node, such as node=node-0")
    return Fault(text=text, kind=kind, node=names["node"], instance=names.get("instance", ""), **numbers)  # type: ignore[arg-type]


def plan_fault(simulation: Simulation, fault: Fault) -> None:
    """Put the fault's beginning and end on the simulation's heap.

    Raises FaultError for an unknown node or instance, and for a second fault of a kind while the first one lasts.
    """
    node = simulation.nodes.get(fault.node)
    if node is None:
        names = list(simulation.nodes)
        known = names[0] + (f" to {names[-1]}" if len(names) > 1 else "")
        raise FaultError(f"there is no node '{fault.node}'; the nodes are {known}")
    instances = [(model, instance) for model in node.models.values() for instance in model.instances.values()]
    hit = [(model, instance) for model, instance in instances if fault.instance in ("", instance.name)]
    if not hit:
        known = ", ".join(instance.name for _, instance in instances)
        raise FaultError(f"there is no instance '{fault.instance}' on {fault.node}; its instances are {known}")
    for model, instance in hit:
        _reserve(fault, instance)
        effect = _Effect(fault, node, model, instance)
        simulation.heap.at(fault.at_s, effect.begin, None)
        if fault.for_s != inf:
            simulation.heap.at(fault.at_s + fault.for_s, effect.end, None)


def _reserve(fault: Fault, instance: SimulatedInstance) -> None:
    end_s = fault.at_s + fault.for_s
    for kind, other_at_s, other_end_s in instance.planned_faults:
        if kind == fault.kind and fault.at_s <= other_end_s and other_at_s <= end_s:
            raise FaultError(
                f"fault '{fault.text}': another '{kind}' on {instance.name} lasts from {other_at_s:g} to {other_end_s:g} s; "
                "let one end before the next begins"
            )
    instance.planned_faults.append((fault.kind, fault.at_s, end_s))


class _Effect(Struct):
    """A fault on one instance."""

    fault: Fault
    node: Node
    model: SimulatedModel
    instance: SimulatedInstance

    def begin(self, _: None, now: float) -> None:
        if self.fault.kind == "slow":
            self.instance.slowed_by = self.fault.factor
        elif self.fault.kind == "fail":
            self.instance.fails_after_s = self.fault.after_s
        else:
            self.node.lose(self.model, self.instance, now, returns=self.fault.for_s != inf)

    def end(self, _: None, now: float) -> None:
        if self.fault.kind == "slow":
            self.instance.slowed_by = 1.0
        elif self.fault.kind == "fail":
            self.instance.fails_after_s = None
        else:
            self.node.revive(self.model, self.instance, now)
