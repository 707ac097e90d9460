"""The table's rows for remembered answers of all models. Taken in by knobs.py; not aware of: models, Redis."""

from typing import Annotated, Literal

from msgspec import Struct

from dlproxy.config.traits import Only
from dlproxy.config.traits import knob as _knob

_SHARES = Only("redis", but=("",))


class CacheConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[cache]: what all models that remember answers share."""

    memory_mb: Annotated[
        int,
        _knob(
            "memory for remembered answers of all models; it moves to where it saves the most, and less is used where the "
            "machine runs short",
            unit="MiB",
            log=True,
            tuned=True,
            ge=1,
            le=1 << 24,
        ),
    ] = 256
    policy: Annotated[
        Literal["s3-fifo", "sieve", "lru", "lfu", "w-tinylfu", "gdsf"],
        _knob("which answers are kept; gdsf: by what they cost to compute, too"),
    ] = "s3-fifo"
    redis: Annotated[
        str,
        _knob(
            "Redis or Valkey where nodes share answers, as redis://USER:PASSWORD@HOST:PORT/DB (rediss:// with TLS); empty: "
            "each process for itself"
        ),
    ] = ""
    redis_wait_s: Annotated[
        float,
        _knob(
            "seconds that a request waits for Redis at most; 0: 0.002, or a quarter of what 99 % of the model's runs take, if "
            "that is less",
            unit="s",
            log=True,
            least=1e-4,
            only=(_SHARES,),
            ge=0,
            le=10,
        ),
    ] = 0.0
    redis_ttl_s: Annotated[
        float,
        _knob(
            "seconds for which an answer stays in Redis; a model's cache_ttl_s holds, too",
            unit="s",
            log=True,
            only=(_SHARES,),
            ge=1,
            le=31536000,
        ),
    ] = 3600.0
