"""Plays a recording to the dashboard's page as if it happened now: at another speed, from any instant, with pauses.

Called by app.py. Not aware of: HTTP, files.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Callable
from time import monotonic

from dlproxy.lab.recording.recording import Frame, Recording, Told, Whole
from dlproxy.wire.dashboard.history import AT_REST, COLUMNS
from dlproxy.wire.dashboard.telling import Audience, Picture, Telling

SPEEDS = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # the page offers
SILENT_S = 10.0  # at most, or the page takes the server for gone
LEAST_S = 0.05  # from one message to the next; what is due between them is told at once


class Player(Telling):
    """What is shown moves while `run` runs and it is `playing`; at the end it stands."""

    def __init__(self, recording: Recording, *, speed: float = 1.0, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self.playing, self.speed = True, speed
        self._frames = recording.frames
        self._times = [frame.at - recording.frames[0].at for frame in recording.frames]
        self._clock = clock
        self._jumps = 0
        self._place = 0  # of the next message
        self._happened: list[Told] = []
        self._steered = asyncio.Event()
        self._from_s, self._since = 0.0, clock()
        self._jump(0.0)

    @property
    def length_s(self) -> float:
        return self._times[-1]

    @property
    def offset_s(self) -> float:
        """From the beginning to what is shown."""
        if not self.playing:
            return self._from_s
        return min(self._from_s + (self._clock() - self._since) * self.speed, self.length_s)

    async def draw(self) -> None:
        """It always is as it is."""

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            self._steered.clear()
            wait = SILENT_S
            if self.playing and self._place < len(self._frames):
                wait = min(max((self._times[self._place] - self.offset_s) / self.speed, LEAST_S), SILENT_S)
            try:
                await asyncio.wait_for(self._steered.wait(), wait)
            except TimeoutError:
                self.advance()

    def advance(self) -> None:
        """Tells of all that is due."""
        models: dict[str, Told] = dict(self.picture.models)
        before, moved = set(models), self.picture
        events: list[Told] = []
        while self._place < len(self._frames) and self._times[self._place] <= self.offset_s + LEAST_S / 2:
            frame = self._frames[self._place]
            moved = _after(frame, moved, models)
            events += [] if isinstance(frame, Whole) else frame.told.get("events", [])
            self._place += 1
        if self._place == len(self._frames):
            self._from_s, self.playing = self.length_s, False
        self._happened = [*self._happened, *events]
        self._tell(moved, models, [*before - set(models)], events)

    def steer(self, *, at: float | None = None, speed: float | None = None, playing: bool | None = None) -> None:
        """`at`: seconds since 1970, of what shall be shown; what is None stays as it is. At the end, playing begins anew."""
        offset_s = self.offset_s if at is None else min(max(at - self._frames[0].at, 0.0), self.length_s)
        if at is None and playing and offset_s >= self.length_s:
            at, offset_s = self._frames[0].at, 0.0
        self.playing = self.playing if playing is None else playing
        self.speed = self.speed if speed is None else speed
        self._from_s, self._since = offset_s, self._clock()
        if at is None:
            self._tell(self.picture, dict(self.picture.models), [], [])
        else:
            self._jump(offset_s)
        self._steered.set()

    def history(self, name: str, version: str, seconds: float) -> Told:
        """As the control port tells it, of the time until what is shown."""
        key, since_at = f"{name}/{version}", self.picture.at - seconds
        told: Told | None = None
        points: list[tuple[float, Told]] = []
        for frame in self._frames[: self._place]:
            models = frame.told.get("models", {})
            if isinstance(frame, Whole) or key in frame.told.get("gone", ()):
                told = models.get(key)
            elif key in models:
                told = {**(told or {}), **models[key]}
            if told is not None and frame.at > since_at:
                points.append((frame.at, told))
        return {
            "name": name,
            "version": version,
            "step_s": [1] * len(points),
            "at": [at for at, _ in points],
            **{column: [one.get(column, rest) for _, one in points] for column, rest in zip(COLUMNS, AT_REST, strict=True)},
        }

    def _jump(self, offset_s: float) -> None:
        """To what was shown so many seconds after the beginning."""
        self._place = max(bisect_right(self._times, offset_s), 1)
        self._jumps += 1
        moved, models = Picture(), dict[str, Told]()
        self._happened = []
        for frame in self._frames[: self._place]:
            moved = _after(frame, moved, models)
            told = frame.told.get("events", [])
            self._happened = told if isinstance(frame, Whole) else [*self._happened, *told]
        self.events = self._happened
        self.anew(self._picture(moved, models))

    def _tell(self, moved: Picture, models: dict[str, Told], gone: list[str], events: list[Told]) -> None:
        self.events = self._happened
        self.tell(self._picture(moved, models), gone, events)

    def _picture(self, moved: Picture, models: dict[str, Told]) -> Picture:
        first_at = self._frames[0].at
        replay = {
            "from": first_at,
            "to": first_at + self.length_s,
            "speed": self.speed,
            "speeds": sorted({*SPEEDS, self.speed}),
            "playing": self.playing,
            "jumps": self._jumps,
        }
        return Picture(moved.at, {**moved.server, "replay": replay}, models, moved.upstreams, moved.tenants)

    def _whole(self, audience: Audience) -> Told:
        told = super()._whole(audience)
        return {**told, "server": {**told["server"], "may_change": False}}


def _after(frame: Frame, before: Picture, models: dict[str, Told]) -> Picture:
    """All there is after this message but the models, which are changed in place."""
    told = frame.told
    if isinstance(frame, Whole):
        models.clear()
        models.update(told["models"])
    else:
        for name in told.get("gone", ()):
            models.pop(name, None)
        for name, fields in told.get("models", {}).items():
            models[name] = {**models.get(name, {}), **fields}
    server = told["server"] if isinstance(frame, Whole) else {**before.server, **told.get("server", {})}
    upstreams, tenants = told.get("upstreams", before.upstreams), told.get("tenants", before.tenants)
    return Picture(frame.at, server, {}, upstreams, tenants)
