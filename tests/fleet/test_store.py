"""What every store promises: no change is lost, whoever waits hears of it, and a handle that was cut off catches up."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from dlproxy import __version__
from dlproxy.config import ConfigError, ModelConfig
from dlproxy.fleet.control import Control
from dlproxy.fleet.shared_store import SharedStore, encode
from dlproxy.fleet.store import Store, StoreError, open_store
from dlproxy.policy.planner import Routes
from dlproxy.policy.wanted import Traffic, Wanted, WantedModel, WantedVersion
from tests.fleet.store_editor import add
from tests.fleet.store_places import FolderPlace, MemoryPlace, Place, RedisPlace, SharedPlace
from tests.fleet.test_control import FakeModels, a_model, having

TASKS = 6
EDITS = 8
MODEL = WantedModel(
    versions={
        "1": WantedVersion(ModelConfig(path="/m/1.onnx"), stamp="a", instances=2),
        "2": WantedVersion(
            ModelConfig(path="http://h/m", version="2", upstream_headers={"x": "\N{SNOWMAN}"}), problem="broken"
        ),
    },
    default="1",
    labels={"canary": "2"},
    traffic=Traffic({"2": 0.1}, by="tenant", tenants={"shop": "2"}, shadow="2", guarded=True),
    on_demand=True,
    previous=WantedModel(default=""),
)

Open = Callable[[], Store]


@pytest.fixture(params=[MemoryPlace, FolderPlace, RedisPlace])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    place: Place = request.param(tmp_path)
    yield place
    place.end()


shared = pytest.mark.parametrize("place", [FolderPlace, RedisPlace], indirect=True)


@pytest.fixture
async def handle(place: Place) -> AsyncIterator[Open]:
    """Another handle on the store; all are closed at the end."""
    opened: list[Store] = []

    def open_one() -> Store:
        opened.append(place.open())
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


async def names(store: Store) -> list[str]:
    return list((await store.read()).models)


async def soon(*waits: Any) -> None:
    await asyncio.wait_for(asyncio.gather(*waits), 10)


async def test_concurrent_edits_lose_no_change(handle: Open) -> None:
    handles = [handle(), handle()]

    async def edit(task: int) -> None:
        for turn in range(EDITS):
            await add(handles[task % 2], f"m{task}-{turn}")

    await asyncio.gather(*map(edit, range(TASKS)))
    for store in [*handles, handle()]:
        found = await store.read()
        assert sorted(found.models) == sorted(f"m{task}-{turn}" for task in range(TASKS) for turn in range(EDITS))
        assert found.revision == TASKS * EDITS


async def test_an_outdated_revision_changes_nothing(handle: Open) -> None:
    one, other = handle(), handle()
    seen = await one.read()
    assert seen == Wanted()
    await add(other, "first")
    assert not await one.swap(seen.revision, replace(seen, revision=seen.revision + 1))
    assert await names(one) == ["first"]


async def test_whoever_waits_for_a_change_hears_of_it(handle: Open) -> None:
    one, other = handle(), handle()
    await soon(one.read(), other.read())
    waits = [asyncio.create_task(store.changed(0)) for store in (one, other)]
    done, _ = await asyncio.wait(waits, timeout=0.1)
    assert not done
    await add(other, "m")
    await soon(*waits)
    await soon(one.changed(0))
    assert await names(one) == ["m"]


async def test_everything_that_can_be_wanted_comes_back(handle: Open) -> None:
    wanted = Wanted({"m": MODEL, "empty": WantedModel()}, 1)
    assert await handle().swap(0, wanted)
    assert await handle().read() == wanted


class Node(FakeModels):
    """What serves on one node. `changed`: whenever that is something else."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.changed = asyncio.Event()
        self.control = Control(self, store)

    def route(self, name: str, routes: Routes) -> None:
        super().route(name, routes)
        self.changed.set()

    async def load(self, name: str, config: ModelConfig) -> None:
        self.up[name, config.version] = config


async def test_nodes_serve_what_one_of_them_is_told(handle: Open) -> None:
    nodes = [Node(handle()) for _ in range(3)]
    for node in nodes[:2]:
        await node.control.start()
    for teller, version in ((nodes[0], "1"), (nodes[1], "2")):
        for node in nodes:
            node.changed.clear()
        await teller.control.change(having("m", a_model(version)))
        await soon(*(node.changed.wait() for node in nodes[:2]))
        assert [node.routes["m"].default for node in nodes[:2]] == [version, version]
    await nodes[2].control.start()
    await nodes[2].control.settled("m")
    assert list(nodes[2].up) == [("m", "2")]
    for node in nodes:
        await node.control.stop()


@shared
async def test_cut_off_a_handle_goes_on_with_what_it_saw_and_catches_up(
    handle: Open, place: SharedPlace, caplog: pytest.LogCaptureFixture
) -> None:
    one = handle()
    await add(one, "before")
    seen = await one.read()
    place.cut()
    for _ in range(2):
        assert await one.read() == seen
    with pytest.raises(StoreError, match=r"store .* cannot be"):
        await add(one, "lost")
    with pytest.raises(StoreError, match=r"store .* cannot be"):
        await handle().read()
    waiting = asyncio.create_task(one.changed(seen.revision))
    done, _ = await asyncio.wait([waiting], timeout=0.2)
    assert not done
    assert [record.levelno for record in caplog.records] == [logging.WARNING]

    place.mend()
    await add(handle(), "after")
    await soon(waiting)
    assert await names(one) == ["before", "after"]
    await add(one, "more")
    assert "can be used again (revision" in caplog.text
    assert len(caplog.records) == 2


