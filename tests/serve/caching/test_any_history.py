"""Whatever happens in whatever order: every request is answered once, as without a cache, and nothing is left behind."""

import os
from collections.abc import Sequence

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from looptime import new_event_loop

from dlproxy.message import FailureKind
from tests.serve.caching.site import Site, how
from tests.serve.rig import Array, Reply, Rig, pass_time, turns

HISTORIES = int(os.environ.get("DLPROXY_HISTORIES", "40"))
FAILS = 5.0
OF_ONE = {FailureKind.CANCELLED, FailureKind.LATE, FailureKind.DEADLINE}


class History(RuleBasedStateMachine):
    """Values are few, so that they repeat; a model multiplies by its version, and fails on one value while it is broken."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = new_event_loop()
        self.version, self.broken = 1, False
        self.open: list[tuple[Reply, list[float], int]] = []
        self.site = self.loop.run_until_complete(self._new())

    async def _new(self) -> Site:
        version = self.version

        def multiply(inputs: Sequence[Array]) -> list[Array]:
            if self.broken and (inputs[0] == FAILS).any():
                raise ValueError("broken")
            return [np.asarray(inputs[0], np.float32) * np.float32(version)]

        return Site(Rig(function=multiply, service_s=0.010), cache_ttl_s=1.0, cache_rows=True)

    @rule(
        value=st.sampled_from([1.0, 2.0, 3.0, FAILS]),
        rows=st.sampled_from([1, 1, 1, 2, 3]),
        max_age_s=st.sampled_from([float("inf"), float("inf"), 0.5, 0.0, -1.0]),
        timeout_s=st.sampled_from([float("inf"), float("inf"), 0.005, 0.012]),
        priority=st.sampled_from([0, 0, 1, 6]),
    )
    def submit(self, value: float, rows: int, max_age_s: float, timeout_s: float, priority: int) -> None:
        async def send() -> Reply:
            return self.site.send(value, rows=rows, max_age_s=max_age_s, timeout_s=timeout_s, priority=priority, promised=True)

        reply = self.loop.run_until_complete(send())
        self.open.append((reply, [(value + row) * self.version for row in range(rows)], self.version))

    @rule(which=st.integers(0, 20))
    def cancel(self, which: int) -> None:
        async def cancel() -> None:
            self.site.cancel(self.open[which % len(self.open)][0])

        if self.open:
            self.loop.run_until_complete(cancel())

    @rule(seconds=st.sampled_from([0.0, 0.004, 0.02, 1.2]))
    def wait(self, seconds: float) -> None:
        self.loop.run_until_complete(pass_time(seconds))

    @rule()
    def clear(self) -> None:
        async def clear() -> None:
            self.site.layer.clear()

        self.loop.run_until_complete(clear())

    @rule(budget=st.sampled_from([0, 12_000, 2**20]))
    def resize(self, budget: int) -> None:
        async def resize() -> None:
            self.site.layer.resize(budget)

        self.loop.run_until_complete(resize())

    @rule(broken=st.booleans())
    def break_down(self, broken: bool) -> None:
        self.broken = broken

    @rule()
    def replace(self) -> None:
        """As serve/models.py does: the new one is asked from now on, the old one finishes."""
        old, self.version = self.site, self.version + 1
        self.site = self.loop.run_until_complete(self._new())
        self.loop.run_until_complete(self._over(old))

    @invariant()
    def what_was_answered_is_right(self) -> None:
        still = []
        for reply, want, version in self.open:
            if not reply.answered:
                still.append((reply, want, version))
            elif reply.response is not None:
                assert reply.values == want
                assert how(reply) in {"hit", "miss", "joined", "partial", "bypass"}
            else:
                failed = reply.kind is FailureKind.MODEL_FAILED
                assert reply.kind in OF_ONE or (failed and FAILS * version in want)
        self.open = still

    async def _over(self, site: Site) -> None:
        site.layer.close()
        await site.rig.driver.stop(5.0)
        await turns(5)
        assert not any(reply for reply, _, version in self.open if not reply.answered and version < self.version)
        await site.end()

    def teardown(self) -> None:
        self.version += 1
        try:
            self.loop.run_until_complete(self._over(self.site))
            self.what_was_answered_is_right()
            assert not self.open
        finally:
            self.loop.close()


TestAnyHistory = History.TestCase
TestAnyHistory.settings = settings(
    max_examples=HISTORIES, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
