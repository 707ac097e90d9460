"""The result caches of all models of one process: each has its layer, all share one budget of bytes.

Held by serve/models.py, asked by assemble.py for the layer of a model that is loaded. Not aware of: lanes, protocols.
"""

import logging
from collections.abc import Callable, Iterator
from math import inf
from secrets import randbits
from typing import TYPE_CHECKING, Any

from dlproxy.config import CacheConfig, ModelConfig
from dlproxy.message import Signature
from dlproxy.service import Service
from dlproxy.telemetry.stats import ModelStats

if TYPE_CHECKING:
    from dlproxy.serve.caching.layer import CacheLayer

log = logging.getLogger(__name__)


class Caches:
    """Everything happens on one event loop."""

    def __init__(self, config: CacheConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._seed = randbits(64)
        self._layers: dict[CacheLayer, tuple[str, ModelConfig]] = {}

    def __iter__(self) -> "Iterator[CacheLayer]":
        return iter(list(self._layers))

    def before(
        self, inner: Service, name: str, config: ModelConfig, signature: Signature, stats: ModelStats
    ) -> "CacheLayer | None":
        """The layer before this version of a model; None where none is wanted, or answers come in parts."""
        if config.cache == "off":
            return None
        if signature.streams:
            log.warning("model %s: cache = %r has no effect: it answers in parts, which are not remembered", name, config.cache)
            return None
        from dlproxy.policy.caching import make_cache  # most servers start without any
        from dlproxy.serve.caching.keys import Keys
        from dlproxy.serve.caching.layer import CacheLayer

        layer = CacheLayer(
            inner,
            make_cache(self._config.policy, 0),
            Keys(signature, self._seed, per_tenant=config.cache_by_tenant),
            stats,
            clock=self._clock,
            ttl_s=config.cache_ttl_s or inf,
        )
        layer.on_close = lambda: self._leave(layer)
        self._layers[layer] = name, config
        self._share_out()
        return layer

    def _leave(self, layer: "CacheLayer") -> None:
        if self._layers.pop(layer, None) is not None:
            layer.clear()
            self._share_out()

    def _share_out(self) -> None:
        total = self._config.memory_mb * 2**20
        for layer in self._layers:
            layer.resize(total // len(self._layers))

    def clear(self, name: str = "") -> int:
        """Forget the answers of this model, or of all; returns how many."""
        return sum(layer.clear() for layer, (of, _) in self._layers.items() if name in ("", of))

    def states(self, name: str = "") -> list[dict[str, Any]]:
        """JSON: what each keeps, and what that did."""
        return [
            {"name": of, "version": config.version, "ttl_s": config.cache_ttl_s, **layer.state()}
            for layer, (of, config) in self._layers.items()
            if name in ("", of)
        ]
