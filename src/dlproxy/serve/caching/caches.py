"""The result caches of all models of one process: each has its layer, all share one budget of bytes.

Held by serve/models.py, asked by assemble.py for the layer of a model that is loaded. Not aware of: lanes, protocols.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from math import inf
from secrets import randbits
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from dlproxy.config import CacheConfig, ModelConfig
from dlproxy.cores import spare_bytes
from dlproxy.message import Signature
from dlproxy.service import Service
from dlproxy.telemetry.stats import ModelStats

if TYPE_CHECKING:
    from dlproxy.policy.caching.worth import BudgetShares
    from dlproxy.serve.caching.keys import Keys
    from dlproxy.serve.caching.layer import CacheLayer
    from dlproxy.serve.caching.nodes import Nodes

RESERVE_BYTES = 256 * 2**20  # that the machine and this process's groups keep: less is remembered where there is less left
LOOK_S = 5.0  # between two looks at how the bytes are best shared, and how many there are

log = logging.getLogger(__name__)


class _Place(Struct, eq=False):
    """A layer, and what it is of. `number`: tells a version from the one that it replaces."""

    layer: "CacheLayer"
    keys: "Keys"
    model: str
    version: str
    ttl_s: float
    number: int


class Caches:
    """Everything happens on one event loop. `spare`: bytes of memory that are left."""

    def __init__(self, config: CacheConfig, clock: Callable[[], float], spare: Callable[[], float] = spare_bytes) -> None:
        """Raises ConfigError for an address of Redis that is none."""
        self._most = config.memory_mb * 2**20
        self._config = config
        self._clock = clock
        self._spare = spare
        self._seed = randbits(64)
        self._places: list[_Place] = []
        self._number = 0
        self._shares: BudgetShares | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._nodes = self._shared() if config.redis else None
        self._warned = False

    def __iter__(self) -> "Iterator[CacheLayer]":
        return iter([place.layer for place in self._places])

    def _shared(self) -> "Nodes":
        from dlproxy.serve.caching.nodes import Nodes  # most servers start without

        return Nodes(self._config, self._seed, self._reseed, self._clock)

    def _reseed(self, seed: int) -> None:
        """Other nodes digest with this one: what is remembered under other keys would not be found again."""
        self._seed = seed
        for place in self._places:
            place.keys.reseed(seed)
            place.layer.clear()

    async def read(self, name: str, config: ModelConfig) -> None:
        """A model is about to be loaded: whether other nodes have the same is seen by its files."""
        if self._nodes is not None and config.cache != "off":
            await self._nodes.read(name, config)

    def before(
        self, inner: Service, name: str, config: ModelConfig, signature: Signature, stats: ModelStats
    ) -> "CacheLayer | None":
        """The layer before this version of a model; None where none is wanted, or answers come in parts or depend on others."""
        if config.cache == "off":
            return None
        if signature.streams:
            log.warning("model %s: cache = %r has no effect: it answers in parts, which are not remembered", name, config.cache)
            return None
        if signature.told_sequences:
            log.warning("model %s: cache = %r has no effect: it keeps the state of sequences", name, config.cache)
            return None
        from dlproxy.policy.caching import make_cache  # most servers start without any
        from dlproxy.policy.caching.auto import Auto
        from dlproxy.serve.caching.keys import Keys
        from dlproxy.serve.caching.layer import CacheLayer
        from dlproxy.serve.recheck import differing_outputs

        key_of = Keys(signature, self._seed, per_tenant=config.cache_by_tenant)
        layer = CacheLayer(
            inner,
            make_cache(self._config.policy, 0),
            key_of,
            stats,
            name=name,
            clock=self._clock,
            ttl_s=config.cache_ttl_s or inf,
            auto=Auto(lambda one, other: not differing_outputs(one, other)) if config.cache == "auto" else None,
            second=None if self._nodes is None else self._nodes.level(name, config, signature),
        )
        if config.cache_rows:
            _by_rows(layer, name, signature, key_of)
        self._number += 1
        place = _Place(layer, key_of, name, config.version, config.cache_ttl_s, self._number)
        layer.on_close = lambda: self._leave(place)
        self._places.append(place)
        self._share_out()
        return layer

    def _leave(self, place: _Place) -> None:
        if place in self._places:
            self._places.remove(place)
            place.layer.clear()
            self._share_out()

    def _share_out(self) -> None:
        """Bytes to each, by what they save there; and again after a while."""
        from dlproxy.policy.caching.worth import BudgetShares, CacheStats, Ghost

        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._places:
            self._shares = None
            return
        if self._shares is None:
            self._shares = BudgetShares()
        stats = {}
        for place in self._places:
            layer = place.layer
            if len(self._places) > 1 and layer.ghost is None:
                layer.ghost = Ghost()
            ghost = layer.ghost
            told = (0, 0.0, 0.0) if ghost is None else (ghost.asked, ghost.lost_s, ghost.reach)
            stats[_name(place)] = CacheStats(layer.cache.used, *told)
        shares = self._shares.act(self._clock(), stats, self._total())
        for place in sorted(self._places, key=lambda place: shares[_name(place)] - place.layer.cache.budget):
            if shares[_name(place)] != place.layer.cache.budget:
                place.layer.resize(shares[_name(place)])
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._share_out)

    def _total(self) -> int:
        used = sum(place.layer.cache.used for place in self._places)
        total = int(max(min(self._most, used + self._spare() - RESERVE_BYTES), 0))
        if not total and not self._warned:
            self._warned = True
            log.warning(
                "answers are not remembered for now: there is no more memory than the %d MiB that the result cache leaves free",
                RESERVE_BYTES >> 20,
            )
        return total

    def clear(self, name: str = "") -> int:
        """Forget the answers of this model, or of all, and those that nodes share; returns how many that were here."""
        layers = [place.layer for place in self._places if name in ("", place.model)]
        for layer in layers:
            if layer.second is not None:
                layer.second.clear()
        return sum(layer.clear() for layer in layers)

    def states(self, name: str = "") -> list[dict[str, Any]]:
        """JSON: what each keeps, and what that did."""
        return [
            {"name": place.model, "version": place.version, "ttl_s": place.ttl_s, **place.layer.state()}
            for place in self._places
            if name in ("", place.model)
        ]

    async def close(self) -> None:
        """The connection to Redis, if there is one."""
        if self._nodes is not None:
            await self._nodes.close()


def _name(place: _Place) -> str:
    return f"{place.model}/{place.version}#{place.number}"


def _by_rows(layer: "CacheLayer", name: str, signature: Signature, key_of: "Keys") -> None:
    from dlproxy.serve.caching.rows import RowLayer, has_rows

    if has_rows(signature):
        layer.rows = RowLayer(layer.inner, signature, key_of, layer.known_row, layer.keep_row)
    else:
        log.warning("model %s: cache_rows does nothing: its rows cannot be told apart", name)
