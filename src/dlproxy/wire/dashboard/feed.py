"""The dashboard's stream: what has changed since a second ago, told to all who read.

Made by serve/server.py, asked by http.py. Not aware of: HTTP, how models are looked at (sampling.py), who may see what
(telling.py).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from itertools import islice
from math import floor, inf
from time import monotonic

from dlproxy.policy.planner import VersionState
from dlproxy.policy.quota import Use
from dlproxy.wire.catalog import Catalog
from dlproxy.wire.dashboard.events import Key
from dlproxy.wire.dashboard.sampling import MOST_EVENTS, Sampler, Told
from dlproxy.wire.dashboard.shown import short
from dlproxy.wire.dashboard.telling import Picture, Telling

log = logging.getLogger(__name__)


class Feed(Telling):
    """`states`, `changes`: as Sampler has them. `facts`: of the server; `uses`: of quotas. `start` it on a running loop;
    `close` ends it and what its readers read.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        states: Callable[[], Sequence[VersionState]],
        changes: Callable[[], int],
        facts: Callable[[], Told],
        uses: Callable[[], Sequence[Use]] = tuple,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__()
        self.sampler = Sampler(catalog, states, changes, clock)
        self.events = self.sampler.events
        self.note = self.sampler.tell
        self.beside: Callable[[], None] = lambda: None
        """Done each second as well."""
        self._catalog = catalog
        self._facts = facts
        self._uses = uses
        self._clock = clock
        self._admitted: dict[tuple[str, str], tuple[int, int]] = {}
        self._happened = 0  # that were told
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="dlproxy-dashboard")

    def close(self) -> None:
        """Nothing is looked at any more, and every stream ends."""
        if self._task is not None:
            self._task.cancel()
        self.end()

    async def _run(self) -> None:
        try:
            while True:
                now = self._clock()
                await asyncio.sleep(floor(now) + 1.0 - now)
                self.look(self._clock())
        except Exception:
            log.exception("the dashboard has failed, and ends")
            self.end()

    def look(self, now: float) -> None:
        """At all models, once a second."""
        moved = self.sampler.look(now)
        self.beside()
        if self.readers:
            self._tell_moved(moved)

    # What is told

    def _tell_moved(self, moved: set[Key]) -> None:
        sampler = self.sampler
        models = {_name(key): sampler.shown(key) for key in moved & sampler.versions.keys()}
        gone = [_name(key) for key in moved - sampler.versions.keys()]
        self.tell(self._around(models, upstreams=bool(moved), gone=gone), gone, self._new_events())

    async def draw(self) -> None:
        self.sampler.follow()
        self._admitted.clear()
        self.picture = Picture()
        self.picture = self._around({_name(key): self.sampler.shown(key) for key in self.sampler.versions}, upstreams=True)
        self._new_events()

    def _around(self, models: dict[str, Told], *, upstreams: bool, gone: Sequence[str] = ()) -> Picture:
        """With what is of no single model. `models`: that have moved; `upstreams`: they may be others than before."""
        told = {name: told for name, told in self.picture.models.items() if name not in gone} | models
        down = any(one["state"] == "down" for one in told.values())
        tenants = [self._tenant(use) for use in self._uses()]
        self._admitted = {(one["of"], one["name"]): (one["admitted"], one["refused"]) for one in tenants}
        return Picture(
            self.sampler.wall(self.sampler.looked_at),
            {**self._facts(), "ready": not down and not self._catalog.draining},
            models,
            _upstreams(told) if upstreams else self.picture.upstreams,
            tenants,
        )

    def _tenant(self, use: Use) -> Told:
        admitted, refused = self._admitted.get((use.of, use.name), (use.admitted, use.refused))
        quota = use.quota
        limits = {"requests_per_s": quota.requests_per_s, "rows_per_s": quota.rows_per_s, "concurrent": quota.concurrent}
        return {
            "name": use.name,
            "of": use.of,
            **{limit: None if most == inf else most for limit, most in limits.items()},
            "running": use.running,
            "requests_left": short(use.requests_left),
            "rows_left": short(use.rows_left),
            "admitted": use.admitted,
            "refused": use.refused,
            "rate": use.admitted - admitted,
            "refused_rate": use.refused - refused,
        }

    def _new_events(self) -> list[Told]:
        before, self._happened = self._happened, self.sampler.happened
        new = min(self._happened - before, MOST_EVENTS)
        return list(islice(self.sampler.events, len(self.sampler.events) - new, None))


def _upstreams(told: dict[str, Told]) -> list[Told]:
    return [
        {"model": name, **{field: each[field] for field in ("name", "address", "state", "busy")}}
        for name, one in told.items()
        for each in one.get("instances", ())
        if each["address"]
    ]


def _name(key: Key) -> str:
    return "/".join(key)
