"""The result cache's decisions: which answers are kept, how many bytes each model gets for them, and whether it pays at all.

Called by serve/ and lab/simulate. Not aware of: tensors, clients, where the bytes are.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from dlproxy.policy.caching.auto import Auto
from dlproxy.policy.caching.cache import ENTRY_BYTES, CachePolicy, Entry, Key
from dlproxy.policy.caching.queues import S3Fifo, Sieve
from dlproxy.policy.caching.recency import Gdsf, Lfu, Lru
from dlproxy.policy.caching.tiny_lfu import WTinyLfu
from dlproxy.policy.caching.worth import BudgetShares, CacheStats, Ghost

__all__ = [
    "ENTRY_BYTES",
    "POLICIES",
    "Auto",
    "BudgetShares",
    "CachePolicy",
    "CacheStats",
    "Entry",
    "Ghost",
    "Key",
    "make_cache",
]

POLICIES: Mapping[str, Callable[[int], CachePolicy[Any]]] = MappingProxyType(  # the first is the default
    {"s3-fifo": S3Fifo, "sieve": Sieve, "lru": Lru, "lfu": Lfu, "w-tinylfu": WTinyLfu, "gdsf": Gdsf}
)


def make_cache(name: str, budget: int) -> CachePolicy[Any]:
    """An empty cache of this policy, of so many bytes. Raises ValueError for an unknown name."""
    maker = POLICIES.get(name)
    if maker is None:
        raise ValueError(f"no cache policy '{name}'; there are {', '.join(POLICIES)}")
    return maker(budget)
