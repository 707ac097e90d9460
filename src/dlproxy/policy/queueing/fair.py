"""Fair queueing: the tenants that have something waiting share the model by weight, whatever each of them asks for.

Made by make_queue() in this package, called by policy/lane.py. Not aware of: who a tenant is, quotas.
"""

from math import inf

from dlproxy.message import Ticket
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing.protocol import Cost
from dlproxy.policy.queueing.ranked import RankedQueue
from dlproxy.policy.queueing.work import elements

MAX_ACCOUNTS = 1024  # tenants told apart at a time, besides those with a weight of their own; about 100 KB


class FairQueue(RankedQueue):
    """Start-time fair queueing over tenants (Goyal, Vin and Cheng 1996).

    A ticket's start tag is its rank: the virtual time, or where the tenant's last ticket finishes if that is later; it
    finishes cost / weight after its start. Virtual time is the start tag of what was served last, so a tenant that comes
    back from a pause has no credit. While two tenants have tickets waiting, what they got served (cost / weight) differs by
    at most the cost / weight of one ticket of each (their fairness theorem), for tickets of one shape.

    A tenant is charged for what is served: taking a ticket out gives its cost back, else one whose requests time out would
    be pushed back further by each of them. What comes afterwards fills the gap, so within a tenant FCFS then holds no more.

    A tenant is forgotten once virtual time has passed its finish tag, which then says nothing. Those beyond MAX_ACCOUNTS
    share one account, or an endless row of new tenants would keep everybody else waiting (and fill the memory).
    """

    def __init__(self, knobs: LaneKnobs, cost_s: Cost, line_s: Cost = elements) -> None:
        super().__init__(line_s)
        self._weights = knobs.tenant_weights
        self._cost_s = cost_s
        self._virtual = 0.0
        self._finish: dict[str | None, float] = {}  # by account; None is the one that those beyond MAX_ACCOUNTS share
        self._forgot_at = -inf  # in virtual time

    def push(self, ticket: Ticket, now: float) -> None:
        if len(self._finish) >= MAX_ACCOUNTS:
            self._forget()
        super().push(ticket, now)
        self._finish[self._account(ticket)] = self._entries[ticket.id][0] + self._charge(ticket)

    def _take(self, shape_key: tuple[int, ...], rows: int, *, larger: bool) -> list[Ticket]:
        taken = super()._take(shape_key, rows, larger=larger)
        if self._heads:  # of another shape something with a lower tag may wait yet
            self._virtual = max(self._virtual, min(self._served_rank, self._heads[0][0]))
        else:
            self._forget_all()
        return taken

    def remove(self, ticket_id: int) -> Ticket | None:
        ticket = super().remove(ticket_id)
        if ticket is None:
            return None
        if self._heads:
            account = self._account(ticket)
            if account in self._finish:
                self._finish[account] -= self._charge(ticket)
        else:
            self._forget_all()
        return ticket

    def _rank(self, ticket: Ticket) -> float:
        finish = self._finish.get(self._account(ticket), self._virtual)
        return finish if finish > self._virtual else self._virtual

    def _account(self, ticket: Ticket) -> str | None:
        tenant = ticket.tenant
        if tenant in self._finish or tenant in self._weights or len(self._finish) < MAX_ACCOUNTS:
            return tenant
        return None

    def _charge(self, ticket: Ticket) -> float:
        return self._cost_s(ticket.rows, ticket.length) / self._weights.get(ticket.tenant, 1.0)

    def _forget(self) -> None:
        if self._virtual > self._forgot_at:
            self._forgot_at = self._virtual
            self._finish = {account: finish for account, finish in self._finish.items() if finish > self._virtual}

    def _forget_all(self) -> None:
        """Nothing waits: everybody got what they asked for, so nobody is ahead of anybody."""
        self._finish.clear()
        self._virtual = 0.0
        self._forgot_at = -inf
