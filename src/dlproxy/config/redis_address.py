"""Where a Redis is, or a server that speaks its protocol. Read from the knobs that name one, by whoever connects to it.

Not aware of: what is kept there, clients.
"""

from collections.abc import Collection
from urllib.parse import parse_qs, unquote, urlsplit

from msgspec import Struct

from dlproxy.config.values import ConfigError

PORT = 6379


class RedisAddress(Struct, frozen=True):
    """`user`, `password`: empty for none. `options`: what stood behind the question mark."""

    host: str
    port: int
    db: int
    user: str
    password: str
    tls: bool
    options: dict[str, str]

    @property
    def shown(self) -> str:
        """For people, without what is secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis{'s' * self.tls}://{host}:{self.port}/{self.db}"

    def __repr__(self) -> str:
        return self.shown


def parse_redis(url: str, knob: str, options: Collection[str] = ()) -> RedisAddress:
    """redis:// or rediss://USER:PASSWORD@HOST:PORT/DB, with these options at most. Raises ConfigError, without the URL."""
    try:
        parts = urlsplit(url)
        given = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        db = int(parts.path.strip("/") or 0)
        known = all(name in options and len(texts) == 1 and texts[0] for name, texts in given.items())
        if parts.scheme not in ("redis", "rediss") or not parts.hostname or not known or parts.fragment or db < 0:
            raise ValueError("it has no host, or something else than host, port, database and these options")
        return RedisAddress(
            host=parts.hostname,
            port=parts.port or PORT,
            db=db,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            tls=parts.scheme == "rediss",
            options={name: texts[0] for name, texts in given.items()},
        )
    except ValueError:
        example = "&".join(f"{name}=NAME" for name in options)
        raise ConfigError(
            f"the address of {knob} is not understood; write it like redis://HOST:6379/0{'?' * bool(example)}{example} "
            "(rediss:// with TLS), with special characters of a password as %XX",
            knob,
        ) from None
