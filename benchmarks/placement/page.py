"""RESULTS.md and the table of a run: quality against the best bound, and when it was reached. Called by __main__.py
and, for the machine, cluster.py."""

import importlib.metadata

from msgspec import Struct

from benchmarks.harness.machine import describe_machine
from benchmarks.harness.processes import Cores
from dlproxy.lab.tune.placement.evaluate import MeanResponse, Utilisation
from dlproxy.lab.tune.placement.search import Solution

OBJECTIVES = {"response": MeanResponse, "utilisation": Utilisation}
NEAR = 1.01  # of its own final cost: when a search was as good as done
COLUMNS = (
    "models x nodes",
    "solver",
    "cost / bound",
    "mean response",
    "served",
    "cores held",
    "status",
    "seconds",
    "near after",
)
HEAD = "| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|"
ABOUT = """`cost / bound` is the placement's cost over the best bound that the exact solver proved for that problem (its dual
bound): 1.000 cannot be improved, 1.100 is at most 10 % worse than the best. All costs come from one evaluator. `response`
minimises the mean seconds from arrival to answer, `utilisation` the cores that serve the demand; a placement that leaves
demand unserved pays for it ([guide](../../docs/guides/placement.md)). `near after`: when a search was within 1 % of what it
ended with; the exact solver does not say. One run, one seed: a few percent between searches are not a ranking."""


class Line(Struct):
    """One solver on one problem."""

    size: tuple[int, int]
    objective: str
    solver: str
    ratio: float
    response_s: float
    served: float
    cores: float
    status: str
    seconds: float
    near_s: float

    @classmethod
    def of(cls, size: tuple[int, int], objective: str, solver: str, solution: Solution, bound: float) -> "Line":
        found = solution.placement.evaluation
        assert not found.violations, found.violations
        near_s = next(step.seconds for step in solution.history if step.cost <= NEAR * found.cost)
        return cls(
            size=size,
            objective=objective,
            solver=solver,
            ratio=found.cost / bound,
            response_s=found.response_s,
            served=found.served_share,
            cores=found.cores_share,
            status=solution.status,
            seconds=solution.seconds,
            near_s=near_s,
        )

    def cells(self) -> list[str]:
        near = "" if self.solver == "exact" else f"{self.near_s:.2f} s"
        return [
            "{} x {}".format(*self.size),
            self.solver,
            f"{self.ratio:.3f}",
            f"{self.response_s * 1e3:.2f} ms",
            f"{self.served:.2%}",
            f"{self.cores:.1%}",
            self.status,
            f"{self.seconds:.2f}",
            near,
        ]

    def text(self) -> str:
        return "  ".join([self.objective, *self.cells()])


def as_table(lines: list[Line]) -> str:
    parts = []
    for objective in OBJECTIVES:
        chosen = [line for line in lines if line.objective == objective]
        rows = ["| " + " | ".join(line.cells()) + " |" for line in chosen]
        parts.append("\n".join([f"## Objective: {objective}", "", HEAD, *rows]))
    return "\n\n".join(parts)


def where() -> str:
    """The machine, and what solves."""
    machine = describe_machine(Cores(None, None))
    versions = [f"Python {machine['python']}", *(f"{name} {importlib.metadata.version(name)}" for name in ("scipy", "numpy"))]
    cores = f"{machine['cores']} cores (load average {machine['load_average'][0]:.1f} at the end)"
    return f"{machine['cpu']}, {cores}; {', '.join(versions)}."


def page(lines: list[Line], *, date: str, command: str) -> str:
    head = ["# Placement: solvers beside each other", "", f"`{command}` on {date}. Written by `--write`."]
    return "\n".join([*head, "", where(), "", ABOUT, "", as_table(lines)]) + "\n"
