"""What readers of the dashboard are told: all of it once, then what changes, made once for all who may see the same."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.message import FailureKind, Quota, Ticket
from dlproxy.policy.planner import VersionState
from dlproxy.policy.quota import Quotas
from dlproxy.telemetry.stats import StepCounts, WatchCounts
from dlproxy.wire.dashboard import telling
from dlproxy.wire.dashboard.sampling import MOST_EVENTS
from dlproxy.wire.dashboard.telling import Audience

from .rig import ALL, Rig, place, read

MANY = 1000


async def told(reader: AsyncIterator[bytes]) -> tuple[str, dict[str, Any]]:
    return read(await anext(reader))


def merged(whole: dict[str, Any], delta: dict[str, Any]) -> None:
    """As a page does it."""
    whole["at"] = delta["at"]
    whole["server"] |= delta.get("server", {})
    for name, changed in delta.get("models", {}).items():
        whole["models"].setdefault(name, {}).update(changed)
    for name in delta.get("gone", ()):
        del whole["models"][name]
    whole["events"] = (whole["events"] + delta.get("events", []))[-MOST_EVENTS:]
    for name in ("upstreams", "tenants"):
        whole[name] = delta.get(name, whole[name])


async def test_a_reader_gets_all_then_what_changes() -> None:
    rig = Rig("a", "b")
    rig.second()
    async with aclosing(rig.feed.read(ALL)) as reader:
        kind, whole = await told(reader)
        assert (kind, list(whole["models"]), whole["server"]) == (
            "whole",
            ["a/1", "b/1"],
            {"cores": 2, "ready": True, "may_change": True},
        )
        assert whole["models"]["a/1"]["state"] == "up"
        assert whole["models"]["a/1"]["instances"] == [{"name": "m-0", "state": "up", "busy": 0, "address": "", "problem": ""}]
        rig.models["a/1"].answers(5, rig.now)
        rig.second()
        kind, delta = await told(reader)
        assert (kind, delta.keys(), delta["models"].keys()) == ("delta", {"at", "models"}, {"a/1"})
        assert delta["models"]["a/1"]["rate"] == 5.0
        assert "name" not in delta["models"]["a/1"]
        rig.second()
        assert (await told(reader))[1]["models"]["a/1"]["rate"] == 0.0
        rig.second(20)
        assert (await told(reader))[0] == "whole"
        rig.second()
        assert (await told(reader))[1].keys() == {"at"}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["ask", "load", "unload", "fail", "share", "lose", "pilot", "wait"]), max_size=25))
def test_deltas_add_up_to_what_a_new_reader_gets(happens: list[str]) -> None:
    async def run() -> None:
        rig = Rig("a", "b")
        rig.second()
        async with aclosing(rig.feed.read(ALL)) as reader:
            _, mine = await told(reader)
            for number, what in enumerate(happens):
                do(rig, what, number)
                rig.second()
                kind, delta = await told(reader)
                assert kind == "delta"
                merged(mine, delta)
            async with aclosing(rig.feed.read(ALL)) as other:
                theirs = (await told(other))[1]
                assert mine == theirs

    asyncio.run(run())


def do(rig: Rig, what: str, number: int) -> None:
    models = list(rig.models.values())
    if what == "ask" and models:
        models[number % len(models)].answers(number, rig.now)
    elif what == "load":
        rig.add(f"m{number}")
    elif what == "unload" and models:
        rig.remove(next(iter(rig.models)))
    elif what == "fail":
        rig.say(VersionState("x", "1", "failed", reason=f"attempt {number}"))
    elif what == "share":
        rig.add("a", str(number + 2))
        rig.shares[f"a/{number + 2}"] = 0.1
    elif what == "lose" and models:
        models[0].places = [place("m-0", "lost", "it crashed"), place("m-1", "starting")]
        models[0].stats.stirred += 1
    elif what == "pilot" and models:
        models[-1].pilot = pilot(phase=f"tries {number}")
        rig.feed.note(models[-1].served.name, "autopilot", "an operator pauses it")


async def test_twenty_readers_share_one_encoding_and_one_who_may_see_less_has_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded = []
    encode = telling.msgspec.json.encode
    monkeypatch.setattr(telling.msgspec.json, "encode", lambda data: encoded.append(data) or encode(data))
    rig = Rig("a", "b")
    readers = [rig.feed.read(ALL) for _ in range(20)] + [rig.feed.read(Audience(("b",)))]
    assert len({id(await anext(reader)) for reader in readers}) == 2
    for _ in range(3):
        encoded.clear()
        rig.models["a/1"].answers(1, rig.now)
        rig.second()
        assert len({id(await anext(reader)) for reader in readers}) == len(encoded) == 2
    for reader in readers:
        await reader.aclose()
    encoded.clear()
    rig.second()
    assert not encoded


async def test_a_reader_that_does_not_read_is_left_out_and_then_gets_all_of_it() -> None:
    """Of what it has missed nothing is kept for it."""
    rig = Rig("a")
    async with aclosing(rig.feed.read(ALL)) as slow, aclosing(rig.feed.read(ALL)) as quick:
        await told(slow)
        await told(quick)
        for _ in range(50):
            rig.models["a/1"].answers(1, rig.now)
            rig.second()
            assert (await told(quick))[0] == "delta"
        assert len(rig.feed._encoded) == 1
        kind, whole = await told(slow)
        assert (kind, whole["models"]["a/1"]["rate"]) == ("whole", 1.0)


async def test_models_at_rest_are_not_looked_at() -> None:
    """Nor asked how they are, or encoded; with readers and without."""
    rig = Rig(*map(str, range(MANY)))
    rig.second(2)
    looks = lambda: sum(model.looks for model in rig.models.values())  # noqa: E731 - as short as it is
    before, asked = looks(), rig.asked
    rig.second(10)
    assert (looks(), rig.asked) == (before, asked)
    async with aclosing(rig.feed.read(ALL)) as reader:
        await told(reader)
        before = looks()
        for number in range(1, 6):
            rig.models["7/1"].answers(number, rig.now)
            rig.second()
            _, delta = await told(reader)
            assert delta["models"].keys() == {"7/1"}
        assert looks() == before + 5
        rig.second(30)
        await told(reader)
        before = looks()
        rig.second(10)
        assert looks() == before


@pytest.mark.alone
@pytest.mark.parametrize("moving", [1, 100])
async def test_an_update_of_a_thousand_models_takes_less_than_a_tenth_of_a_second(moving: int) -> None:
    rig = Rig(*map(str, range(MANY)))
    rig.second()
    took = []
    async with aclosing(rig.feed.read(ALL)) as reader:
        await told(reader)
        for number in range(1, 6):
            for model in list(rig.models.values())[:moving]:
                model.answers(number, rig.now)
            began_s = time.process_time()
            rig.second()
            event = await anext(reader)
            took.append(time.process_time() - began_s)
            assert len(read(event)[1]["models"]) == moving
    assert min(took) < 0.1


async def test_one_sees_the_models_that_it_may_see() -> None:
    rig = Rig("mine-1", "mine-2", "theirs")
    rig.models["theirs/1"].places = [place("x", address="10.0.0.1:80")]
    async with aclosing(rig.feed.read(Audience(("mine-*",)))) as reader:
        _, whole = await told(reader)
        assert (list(whole["models"]), whole["upstreams"]) == (["mine-1/1", "mine-2/1"], [])
        rig.remove("theirs/1")
        rig.models["mine-2/1"].answers(1, rig.now)
        rig.feed.note("theirs", "knobs", "something")
        rig.feed.note("mine-1", "knobs", "something else")
        rig.second()
        _, delta = await told(reader)
        assert delta["models"].keys() == {"mine-2/1"}
        assert "gone" not in delta
        assert {event["model"] for event in delta["events"]} == {"mine-1"}
        rig.remove("mine-1/1")
        rig.second()
        assert (await told(reader))[1]["gone"] == ["mine-1/1"]


async def test_text_that_is_no_utf_8_breaks_no_stream() -> None:
    rig = Rig("a")
    rig.say(VersionState("b", "1", "failed", reason="no file b\udcff.onnx"))
    rig.models["a/1"].places = [place("m-0"), place("m-1", "lost", "died of \udcff")]
    async with aclosing(rig.feed.read(ALL)) as reader:
        assert (await told(reader))[1]["models"]["b/1"]["reason"] == r"no file b\udcff.onnx"
        rig.feed.note("a", "knobs", "a label \udcff")
        rig.second()
        assert (await told(reader))[1]["events"][0]["words"] == r"a label \udcff"


async def test_closing_ends_every_stream_at_once() -> None:
    rig = Rig("a")
    readers = [rig.feed.read(ALL) for _ in range(3)]
    for reader in readers:
        await anext(reader)
    waiting = [asyncio.ensure_future(anext(reader, None)) for reader in readers]
    await asyncio.sleep(0)
    rig.feed.close()
    assert await asyncio.gather(*waiting) == [None] * 3


@pytest.mark.looptime
async def test_it_looks_once_a_second_and_a_mistake_ends_it_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    rig = Rig("a")
    rig.feed._clock = loop.time
    rig.feed.start()
    reader = rig.feed.read(ALL)
    began_at = loop.time()
    for _ in range(4):
        await told(reader)
    assert 2.0 < loop.time() - began_at <= 3.0
    rig.changes += 1
    rig.models["a/1"].served.view = lambda: 1 / 0  # type: ignore[assignment,return-value]
    rig.models["a/1"].moved_at = 1.0
    assert await anext(reader, None) is None
    assert "the dashboard has failed, and ends" in caplog.text
    assert rig.feed.closed


def pilot(**fields: Any) -> dict[str, Any]:
    return {"mode": "on", "phase": "", "trying": False, "pins": [], "unusual": "", "decisions": [], **fields}


def _alarm(rig: Rig) -> None:
    model = rig.models["a/1"]
    model.stats.watch = WatchCounts()
    model.stats.watch.unusual = True
    model.stats.stirred += 1
    model.pilot = pilot(phase="holds", unusual="latency 1 s, usually 1 ms")


def _decide(rig: Rig) -> None:
    model = rig.models["a/1"]
    model.stats.decisions["tries"] += 1
    model.stats.stirred += 1
    model.pilot = pilot(decisions=[{"text": "tries max_batch = 8"}])


def _instances(*places: dict[str, Any]) -> Callable[[Rig], None]:
    def change(rig: Rig) -> None:
        rig.models["a/1"].places = list(places)
        rig.models["a/1"].stats.stirred += 1

    return change


def _trial(rig: Rig) -> None:
    rig.models["a/1"].pilot = pilot(trying=True)
    _instances(place("m-1"), place("m-2", "lost", "it crashed"))(rig)


def _share(rig: Rig) -> None:
    rig.shares["a/2"] = 0.1
    rig.add("a", "2")


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        (lambda rig: rig.add("b"), [("b", "load", "version 1 is up")]),
        (lambda rig: rig.say(VersionState("b", "2", "loading")), [("b", "load", "version 2 is being loaded")]),
        (
            lambda rig: rig.say(VersionState("b", "2", "failed", reason="no such file")),
            [("b", "load", "version 2 could not be loaded: no such file")],
        ),
        (lambda rig: rig.remove("a/1"), [("a", "unload", "version 1 is gone")]),
        (
            _share,
            [("a", "load", "version 2 is up"), ("a", "canary", "version 2 gets 10 % of the requests that name no version")],
        ),
        (
            _instances(place("m-0"), place("m-1", "lost", "it crashed")),
            [("a", "instance", "instance m-1 was lost: it crashed")],
        ),
        (
            _instances(place("m-0"), place("m-1", "starting")),
            [("a", "instance", "instance m-1 is being started")],
        ),
        (_trial, [("a", "instance", "instance m-2 was lost: it crashed")]),
        (_instances(), [("a", "instance", "instance m-0 is gone")]),
        (_alarm, [("a", "alarm", "something is unusual: latency 1 s, usually 1 ms")]),
        (_decide, [("a", "autopilot", "tries max_batch = 8")]),
        (lambda rig: rig.models["a/1"].answers(3, rig.now), []),
    ],
)
def test_what_happens_is_told_once(happens: Callable[[Rig], None], words: list[tuple[str, str, str]]) -> None:
    rig = Rig("a")
    rig.second()
    assert rig.events == []
    happens(rig)
    rig.second(3)
    assert rig.events == words


def test_what_is_refused_and_what_fails_is_told_apart() -> None:
    rig = Rig("a")
    rig.second()
    stats = rig.models["a/1"].stats
    for kind, times in (
        (FailureKind.OVERLOADED, 4),
        (FailureKind.QUOTA, 1),
        (FailureKind.MODEL_FAILED, 2),
        (FailureKind.CANCELLED, 9),
    ):
        stats.failed(kind, 0.0, times)
    rig.second()
    told = rig.sampler.shown(("a", "1"))
    assert (told["rejects_rate"], told["failures_rate"]) == (5.0, 2.0)


def test_a_pipeline_tells_what_its_steps_wait_and_compute() -> None:
    rig = Rig("a")
    rig.second()
    stats = rig.models["a/1"].stats
    assert rig.sampler.shown(("a", "1"))["steps"] is None
    stats.steps = {"decode": StepCounts(), "read": StepCounts(skipped=1)}
    for _ in range(2):
        stats.steps["decode"].began()
    stats.steps["decode"].ended(waited_s=0.001, computed_s=0.0021234)
    decode, read = rig.sampler.shown(("a", "1"))["steps"]
    assert decode == {
        "name": "decode",
        "running": 1,
        "usual_wait_s": 0.001,
        "usual_s": 0.00212,
        "ended": 1,
        "skipped": 0,
        "failed": 0,
    }
    assert (read["name"], read["skipped"]) == ("read", 1)


async def test_who_has_a_quota_is_told_to_those_who_may_see_all() -> None:
    quotas = Quotas({"shop": Quota(requests_per_s=10.0, burst_s=1.0)})
    rig = Rig("a")
    rig.feed._uses = lambda: quotas.uses(0.0)
    async with aclosing(rig.feed.read(ALL)) as reader, aclosing(rig.feed.read(Audience(("a",)))) as other:
        assert ((await told(reader))[1]["tenants"][0]["requests_left"], (await told(other))[1]["tenants"]) == (1.0, [])
        for number in range(12):
            quotas.admit(Ticket(number, 0.0, tenant="shop"), 0.0)
        rig.second()
        (tenant,) = (await told(reader))[1]["tenants"]
        assert tenant.pop("requests_left") == pytest.approx(0.0)
        assert tenant == {
            "name": "shop",
            "of": "tenant",
            "requests_per_s": 10.0,
            "rows_per_s": None,
            "concurrent": None,
            "running": 0,
            "rows_left": None,
            "admitted": 10,
            "refused": 2,
            "rate": 10,
            "refused_rate": 2,
        }
        assert "tenants" not in (await told(other))[1]
