"""The result caches of all models of one process: each has its layer, all share one budget of bytes.

Held by serve/models.py, asked by assemble.py for the layer of a model that is loaded. Not aware of: lanes, protocols.
"""

from collections.abc import Callable, Iterator
from math import inf
from secrets import randbits
from typing import TYPE_CHECKING, Any

from dlproxy.config import CacheConfig, ModelConfig
from dlproxy.message import Signature
from dlproxy.service import Service
from dlproxy.telemetry.stats import ModelStats

if TYPE_CHECKING:
    from dlproxy.serve.caching.keys import Keys
    from dlproxy.serve.caching.layer import CacheLayer
    from dlproxy.serve.caching.nodes import Nodes


class Caches:
    """Everything happens on one event loop."""

    def __init__(self, config: CacheConfig, clock: Callable[[], float]) -> None:
        """Raises ConfigError for an address of Redis that is none."""
        self._config = config
        self._clock = clock
        self._seed = randbits(64)
        self._layers: dict[CacheLayer, str] = {}
        self._keys: dict[CacheLayer, Keys] = {}
        self._nodes = self._shared() if config.redis else None

    def __iter__(self) -> "Iterator[CacheLayer]":
        return iter(list(self._layers))

    def _shared(self) -> "Nodes":
        from dlproxy.serve.caching.nodes import Nodes  # most servers start without

        return Nodes(self._config, self._seed, self._reseed, self._clock)

    def _reseed(self, seed: int) -> None:
        """Other nodes digest with this one: what is remembered under other keys would not be found again."""
        self._seed = seed
        for layer, keys in self._keys.items():
            keys.reseed(seed)
            layer.clear()

    async def read(self, name: str, config: ModelConfig) -> None:
        """A model is about to be loaded: whether other nodes have the same is seen by its files."""
        if self._nodes is not None and config.cache != "off":
            await self._nodes.read(name, config)

    def before(
        self, inner: Service, name: str, config: ModelConfig, signature: Signature, stats: ModelStats
    ) -> "CacheLayer | None":
        """The layer before this version of a model; None where none is wanted, or answers come in parts."""
        if config.cache == "off" or signature.streams:
            return None
        from dlproxy.policy.caching import make_cache  # most servers start without any
        from dlproxy.serve.caching.keys import Keys
        from dlproxy.serve.caching.layer import CacheLayer

        key_of = Keys(signature, self._seed, per_tenant=config.cache_by_tenant)
        layer = CacheLayer(
            inner,
            make_cache(self._config.policy, 0),
            key_of,
            stats,
            clock=self._clock,
            ttl_s=config.cache_ttl_s or inf,
            second=None if self._nodes is None else self._nodes.level(name, config, signature),
        )
        self._keys[layer] = key_of
        layer.on_close = lambda: self._leave(layer)
        self._layers[layer] = name
        self._share_out()
        return layer

    def _leave(self, layer: "CacheLayer") -> None:
        if self._layers.pop(layer, None) is not None:
            del self._keys[layer]
            layer.clear()
            self._share_out()

    def _share_out(self) -> None:
        total = self._config.memory_mb * 2**20
        for layer in self._layers:
            layer.resize(total // len(self._layers))

    def clear(self, name: str = "") -> int:
        """Forget the answers of this model, or of all, and those that nodes share; returns how many that were here."""
        layers = [layer for layer, of in self._layers.items() if name in ("", of)]
        for layer in layers:
            if layer.second is not None:
                layer.second.clear()
        return sum(layer.clear() for layer in layers)

    def states(self, name: str = "") -> list[dict[str, Any]]:
        """JSON: what each keeps, and what that did."""
        return [{"model": of, **layer.state()} for layer, of in self._layers.items() if name in ("", of)]

    async def close(self) -> None:
        """The connection to Redis, if there is one."""
        if self._nodes is not None:
            await self._nodes.close()
