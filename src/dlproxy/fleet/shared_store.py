"""A store that nodes share: what is wanted as bytes of JSON somewhere, replaced only where it is what was last read.

The parent of FolderStore and RedisStore, which move the bytes. Whatever happens to the place, a handle goes on with what it
last saw, and what it has seen is put back where it was forgotten. Not aware of: where the bytes are.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from dlproxy import __version__
from dlproxy.config import ConfigError
from dlproxy.fleet.store import StoreError
from dlproxy.policy.wanted import Wanted, WantedModel, check_model

FORMAT = 1

log = logging.getLogger(__name__)


class _Head(Struct, frozen=True):
    """As much as any format says. `dlproxy`: the version that wrote it."""

    format: int
    dlproxy: str


class _Kept(_Head, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    revision: Annotated[int, Meta(ge=0)]
    models: Mapping[str, WantedModel]
    files: Mapping[str, str] = {}


def encode(wanted: Wanted) -> bytes:
    """As JSON, which says what wrote it."""
    return msgspec.json.encode(_Kept(FORMAT, __version__, wanted.revision, wanted.models, wanted.files))


def decode(content: bytes, place: str) -> Wanted:
    """Raises ConfigError for what is not understood, be it another program's or a newer version's."""
    try:
        head = msgspec.json.decode(content, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{place} holds something that dlproxy has not written; it is left as it is: {error}") from None
    who = f"{place} was written by dlproxy {head.dlproxy}"
    if head.format != FORMAT:
        raise ConfigError(f"{who} in format {head.format}; this is dlproxy {__version__}, which reads format {FORMAT}")
    try:
        kept = msgspec.json.decode(content, type=_Kept)
        for name, model in kept.models.items():
            check_model(name, model)
    except (msgspec.DecodeError, RecursionError, ConfigError) as error:
        raise ConfigError(f"{who}; this is dlproxy {__version__}, which does not understand it: {error}") from None
    return Wanted(kept.models, kept.revision, kept.files)


class SharedStore(ABC):
    """`place`: what messages call it. `poll_s`: a change that nobody tells of is seen after so many seconds."""

    def __init__(self, place: str, poll_s: float) -> None:
        self.place = place
        self._poll_s = poll_s
        self._content: bytes | None = None
        self._seen: Wanted | None = None
        self._told: Wanted | None = None  # by the last read or swap
        self._trouble: type[ConfigError] | None = None
        self._news = asyncio.Event()

    @abstractmethod
    async def _load(self) -> bytes | None:
        """What is there; None for nothing. Raises StoreError if that cannot be said, ConfigError if it is no bytes."""

    @abstractmethod
    async def _replace(self, old: bytes | None, new: bytes) -> bool:
        """In one step and for good; False, and nothing done, where `old` is not what is there. Raises StoreError."""

    @abstractmethod
    async def close(self) -> None: ...

    async def read(self) -> Wanted:
        try:
            seen = (await self._look())[1]
        except ConfigError:  # _look has logged it
            if self._seen is None:
                raise
            seen = self._seen
        self._told = seen
        return seen

    async def swap(self, revision: int, new: Wanted) -> bool:
        old, found = await self._look()
        if self._differs(found, revision):
            return False
        content = encode(new)
        try:
            done = await self._replace(old, content)
        except StoreError as error:  # perhaps only the answer was lost
            try:
                done = (await self._look())[0] == content
            except ConfigError:
                raise StoreError(f"it is not known whether the change was made: {error}") from None
            if not done:
                raise
        if done:
            self._content, self._seen, self._told = content, new, new
            self._wake()
        return done

    async def changed(self, revision: int) -> None:
        while True:
            news = self._news
            with suppress(ConfigError):  # _look has logged it
                await self._look()
            if self._seen is not None and self._differs(self._seen, revision):
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await news.wait()

    def _wake(self) -> None:
        """Whoever waits for a change looks now."""
        self._news.set()
        self._news = asyncio.Event()

    def _differs(self, found: Wanted, revision: int) -> bool:
        """From what a caller knows by this revision. A store that lost changes may have the same number for others."""
        known = self._told
        return found.revision != revision or (known is not None and known.revision == revision and known != found)

    async def _look(self) -> tuple[bytes | None, Wanted]:
        try:
            found = await self._newest()
        except ConfigError as error:
            if self._seen is not None and self._trouble is not type(error):
                self._trouble = type(error)
                log.warning("%s (revision %d, which was last seen there, stays in force)", error, self._seen.revision)
            raise
        if self._trouble is not None:
            self._trouble = None
            log.warning("%s can be used again (revision %d)", self.place, found[1].revision)
        return found

    async def _newest(self) -> tuple[bytes | None, Wanted]:
        while True:
            content = await self._load()
            if self._seen is not None and content == self._content:
                return content, self._seen
            found = Wanted() if content is None else decode(content, self.place)
            if self._seen is None or found.revision >= self._seen.revision:
                self._content, self._seen = content, found
                return content, found
            if await self._replace(content, encode(self._seen)):
                log.warning("%s had lost what followed revision %d; it is put back", self.place, found.revision)
