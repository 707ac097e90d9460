"""What happened in this process that may have slowed requests down: a bounded ring of happenings with their begin and end, and
what doors have noted of single requests, as that is rare.

Written by serve/, fleet/ and wire/ where it happens, read by exemplars.py. Not aware of: which requests are slow.
"""

import gc
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from math import inf
from time import monotonic
from typing import Any

from msgspec import Struct

from dlproxy.policy.why import Happening, HappeningKind, Phase

MOST_HAPPENINGS = 1024
MOST_NOTES = 4096  # requests that doors have noted and that are not answered yet
SHORTEST_GC_S = 1e-3  # a collection that stops the process for less slows nobody down
LONGEST_S = 300.0  # a request that is answered later has lost its notes
SHORTEST_NOTE_S = 1e-4
KEEPS_S = 0.02  # a request that a door noted to wait for so long is kept, however quick it was then


class Notes(Struct):
    """Of one request: seconds by phase. `sending`: its client had not taken all of the answer yet. `at`: when it began."""

    at: float
    phases: dict[Phase, float]
    sending: bool = False

    @property
    def keep(self) -> bool:
        return self.sending or sum(self.phases.values()) >= KEEPS_S


class Journal:
    """One per process, on its event loop but for collections, which end on any thread."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.clock = clock
        self.notes: dict[int, Notes] = {}
        """By ticket id, of requests that have no answer yet."""
        self.on_sent: Callable[[int, float], None] = lambda ticket_id, seconds: None
        """Told of a slow reader's request whose answer has left, and how long that took."""
        self.on_late: Callable[[Happening], None] = lambda happening: None
        """Told of what is known only when requests that it slowed down may have been answered."""
        self._happenings: deque[Happening] = deque(maxlen=MOST_HAPPENINGS)
        self._collection_at = 0.0

    # Happenings

    def add(
        self, kind: HappeningKind, words: str, *, model: str = "", subject: str = "", began_at: float | None = None
    ) -> None:
        """It is over; it began now, or at `began_at`. `subject`: which instance it is about."""
        now = self.clock()
        self._happenings.append(Happening(kind, words, now if began_at is None else began_at, now, model, subject))

    def add_late(self, kind: HappeningKind, words: str, *, began_at: float) -> None:
        """As `add`; and it is told to whoever has looked for it in vain."""
        self.add(kind, words, began_at=began_at)
        self.on_late(self._happenings[-1])

    def begin(self, kind: HappeningKind, words: str, *, model: str = "", subject: str = "") -> Happening:
        """It goes on until `end`."""
        happening = Happening(kind, words, self.clock(), inf, model, subject)
        self._happenings.append(happening)
        return happening

    def end(self, happening: Happening, words: str = "") -> None:
        """It is over. `words`: better ones, now that it is known what became of it."""
        happening.ended_at = self.clock()
        happening.words = words or happening.words

    def since(self, at: float) -> Iterator[Happening]:
        """Those that went on then, or after, newest first."""
        return (happening for happening in reversed(list(self._happenings)) if happening.ended_at >= at)

    # Notes of doors

    def note(self, ticket_id: int, waited: Mapping[Phase, float]) -> None:
        """A request waited for something that most do not wait for, before it came to its model's lane."""
        if sum(waited.values()) >= SHORTEST_NOTE_S:
            phases = self._of(ticket_id).phases
            for phase, seconds in waited.items():
                phases[phase] = phases.get(phase, 0.0) + seconds

    def sending(self, ticket_id: int) -> None:
        """Its client does not take the answer as quickly as it is written."""
        self._of(ticket_id).sending = True

    def sent(self, ticket_id: int, seconds: float) -> None:
        """Now it has all of it, after so long."""
        notes = self.notes.get(ticket_id)
        if notes is not None:
            notes.phases["send"], notes.sending = seconds, False
        self.on_sent(ticket_id, seconds)

    def forget_old(self) -> None:
        """Those of requests that will have no answer any more: they were refused before any lane heard of them, say."""
        before = self.clock() - LONGEST_S
        while self.notes and self.notes[oldest := next(iter(self.notes))].at < before:
            del self.notes[oldest]

    def _of(self, ticket_id: int) -> Notes:
        notes = self.notes.get(ticket_id)
        if notes is None:
            if len(self.notes) >= MOST_NOTES:  # nobody came for the oldest: its request has left, say
                del self.notes[next(iter(self.notes))]
            notes = self.notes[ticket_id] = Notes(self.clock(), {})
        return notes

    # Garbage collections

    def watch_collections(self) -> None:
        """From now on those that take long are happenings."""
        gc.callbacks.append(self._collected)

    def close(self) -> None:
        if self._collected in gc.callbacks:
            gc.callbacks.remove(self._collected)

    def _collected(self, phase: str, info: dict[str, Any]) -> None:
        now = self.clock()
        if phase == "start":
            self._collection_at = now
        elif now - self._collection_at >= SHORTEST_GC_S:
            words = f"Python's garbage collection stopped the process (generation {info['generation']})"
            self._happenings.append(Happening("gc", words, self._collection_at, now))
