"""A recording that is played: whoever reads is told what was told then, at any speed, from any instant."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dlproxy.lab.recording.player import LEAST_S, Player
from dlproxy.lab.recording.recording import Delta, Frame, Recording, Told, Whole
from dlproxy.wire.dashboard.telling import Audience
from tests.wire.dashboard.rig import Rig, read

ALL = Audience(None, may_change=True)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def heard(stream: AsyncIterator[bytes]) -> tuple[str, Told]:
    return read(await anext(stream))


def made(seconds: int = 6) -> tuple[list[Frame], list[dict[str, Any]]]:
    """The messages of a real feed whose models come, work and go, and all that there was with each."""
    rig = Rig("one", "two")
    rig.second()
    frames: list[Frame] = []
    wholes: list[dict[str, Any]] = []

    async def live() -> None:
        stream = rig.feed.read(ALL)
        for second in range(seconds):
            rig.models["one/1"].answers(10 * second, rig.now)
            if second == 2:
                rig.add("late")
            if second == 4:
                rig.remove("two/1")
            if second:
                rig.second()
            event, told = await heard(stream)
            frames.append(Whole(told) if event == "whole" else Delta(told))
            wholes.append(json.loads(await rig.feed.now(ALL)))
        await stream.aclose()

    asyncio.run(live())
    return frames, wholes


FRAMES, WHOLES = made()


def player(**how: Any) -> tuple[Player, Clock]:
    clock = Clock()
    return Player(Recording("here", FRAMES), clock=clock, **how), clock


def seen(told: dict[str, Any]) -> dict[str, Any]:
    """Without what a recording has of its own."""
    server = {name: value for name, value in told["server"].items() if name not in ("replay", "may_change")}
    return {**told, "server": server}


async def test_each_second_is_told_as_it_was() -> None:
    played, clock = player()
    for whole in WHOLES:
        assert seen(json.loads(await played.now(ALL))) == seen(whole)
        clock.now += 1.0
        played.advance()
    assert not played.playing
    assert played.offset_s == played.length_s == len(FRAMES) - 1


async def test_a_reader_hears_what_has_changed() -> None:
    played, clock = player()
    stream = played.read(ALL)
    assert (await heard(stream))[0] == "whole"
    for frame in FRAMES[1:-1]:
        clock.now += 1.0
        played.advance()
        event, told = await heard(stream)
        assert event == "delta"
        for part in ("models", "gone", "events"):
            assert told.get(part) == frame.told.get(part), part


async def test_what_is_due_at_once_is_told_at_once() -> None:
    played, clock = player(speed=100.0)
    stream = played.read(ALL)
    await heard(stream)
    clock.now += LEAST_S  # five seconds of it
    played.advance()
    event, told = await heard(stream)
    assert event == "delta"
    assert told["at"] == FRAMES[5].at
    assert told["events"] == [event for frame in FRAMES[1:] for event in frame.told.get("events", [])]


async def test_a_jump_back_is_told_whole() -> None:
    played, clock = player()
    stream = played.read(ALL)
    await heard(stream)
    clock.now += 4.0
    played.advance()
    await heard(stream)
    played.steer(at=FRAMES[1].at + 0.4)
    event, told = await heard(stream)
    assert event == "whole"
    assert seen(told) == seen(WHOLES[1])
    assert told["server"]["replay"]["jumps"] == 2
    clock.now += 0.6
    played.advance()
    assert (await heard(stream))[1]["at"] == FRAMES[2].at


@pytest.mark.parametrize(("at", "place"), [(-1e9, 0), (1e12, len(FRAMES) - 1)])
async def test_a_jump_beyond_the_ends_is_to_the_end(at: float, place: int) -> None:
    played, _ = player()
    played.steer(at=at)
    assert seen(json.loads(await played.now(ALL))) == seen(WHOLES[place])


async def test_a_pause_holds_and_playing_goes_on_from_there() -> None:
    played, clock = player()
    clock.now += 2.0
    played.advance()
    played.steer(playing=False)
    clock.now += 100.0
    assert played.offset_s == 2.0
    played.steer(playing=True, speed=2.0)
    clock.now += 0.5
    played.advance()
    assert played.picture.at == FRAMES[3].at


async def test_at_the_end_it_begins_anew() -> None:
    played, clock = player()
    clock.now += 100.0
    played.advance()
    assert not played.playing
    played.steer(speed=5.0)
    assert not played.playing
    played.steer(playing=True)
    assert (played.playing, played.offset_s, played.picture.at) == (True, 0.0, FRAMES[0].at)


async def test_nothing_can_be_changed() -> None:
    played, _ = player()
    assert json.loads(await played.now(ALL))["server"]["may_change"] is False


def test_history_ends_with_what_is_shown() -> None:
    played, _ = player()
    played.steer(at=FRAMES[3].at)
    told = played.history("one", "1", 300)
    assert told["at"] == [frame.at for frame in FRAMES[:4]]
    assert told["rate"] == [whole["models"]["one/1"].get("rate", 0.0) for whole in WHOLES[:4]]
    assert played.history("one", "1", 2)["at"] == told["at"][-2:]
    assert len(played.history("late", "1", 300)["at"]) == 2
    assert played.history("none", "1", 300)["at"] == []


async def test_it_plays_by_itself() -> None:
    played = Player(Recording("here", FRAMES), speed=500.0)
    running = asyncio.create_task(played.run())
    stream = played.read(ALL)
    async with asyncio.timeout(10):
        while played.playing:
            await anext(stream)
    assert seen(json.loads(await played.now(ALL))) == seen(WHOLES[-1])
    running.cancel()
