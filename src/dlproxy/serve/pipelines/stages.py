"""Steps that ask a model: which one that is now, whether it takes what the step gives it, and the requests that it gets.

Made by fleet.py. Not aware of: other steps, runs.
"""

import difflib
from collections.abc import Collection, Iterator, Sequence
from math import inf

from msgspec import Struct

from dlproxy.config.pipelines import StepConfig
from dlproxy.instance.runtime import ModelError
from dlproxy.message import InferenceError, Request, Tensor, TensorSpec
from dlproxy.policy.hops import VIA
from dlproxy.serve.traffic import BELOW
from dlproxy.service import Service
from dlproxy.wire.catalog import Catalog, ServedModel
from dlproxy.wire.checks import RequestChecker


class Bound(Struct, eq=False):
    """A model as it is served now. `inputs`: those that the step gives, `outputs`: those that are taken, with their places in
    `wanted`. `groups`: rows of several items may go in one request.
    """

    served: ServedModel
    service: Service
    checker: RequestChecker
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    wanted: tuple[int, ...]
    groups: bool


class ModelStage:
    """`names`: of the outputs that are taken. `bound`: the model, once `bind` was called."""

    bound: Bound

    def __init__(self, name: str, config: StepConfig, names: Collection[str]) -> None:
        self.name = name
        self.config = config
        self.names = tuple(names)
        model, colon, version = config.model.rpartition(":")
        self.model, self.version = (model, version) if colon else (config.model, "")

    def __str__(self) -> str:
        return f"model '{self.config.model}'"

    def found(self, catalog: Catalog) -> Bound:
        """The model as it is served now, not yet in use. Raises ModelError: it is not, or does not take what the step gives."""
        try:
            served = catalog.asked(self.model, self.version)
        except InferenceError as error:
            known = sorted({model.name for model in catalog})
            hint = f"; did you mean '{near[0]}'?" if (near := difflib.get_close_matches(self.model, known, n=1)) else ""
            hint = "" if self.model in known else hint
            raise ModelError(f"stage '{self.name}': {self} is not served: {error.failure.message}{hint}") from None
        signature = served.signature
        inputs = {spec.name: spec for spec in signature.inputs}
        outputs = {spec.name: place for place, spec in enumerate(signature.outputs)}
        self._check(self.config.inputs, inputs, "takes", "input")
        self._check(self.names, outputs, "gives", "output")
        lacking = [name for name, spec in inputs.items() if name not in self.config.inputs and spec.default is None]
        if lacking:
            raise ModelError(f"stage '{self.name}': {self} takes {', '.join(lacking)}, and the step does not say from where")
        wanted = tuple(outputs[name] for name in self.names)
        taken = tuple(signature.outputs[place] for place in wanted)
        return Bound(
            served,
            served.service,
            RequestChecker(served),
            tuple(spec for name, spec in inputs.items() if name in self.config.inputs),
            taken,
            wanted,
            signature.batched and all(spec.rows == 0 and not spec.counts for spec in taken),
        )

    def _check(self, names: Collection[str], known: Collection[str], does: str, what: str) -> None:
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"its {what}s are {', '.join(known)}"
                raise ModelError(f"stage '{self.name}': {self} {does} no {what} '{name}'; {hint}")

    def request(
        self, tensors: list[Tensor], of: Request, ids: Iterator[int], now: float, deadline_at: float, names: Sequence[int] = ()
    ) -> Request:
        """One under the terms of a request of the pipeline. Raises InferenceError(INVALID_ARGUMENT)."""
        bound, terms = self.bound, of.ticket
        ticket_id = next(ids) if terms.id >= 0 else BELOW - next(ids)
        request = bound.checker.request(
            tensors, names or bound.wanted, ticket_id=ticket_id, request_id=None, params=of.params, now=now
        )
        ticket = request.ticket
        ticket.deadline_at = deadline_at
        if terms.answer_by < inf:
            ticket.answer_by = terms.answer_by
            ticket.deadline_at = min(deadline_at, terms.answer_by)
        ticket.priority, ticket.tenant, ticket.once = terms.priority, terms.tenant, terms.once
        ticket.affinity = terms.affinity or (terms.tenant if bound.served.sticky == "tenant" else "")
        request.id, request.principal, request.trace, request.max_age_s = of.id, of.principal, of.trace, of.max_age_s
        request.charged = True
        if VIA in of.headers:
            request.headers = {VIA: of.headers[VIA]}
        return request
