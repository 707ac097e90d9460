"""Answers that several nodes share through Redis, of one version of a model: a SecondLevel.

One command takes a lease if there is nothing, the next reads what there is: who got the lease computes, others look again until
the answer is there. What Redis does not say in time is done without. Made by caches.py. Not aware of: the layer, what is local.
"""

import asyncio
import logging
from collections.abc import Callable
from random import Random
from secrets import token_bytes
from typing import Any

from msgspec import Struct

from dlproxy.fleet.redis_wire import LOST, Refusal, Reply, command
from dlproxy.message import Signature
from dlproxy.serve.caching.circuit import Circuit, Pace
from dlproxy.serve.caching.frames import MOST_BYTES, answer_in, body_of, opened, sealed, shrinks, size_of
from dlproxy.serve.caching.keys import Key
from dlproxy.serve.caching.layer import Kept
from dlproxy.serve.caching.redis_link import LOG_EVERY_S, RedisLink
from dlproxy.serve.driver import timer_delay_s

LEASE = b"dlpL"  # and the owner's token: stands in the answer's place
TOKEN_BYTES = 16
STEPS_S = (0.001, 0.1)  # between looks for an answer that another node computes
STEP_GROWS = 1.5
AT_ONCE = 32 << 10  # bytes that are compressed on the event loop: 0.3 ms; more go to a thread
INFLATED_AT_ONCE = 256 << 10  # that is five times as quick
SCANNED = b"1000"  # keys in a step of a clearing
MOST_STEPS = 100_000
# KEYS: an answer's. ARGV: the lease that must stand there.
RELEASE = b"if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
PING = command(b"PING")

log = logging.getLogger(__name__)


class SharedCounts(Struct):
    """`found`, `leased` (this node computes, others wait), `waited` (another node did, and this one had its answer), `late` (no
    word from Redis in time), `failed` (it refused, or the connection was lost), `ignored` (what was there is no answer of this
    model), `skipped` (it was not asked), `stored`, `unstored` (an answer too large, or too many under way).
    """

    found: int = 0
    leased: int = 0
    waited: int = 0
    late: int = 0
    failed: int = 0
    ignored: int = 0
    skipped: int = 0
    stored: int = 0
    unstored: int = 0


class _Look:
    """One key that is looked for. `turn`: with which others it was asked last; None: nothing is to be answered."""

    __slots__ = ("began_at", "has_lease", "key", "over", "step_s", "then", "turn", "waits")

    def __init__(self, key: Key, then: Callable[[Kept | None], None], now: float) -> None:
        self.key = key
        self.then = then
        self.began_at = now
        self.has_lease = False
        self.over = False
        self.waits = False
        self.step_s = 0.0
        self.turn: list[_Look] | None = None


