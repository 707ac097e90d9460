"""A rig behind the cache's layer."""

from math import inf
from typing import Any

from dlproxy.config import CacheConfig, ModelConfig
from dlproxy.message import Request
from dlproxy.serve.caching.caches import Caches
from tests.serve.rig import SIGNATURE, Reply, Rig, turns


class Site:
    """One instance, which needs 10 ms a batch, unless said otherwise. `settings`: the model's, those of the cache."""

    def __init__(self, rig: Rig | None = None, *, memory_mb: int = 1, **settings: Any) -> None:
        self.rig = Rig() if rig is None else rig
        config = ModelConfig(path="m", **{"cache": "on", **settings})
        self.caches = Caches(CacheConfig(memory_mb=memory_mb), self.rig.now)
        layer = self.caches.before(self.rig.driver, "m", config, SIGNATURE, self.rig.stats)
        assert layer is not None
        self.layer = layer
        self.submitted = 0

    def send(self, value: float = 1.0, *, max_age_s: float = inf, priority: int = 0, tenant: str = "", **terms: Any) -> Reply:
        request = self.rig.request(value, **terms)
        request.max_age_s = max_age_s
        request.id = f"id-{request.ticket.id}"
        request.ticket.priority, request.ticket.tenant = priority, tenant
        return self.submit(request)

    def submit(self, request: Request, reply: Reply | None = None) -> Reply:
        self.submitted += 1
        reply = Reply(request) if reply is None else reply
        self.layer.submit(request, reply)
        return reply

    def cancel(self, reply: Reply) -> None:
        self.layer.cancel(reply.request)

    @property
    def ran(self) -> int:
        """Rows that instances have run."""
        return sum(self.rig.runtime.rows)

    @property
    def failures(self) -> dict[str, int]:
        return {kind.value: times for kind, times in self.rig.stats.failures.items() if times}

    async def end(self) -> None:
        """Nothing is left of anything, and every request is counted once."""
        await turns(5)
        assert self.rig.is_at_rest()
        assert not self.layer.flights
        assert not self.layer.waiting
        stats = self.rig.stats
        stats.settle()
        assert stats.request.count + sum(stats.failures.values()) == self.submitted


def how(reply: Reply) -> str:
    """What the cache had to do with it."""
    assert reply.response is not None, reply.failure
    assert reply.response.id == reply.request.id
    return reply.response.cache


def bytes_of(reply: Reply) -> list[bytes]:
    assert reply.response is not None
    return [bytes(tensor.data) for tensor in reply.response.outputs]


__all__ = ["Reply", "Site", "bytes_of", "how", "turns"]
