"""What nodes share of their answers: one connection to Redis, and for each model whose content can be told a level of its own.

Held by caches.py where `cache.redis` is set. Not aware of: layers, requests.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable
from math import inf

import msgspec
from msgspec import Struct

from dlproxy.config import SLEEP, CacheConfig, ModelConfig, is_address, parse_devices, python_place
from dlproxy.config.paths import split_device
from dlproxy.config.redis_address import parse_redis
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.content import MOST_FILES, Stamps, digest_of, model_files, stamp_of
from dlproxy.instance.runtime.formats import FORMATS, format_of
from dlproxy.message import Signature
from dlproxy.serve.caching.redis_link import RedisLink
from dlproxy.serve.caching.shared import SharedAnswers

FORMAT = 1  # of keys: what is asked, and how it is hashed
ALSO_MATTERS = ("inputs", "outputs", "pad_value")

log = logging.getLogger(__name__)


class Content(Struct, frozen=True):
    """What a model is, as far as answers depend on it. `files`: which it was read from, as they were then."""

    digest: bytes
    files: Stamps

    def holds(self) -> bool:
        """Whether the files are still those."""
        try:
            return all(stamp_of(file) == stamp for file, stamp in self.files.items())
        except OSError:
            return False


def content_of(config: ModelConfig) -> Content | None:
    """None if it cannot be told: the model is code that may do anything, or on another server. Reads all files."""
    digest = hashlib.sha256()
    kinds = sorted({split_device(device)[0] for device in parse_devices(config.device)})
    digest.update(msgspec.json.encode([FORMAT, kinds, {name: getattr(config, name) for name in ALSO_MATTERS}]))
    if config.cache_content:
        digest.update(b"said" + config.cache_content.encode())
        return Content(digest.digest(), {})
    if config.path.startswith(SLEEP):
        digest.update(config.path.encode())
        return Content(digest.digest(), {})
    try:
        files = _all_files(config.path)
        stamps = {file: stamp_of(file) for file in files}
        folder = config.path if os.path.isdir(config.path) else os.path.dirname(config.path)
        for file in files:
            name = "" if file == config.path else os.path.relpath(file, folder)
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + digest_of(file))
    except OSError:  # loading says so, and better
        return None
    return Content(digest.digest(), stamps) if files else None


def _all_files(path: str) -> list[str]:
    """Those that are all of the model; none where that cannot be told."""
    if is_address(path) or python_place(path) is not None:
        return []
    try:
        known = format_of(path) in FORMATS.values()
    except ModelError:
        return []
    files = model_files(path) if known else []
    return files if len(files) < MOST_FILES else []


class Nodes:
    """`on_seed` is told what digests are to be seeded with from now on."""

    def __init__(self, config: CacheConfig, seed: int, on_seed: Callable[[int], None], clock: Callable[[], float]) -> None:
        """Raises ConfigError for an address that is none."""
        self._config = config
        self._address = parse_redis(config.redis, "redis")
        self._seed = seed
        self._on_seed = on_seed
        self._clock = clock
        self._link: RedisLink | None = None
        self._contents: dict[tuple[str, str], Content | None] = {}

    async def read(self, name: str, config: ModelConfig) -> None:
        """What a model is that is about to be loaded."""
        self._contents[name, config.version] = await asyncio.to_thread(content_of, config)

    def level(self, name: str, config: ModelConfig, signature: Signature) -> SharedAnswers | None:
        """For this version, which has been loaded; None if its answers are not shared."""
        content = self._contents.pop((name, config.version), None)
        if content is None:
            log.warning(
                "model %s: its answers are not shared with other nodes, as its files do not tell what it is; "
                "cache_content can say it",
                name,
            )
            return None
        if not content.holds():
            log.warning("model %s: its files have changed since it was loaded: its answers are not shared", name)
            return None
        if self._link is None:
            self._link = RedisLink(self._address, self._seed, self._on_seed)
        digest = hashlib.sha256(content.digest)
        digest.update(msgspec.json.encode([name, config.version, signature]))
        prefix = b":".join(
            (b"dlproxy:cache:%d" % FORMAT, name.encode(), config.version.encode(), digest.hexdigest()[:32].encode())
        )
        return SharedAnswers(
            self._link,
            prefix + b":",
            signature,
            name,
            config.version,
            clock=self._clock,
            ttl_s=min(self._config.redis_ttl_s, config.cache_ttl_s or inf),
            wait_s=self._config.redis_wait_s,
        )

    async def close(self) -> None:
        if self._link is not None:
            await self._link.close()