class SharedAnswers:
    """`prefix`: of its keys, which names all that the answers depend on beside the request. Everything happens on one loop."""

    def __init__(
        self,
        link: RedisLink,
        prefix: bytes,
        signature: Signature,
        model: str,
        version: str,
        *,
        clock: Callable[[], float],
        ttl_s: float,
        wait_s: float = 0.0,
    ) -> None:
        self.counts = SharedCounts()
        self.circuit = Circuit(Random(token_bytes(8)))
        self.pace = Pace(wait_s)
        self._link = link
        self._prefix = prefix
        self._specs = {spec.name: spec for spec in signature.outputs}
        self._model = model
        self._version = version
        self._clock = clock
        self._ttl = b"%d" % max(int(ttl_s * 1e3), 1)
        self._lease = LEASE + token_bytes(TOKEN_BYTES)
        self._looks: dict[Key, _Look] = {}  # until it is known what came of them
        self._turn: list[_Look] = []
        self._leased_s = -1.0  # that the commands below ask for
        self._between = self._tail = b""
        self._closed = False
        self._told_at = float("-inf")

    # A SecondLevel

    def find(self, key: Key, then: Callable[[Kept | None], None]) -> None:
        now = self._clock()
        if self.circuit.is_open or not self._link.up or self._closed or key in self._looks:
            self.counts.skipped += 1
            if self.circuit.is_open and self.circuit.takes_probe(now):
                self._probe(now)
            then(None)
            return
        self._looks[key] = look = _Look(key, then, now)
        self._ask(look)

    def keep(self, key: Key, kept: Kept | None) -> None:
        look = self._looks.pop(key, None)
        if look is None:
            return
        now = self._clock()
        if kept is None:
            self._release(key)
            return
        self.pace.took(now - look.began_at)
        body = body_of(kept, now)
        if len(body) > MOST_BYTES:
            self.counts.unstored += 1
            self._release(key)
            return
        compress = shrinks(body)
        if compress and len(body) > AT_ONCE:
            self._beside(lambda: sealed(key, body, compress=True), lambda frame: self._store(key, frame))
        else:
            self._store(key, sealed(key, body, compress=compress))

    # What becomes of a look

    def _ask(self, look: _Look) -> None:
        """With all others of this turn of the loop."""
        if not self._turn:
            asyncio.get_running_loop().call_soon(self._send)
        self._turn.append(look)

    def _send(self) -> None:
        turn, self._turn = self._turn, []
        head, between, tail = self._commands()
        link = self._link
        prefix = self._prefix
        for look in turn:
            key = prefix + look.key
            look.turn = turn
            if not link.ask(head + key + between + key + tail, self._leased(look), self._read(look)):
                look.turn = None
                self.counts.skipped += 1
                self._finish(look, None)
        wait_s = timer_delay_s(self.pace.wait_s, 0.0)
        asyncio.get_running_loop().call_later(wait_s, self._due, turn)

    def _commands(self) -> tuple[bytes, bytes, bytes]:
        """The parts around two keys: a lease if there is nothing; then what there is, but no more than an answer may be."""
        head = b"*6\r\n$3\r\nSET\r\n$%d\r\n" % (len(self._prefix) + 16)
        if self._leased_s != self.pace.lease_s:
            self._leased_s = self.pace.lease_s
            lease_ms = b"%d" % (self._leased_s * 1e3)
            options = command(self._lease, b"NX", b"PX", lease_ms).partition(b"\r\n")[2]
            self._between = b"\r\n" + options + b"*4\r\n$8\r\nGETRANGE\r\n$%d\r\n" % (len(self._prefix) + 16)
            self._tail = b"\r\n" + command(b"0", b"%d" % (2 * MOST_BYTES)).partition(b"\r\n")[2]
        return head, self._between, self._tail

    def _leased(self, look: _Look) -> Callable[[Reply], None]:
        def then(reply: Reply) -> None:
            look.has_lease = reply == b"OK"

        return then

    def _read(self, look: _Look) -> Callable[[Reply], None]:
        def then(reply: Reply) -> None:
            if look.turn is not None:
                look.turn = None
                if not look.over:
                    self._came(look, reply)

        return then

    def _came(self, look: _Look, reply: Reply) -> None:
        if isinstance(reply, Refusal) and not reply.text.startswith("WRONGTYPE"):
            self._failed(look, reply)
            return
        self.circuit.answered()
        if look.has_lease:
            self.counts.leased += 1
            self._finish(look, None)
        elif not isinstance(reply, bytes):
            self._ignored(look)
        elif reply.startswith(LEASE) and len(reply) == len(self._lease) and reply != self._lease:
            self._wait(look)
        elif not reply or reply == self._lease:  # it went just now, or is left from a look that was given up
            self._finish(look, None)
        elif size_of(reply) > INFLATED_AT_ONCE:
            self._beside(lambda: opened(look.key, reply), lambda body: self._opened(look, body))
        else:
            self._opened(look, opened(look.key, reply))

    def _opened(self, look: _Look, body: bytes | None) -> None:
        now = self._clock()
        kept = None if body is None else answer_in(body, self._specs, self._model, self._version, now)
        if look.over:
            return
        if kept is None:
            self._ignored(look)
            return
        self.counts.found += 1
        self.counts.waited += look.waits
        self._finish(look, kept)

    def _ignored(self, look: _Look) -> None:
        self.counts.ignored += 1
        self._finish(look, None)

    def _wait(self, look: _Look) -> None:
        """Another node computes it: look again, as long as a lease lasts."""
        now = self._clock()
        first_s, most_s = STEPS_S
        left_s = look.began_at + self.pace.lease_s - now
        if left_s <= 0.0:
            self._finish(look, None)
            return
        if not look.waits:
            look.waits = True
            look.step_s = max((self.pace.p99_s or 0.0) / 16, first_s)
        delay_s = min(look.step_s, left_s)
        look.step_s = min(look.step_s * STEP_GROWS, most_s)
        asyncio.get_running_loop().call_later(timer_delay_s(delay_s, 0.0), self._look_again, look)

    def _look_again(self, look: _Look) -> None:
        if self.circuit.is_open or not self._link.up or self._closed:
            self._finish(look, None)
        else:
            self._ask(look)

    def _failed(self, look: _Look, refusal: Refusal) -> None:
        self.counts.failed += 1
        if refusal is not LOST:
            self._count_failure(f"says {refusal.text!r}")
        self._finish(look, None)

    def _due(self, turn: list[_Look]) -> None:
        """Their wait is over. What has arrived meanwhile is still taken: the loop looks at its sockets after its timers."""
        if any(look.turn is turn for look in turn):
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._late, turn)

    def _late(self, turn: list[_Look]) -> None:
        late = [look for look in turn if look.turn is turn and not look.over]
        if not late:
            return
        self.counts.late += len(late)
        for look in late:
            self._count_failure(f"did not answer within {self.pace.wait_s * 1e3:.3g} ms")
            self._finish(look, None)

    def _finish(self, look: _Look, kept: Kept | None) -> None:
        look.over = True
        if kept is not None:  # else `keep` will be called
            self._looks.pop(look.key, None)
        else:
            look.began_at = self._clock()
        look.then(kept)

    # The circuit

    def _count_failure(self, why: str) -> None:
        now = self._clock()
        if self.circuit.failed(now) and now - self._told_at > LOG_EVERY_S:
            self._told_at = now
            log.warning("model %s: answers are not shared for a while, as Redis %s", self._model, why)

    def _probe(self, now: float) -> None:
        """As long as a look-up may take, and no longer: then it opens or closes."""
        answered = False

        def then(reply: Reply) -> None:
            nonlocal answered
            answered = reply == b"PONG"

        def judge() -> None:
            self.circuit.probed(self._clock(), well=answered)

        if not self._link.ask(PING, then):
            self.circuit.probed(now, well=False)
            return
        loop = asyncio.get_running_loop()
        loop.call_later(timer_delay_s(self.pace.wait_s, 0.0), loop.call_soon, loop.call_soon, judge)

    # What is sent without waiting

    def _store(self, key: Key, frame: bytes) -> None:
        data = command(b"SET", self._prefix + key, frame, b"PX", self._ttl)
        sent = not self.circuit.is_open and not self._closed and self._link.ask(data, self._stored)
        if not sent:
            self.counts.unstored += 1

    def _stored(self, reply: Reply) -> None:
        if reply == b"OK":
            self.counts.stored += 1
        else:
            self.counts.unstored += 1

    def _release(self, key: Key) -> None:
        """Others need not wait. If this is not heard, they wait for the lease's time."""
        self._link.ask(command(b"EVAL", RELEASE, b"1", self._prefix + key, self._lease), _ignore)

    def clear(self) -> None:
        """Take the answers of this version out of Redis, for all nodes."""
        self._clear(b"0", MOST_STEPS)

    def _clear(self, cursor: bytes, steps: int) -> None:
        pattern = b"".join([b"\\" + bytes((one,)) if one in b"*?[]\\^-" else bytes((one,)) for one in self._prefix]) + b"*"

        def then(reply: Reply) -> None:
            if not isinstance(reply, list) or len(reply) != 2:
                log.warning("model %s: the shared answers could not all be cleared", self._model)
                return
            after, keys = reply
            found = [key for key in keys if isinstance(key, bytes)] if isinstance(keys, list) else []
            if found:
                self._link.ask(command(b"DEL", *found), _ignore)
            if isinstance(after, bytes) and after != b"0" and steps:
                self._clear(after, steps - 1)

        if not self._link.ask(command(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", SCANNED), then):
            log.warning("model %s: the shared answers are not cleared: Redis cannot be asked", self._model)

    def close(self) -> None:
        """Nothing is asked any more."""
        self._closed = True

    def state(self) -> dict[str, Any]:
        """JSON."""
        return {
            **self._link.state(),
            "circuit": "open" if self.circuit.is_open else "closed",
            "opened": self.circuit.opened,
            "wait_s": self.pace.wait_s,
            "lease_s": self.pace.lease_s,
            **{name: getattr(self.counts, name) for name in SharedCounts.__struct_fields__},
        }

    def _beside(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """On a thread, as it would hold the event loop."""
        future = asyncio.get_running_loop().run_in_executor(None, work)
        future.add_done_callback(lambda done: None if done.cancelled() else then(done.result()))


def _ignore(reply: Reply) -> None:
    pass
