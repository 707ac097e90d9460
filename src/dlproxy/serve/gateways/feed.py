"""The dashboard's stream over several gateways: once a second, while somebody reads, all are asked, and they are summed up.

Made by front.py. Not aware of: HTTP, who may see what (wire/dashboard/telling.py).
"""

import asyncio
import logging
from collections import deque
from itertools import chain
from math import floor
from time import monotonic
from typing import Any

import msgspec

from dlproxy.message import ANONYMOUS
from dlproxy.serve.gateways.asking import Asking
from dlproxy.serve.gateways.sums import summed, with_gateways
from dlproxy.wire.dashboard.telling import Picture, Telling, Told

MOST_EVENTS = 1000

log = logging.getLogger(__name__)


class SummedFeed(Telling):
    """`start` it on a running loop; `close` ends it and what its readers read."""

    def __init__(self, asking: Asking) -> None:
        super().__init__()
        self._asking = asking
        self._recent: deque[Told] = deque(maxlen=MOST_EVENTS)
        self.events = self._recent
        self._told: set[bytes] = set()  # of the events
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="dlproxy-dashboard")

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self.end()

    async def draw(self) -> None:
        """As all gateways tell it now."""
        self.picture, _ = await self._look()

    async def _run(self) -> None:
        while True:
            now = monotonic()
            await asyncio.sleep(floor(now) + 1.1 - now)  # when they have looked themselves
            if self.readers:
                try:
                    picture, events = await self._look()
                except (msgspec.DecodeError, KeyError, TypeError) as error:  # of one that is being replaced by another
                    log.warning("the dashboard skips a second: %r", error)
                    continue
                self.tell(picture, [name for name in self.picture.models if name not in picture.models], events)

    async def _look(self) -> tuple[Picture, list[Told]]:
        """The picture, and what happened since the last."""
        found = await self._asking.all("GET", "/dashboard/feed", ANONYMOUS, accept="application/json")
        told = [(answer.number, answer.json()) for answer in found if answer.reply.status == 200]
        if not told:
            return Picture(at=self.picture.at, server={**self.picture.server, "ready": False}), []
        events = self._new_events(told)
        models: dict[str, list[Told]] = {}
        for number, one in told:
            for name, model in one["models"].items():
                models.setdefault(name, []).append(with_gateways(number, model))
        server = summed([one["server"] for _, one in told])
        return (
            Picture(
                max(one["at"] for _, one in told),
                {**server, "gateways": len(told)},
                {name: summed(each) for name, each in models.items()},
                list(chain.from_iterable(one["upstreams"] for _, one in told)),
                summed([one["tenants"] for _, one in told]),
            ),
            events,
        )

    def _new_events(self, told: list[tuple[int, Any]]) -> list[Told]:
        fresh: dict[bytes, Told] = {}
        known: set[bytes] = set()
        for number, one in told:
            for event in one["events"]:
                mark = msgspec.json.encode([number, event])
                known.add(mark)
                if mark not in self._told:
                    fresh[mark] = event
        self._told = known
        found = sorted(fresh.values(), key=lambda event: float(event["at"]))
        self._recent.extend(found)
        return found
