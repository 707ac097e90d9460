"""A cache that turns itself on where requests repeat, off where they do not; never for a model that draws random numbers."""

import logging
from collections.abc import Iterable, Sequence
from itertools import count, cycle

import numpy as np
import pytest

from dlproxy.policy.caching.auto import RECHECK
from tests.serve.caching.site import Site, how
from tests.serve.rig import Array, Rig, pass_time

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)
MOST = 10_000  # requests until it is on or off
drawn = np.random.default_rng(0)


def random(inputs: Sequence[Array]) -> list[Array]:
    return [np.asarray(inputs[0], np.float32) + drawn.random(inputs[0].shape, np.float32)]


async def ask(site: Site, values: Iterable[float], requests: int) -> list[str]:
    """What the cache had to do with each, 64 at a time."""
    found: list[str] = []
    source = iter(values)
    while len(found) < requests:
        replies = [site.send(next(source)) for _ in range(64)]
        for reply in replies:
            await reply.wait()
        found += [how(reply) for reply in replies]
    await pass_time(0.1)  # what is run to compare comes last
    return found


async def test_it_turns_itself_on_for_keys_that_repeat_and_off_for_unique_ones() -> None:
    site = Site(cache="auto")
    assert site.layer.watch.state == "auto: off"
    found = await ask(site, cycle(map(float, range(50))), MOST)
    assert site.layer.watch.state == "auto: on"
    assert "hit" in found
    assert set(found[-1000:]) <= {"hit", "joined"}
    ran = site.ran
    found = await ask(site, map(float, count(1000)), MOST)
    assert site.layer.watch.state == "auto: off"
    assert set(found[-1000:]) == {""}
    assert not len(site.layer.cache), "the memory is others'"
    assert site.ran - ran >= MOST
    await site.end()


async def test_unique_keys_never_turn_it_on() -> None:
    site = Site(cache="auto")
    found = await ask(site, map(float, count()), 2 * MOST)
    assert set(found) == {""}
    await site.end()


async def test_random_answers_are_found_and_never_kept(caplog: pytest.LogCaptureFixture) -> None:
    site = Site(Rig(function=random), cache="auto")
    found = await ask(site, cycle(map(float, range(50))), 2 * MOST)
    assert set(found) == {""}
    assert site.layer.watch.state == "off: equal inputs gave different answers"
    assert "nothing is remembered any more" in caplog.text
    await site.end()


async def test_answers_that_differ_later_end_it(caplog: pytest.LogCaptureFixture) -> None:
    drifts = [0.0]

    def drift(inputs: Sequence[Array]) -> list[Array]:
        return [np.asarray(inputs[0], np.float32) + np.float32(drifts[0])]

    site = Site(Rig(function=drift), cache="auto")
    await ask(site, cycle(map(float, range(50))), MOST)
    assert site.layer.watch.state == "auto: on"
    drifts[0] = 1.0
    await ask(site, cycle(map(float, range(50))), 2 * RECHECK)
    assert await ask(site, [1.0] * 64, 64) == [""] * 64
    assert site.layer.watch.state == "off: equal inputs gave different answers"
    rechecks = site.layer.counts.rechecks
    assert (rechecks["same"] >= 1, rechecks["different"]) == (True, 1), "one at a time, and none after that"
    await site.end()


async def test_who_turned_it_on_is_warned(caplog: pytest.LogCaptureFixture) -> None:
    site = Site(Rig(function=random), cache="on")
    await ask(site, cycle([1.0]), 3 * RECHECK)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in warnings] == [
        "model m: equal inputs gave different answers: cache = 'on' keeps them all the same"
    ]
    assert site.layer.watch.state == "on"
    await site.end()
