"""What is wanted, as the JSON of one key in Redis, or a server that speaks its protocol.

Made by store.py; the one file that imports redis. A change is published, so that other nodes hear of it at once; they look
now and then anyhow. Not aware of: what is in the key.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from dlproxy.config import ConfigError
from dlproxy.config.redis_address import parse_redis
from dlproxy.fleet.shared_store import SharedStore
from dlproxy.fleet.store import StoreError
from dlproxy.fleet.tasks import end_all

POLL_S = 5.0
PATIENCE_S = 2.0  # with an answer; it takes less than a millisecond
AGAIN_S = (0.1, 5.0)  # after a lost connection, doubled up to the second
FRESH_S = 60.0  # a connection on which nobody tells of changes may be dead

# KEYS: the key. ARGV: what must be there (empty: nothing), what shall be, and the channel that tells of it.
SWAP = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], '')
return 1
"""

log = logging.getLogger(__name__)


def redis_store(url: str, poll_s: float = POLL_S) -> "RedisStore":
    """At redis:// or rediss://USER:PASSWORD@HOST:PORT/DB?key=NAME. Raises ConfigError, which does not repeat it."""
    address = parse_redis(url, "store", ("key",))
    key = address.options.get("key", "dlproxy")
    client = Redis(
        host=address.host,
        port=address.port,
        db=address.db,
        username=address.user or None,
        password=address.password or None,
        ssl=address.tls,
        socket_timeout=PATIENCE_S,
        socket_connect_timeout=PATIENCE_S,
        retry=Retry(NoBackoff(), 0),  # a swap that is sent twice finds its own change
        protocol=2,
    )
    return RedisStore(client, f"store {address.shown}?key={key}", key, f"{key}@{address.db}", poll_s)


class RedisStore(SharedStore):
    """`channel`: where changes of `key` are published."""

    def __init__(self, client: Redis, place: str, key: str, channel: str, poll_s: float) -> None:
        super().__init__(place, poll_s)
        self._client = client
        self._command: Callable[..., Awaitable[Any]] = client.execute_command
        self._key = key
        self._channel = channel
        self._listener: asyncio.Task[None] | None = None

    async def close(self) -> None:
        if self._listener is not None:
            await end_all([self._listener])
        await self._client.aclose()

    async def changed(self, revision: int) -> None:
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen())
        await super().changed(revision)

    async def _load(self) -> bytes | None:
        content: bytes | None = await self._ask("GET", self._key)
        return content

    async def _replace(self, old: bytes | None, new: bytes) -> bool:
        return bool(await self._ask("EVAL", SWAP, 1, self._key, old or b"", new, self._channel))

    async def _ask(self, *command: Any) -> Any:
        try:
            return await self._command(*command)
        except ResponseError as error:
            if str(error).startswith("WRONGTYPE"):
                raise ConfigError(f"{self.place} is no string: something else keeps it; it is left as it is") from None
            raise StoreError(f"{self.place} cannot be used: {error}") from None
        except (RedisError, OSError) as error:
            raise StoreError(f"{self.place} cannot be reached: {error}") from None

    async def _listen(self) -> None:
        """Wakes who waits for a change: when one is published, and when the channel is there again after it was not."""
        again_s, most_s = AGAIN_S
        while True:
            try:
                async with self._client.pubsub() as channel:
                    await channel.subscribe(self._channel)
                    while await channel.get_message(timeout=FRESH_S) is not None:  # the first says that it is subscribed
                        again_s = AGAIN_S[0]
                        self._wake()
            except (RedisError, OSError) as error:
                log.debug("%s tells of no changes: %s", self.place, error)
                await asyncio.sleep(again_s)
                again_s = min(2 * again_s, most_s)