@shared
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has not written"),
        (b"hello", "has not written"),
        (b'"\xff"', "has not written"),
        (b"[" * 100_000, "has not written"),
        (b'{"models": {}}', "has not written"),
        (
            b'{"format": 2, "dlproxy": "9.1", "what": 1}',
            r"by dlproxy 9\.1 in format 2; this is dlproxy .*, which reads format 1",
        ),
        (b'{"format": 1, "dlproxy": "9.1", "revision": 5, "models": {}, "x": 1}', r"by dlproxy 9\.1; this is dlproxy .*`x`"),
        (b'{"format": 1, "dlproxy": "9.1", "revision": 5, "models": {"m": {"x": 1}}}', r"9\.1; this is dlproxy .*`x`"),
        (
            b'{"format": 1, "dlproxy": "9.1", "revision": 5, "models": {"m": {"default": "7"}}}',
            "version 7, which is not wanted",
        ),
        (b'{"format": 1, "dlproxy": "9.1", "revision": -5, "models": {}}', "does not understand it"),
    ],
)
async def test_what_is_not_understood_is_said_and_left_as_it_is(
    handle: Open, place: SharedPlace, content: bytes, says: str
) -> None:
    one = handle()
    await add(one, "m")
    good = place.get()
    seen = await one.read()
    place.put(content)
    for refused in (handle().read(), one.swap(1, replace(seen, revision=2))):
        with pytest.raises(ConfigError, match=says) as raised:
            await refused
        assert not isinstance(raised.value, StoreError)
    assert await one.read() == seen
    waiting = asyncio.create_task(one.changed(1))
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done
    assert place.get() == content

    place.put(good)
    await add(handle(), "next")
    await soon(waiting)
    assert await names(one) == ["m", "next"]


@shared
@pytest.mark.parametrize("left", [None, encode(Wanted({}, 1))])
async def test_what_was_forgotten_is_put_back(
    handle: Open, place: SharedPlace, caplog: pytest.LogCaptureFixture, left: bytes | None
) -> None:
    one = handle()
    await add(one, "a")
    await add(one, "b")
    kept = place.get()
    place.put(left)
    waiting = asyncio.create_task(one.changed(2))
    assert await names(one) == ["a", "b"]
    assert place.get() == kept
    assert "it is put back" in caplog.text
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done
    await add(handle(), "c")
    await soon(waiting)


@shared
async def test_another_change_of_the_same_revision_is_a_change(handle: Open, place: SharedPlace) -> None:
    one = handle()
    await add(one, "mine")
    seen = await one.read()
    waiting = asyncio.create_task(one.changed(1))
    await asyncio.sleep(0)
    place.put(encode(Wanted({"other": WantedModel()}, 1)))
    await soon(waiting)
    assert not await one.swap(1, replace(seen, revision=2))
    assert await names(one) == ["other"]


@shared
async def test_an_answer_that_is_lost_loses_no_change(
    handle: Open, place: SharedPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = handle()
    assert isinstance(one, SharedStore)
    really = one._replace

    async def lost(old: bytes | None, new: bytes) -> bool:
        await really(old, new)
        raise StoreError("no answer")

    monkeypatch.setattr(one, "_replace", lost)
    assert await one.swap(0, Wanted({"a": WantedModel()}, 1))

    async def cut(old: bytes | None, new: bytes) -> bool:
        place.cut()
        raise StoreError("no answer")

    monkeypatch.setattr(one, "_replace", cut)
    with pytest.raises(StoreError, match="it is not known whether the change was made: no answer"):
        await one.swap(1, Wanted({}, 2))


def test_what_is_kept_says_what_wrote_it() -> None:
    kept = msgspec.json.decode(encode(Wanted({}, 3)))
    assert kept == {"format": 1, "dlproxy": __version__, "revision": 3, "models": {}}


@pytest.mark.parametrize(
    "url",
    ["http://h/x", "s3://bucket", "etcd:h", "REDIS+unix://x"],
)
def test_an_unknown_kind_of_store_is_refused_with_what_there_is(url: str) -> None:
    with pytest.raises(ConfigError, match=r"path of a folder .* redis://.* rediss://") as refused:
        open_store(url)
    assert refused.value.knob == "store"


@pytest.mark.parametrize(
    "rest",
    [
        "host:port/0",
        "host:99999/0",
        "host/zero",
        "host/-1",
        "/0",
        "host/0?other=1",
        "host/0?key=a&key=b",
        "host/0?key",
        "host/0?key=",
        "[::1/0",
        "host/0#x",
    ],
)
def test_a_wrong_address_of_redis_is_refused_without_its_password(rest: str) -> None:
    with pytest.raises(ConfigError, match=r"redis://HOST:6379/0\?key=NAME") as refused:
        open_store(f"redis://me:secret@{rest}")
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "lacking", "module", "says"),
    [
        ("redis://h", "redis.asyncio", "redis_store", r"pip install 'dlproxy\[redis\]'"),
        ("folder", "fcntl", "folder_store", "which this system lacks"),
    ],
)
def test_what_a_store_needs_and_is_not_there_is_said(
    url: str, lacking: str, module: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, lacking, None)
    monkeypatch.delitem(sys.modules, f"dlproxy.fleet.{module}")
    with pytest.raises(ConfigError, match=says):
        open_store(url)
