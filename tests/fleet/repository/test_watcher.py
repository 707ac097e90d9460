"""A repository that is followed: when what has changed is taken up, and what never is."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from time import time_ns

import pytest
from msgspec.structs import replace

from dlproxy.config import ConfigError, ModelConfig, ServerConfig
from dlproxy.fleet.control import Control
from dlproxy.fleet.folder_store import FolderStore
from dlproxy.fleet.repository.settling import SETTLE_S
from dlproxy.fleet.repository.watcher import PATIENCE_S, RESCAN_S, Edit, Repository
from dlproxy.policy.changes import rolled_back
from dlproxy.policy.wanted import Wanted, WantedModel, WantedVersion
from dlproxy.testing.clock import ManualClock
from tests.fleet.repository.fixtures import Store, much_later, put, remove
from tests.fleet.test_control import FakeModels


class Followed:
    """A repository that is looked at when the test says so, and whose files are all old."""

    def __init__(
        self, root: Path, store: Store | None = None, change: Callable[[Edit], Awaitable[object]] | None = None
    ) -> None:
        self.clock = ManualClock()
        self.store = store or Store()
        config = ServerConfig(repository=str(root))
        self.repository = Repository(config, change or self.store.change, self.clock, wall_ns=much_later)

    async def look(self, after_s: float = SETTLE_S) -> set[str]:
        self.clock.advance(after_s)
        return await self.repository.look()


async def test_what_is_there_at_start_is_wanted_at_once(tmp_path: Path) -> None:
    put(tmp_path, "m/3/model.onnx", "n.onnx")
    followed = Followed(tmp_path)
    assert await followed.look() == set()
    assert followed.store.served == {"m": ["3"], "n": ["1"]}


async def test_a_change_is_taken_up_when_two_looks_agree(tmp_path: Path) -> None:
    put(tmp_path, "m/3/model.onnx")
    followed = Followed(tmp_path)
    await followed.look()
    put(tmp_path, "m/4/model.onnx")
    assert await followed.look() == {"m"}
    put(tmp_path, "m/4/model.onnx", content=b"more of it")
    assert await followed.look() == {"m"}
    assert await followed.look(SETTLE_S / 2) == {"m"}
    assert followed.store.served == {"m": ["3"]}
    assert await followed.look(SETTLE_S / 2) == set()
    assert followed.store.served == {"m": ["4"]}
    changes = followed.store.changes
    assert await followed.look() == set()
    assert followed.store.changes == changes


async def test_a_rollback_holds_in_the_next_life_too(tmp_path: Path) -> None:
    """Until the files change again."""
    put(tmp_path, "models/m/1/model.onnx")

    @asynccontextmanager
    async def life() -> AsyncIterator[tuple[Control, Followed]]:
        control = Control(FakeModels(), FolderStore(tmp_path / "store"))
        await control.start()
        yield control, Followed(tmp_path / "models", change=control.change)
        await control.stop()

    async with life() as (control, followed):
        await followed.look()
        put(tmp_path, "models/m/2/model.onnx")
        assert [await followed.look() for _ in range(2)] == [{"m"}, set()]
        assert list(control.wanted.model("m").versions) == ["2"]
        await control.change(lambda wanted: wanted.having("m", rolled_back(wanted.model("m"))))
    for _ in range(2):
        async with life() as (control, followed):
            assert await followed.look() == set()
            assert list(control.wanted.model("m").versions) == ["1"]
    async with life() as (control, followed):
        put(tmp_path, "models/m/3/model.onnx")
        assert await followed.look() == set()
        assert list(control.wanted.model("m").versions) == ["3"]


async def test_another_content_of_a_version_has_another_stamp(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx")
    followed = Followed(tmp_path)
    await followed.look()
    stamp = followed.store.wanted.models["m"].versions["1"].stamp
    put(tmp_path, "m/1/model.onnx", content=b"another model")
    await followed.look()
    assert followed.store.wanted.models["m"].versions["1"].stamp == stamp
    await followed.look()
    assert followed.store.wanted.models["m"].versions["1"].stamp != stamp


async def test_a_model_that_is_moved_away_for_a_moment_stays(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx", "n.onnx")
    followed = Followed(tmp_path)
    await followed.look()
    (tmp_path / "m").rename(tmp_path / ".m")
    assert await followed.look() == {"m"}
    (tmp_path / ".m").rename(tmp_path / "m")
    assert await followed.look() == {"m"}
    assert await followed.look() == set()
    assert followed.store.changes == 1
    remove(tmp_path / "m")
    await followed.look()
    assert followed.store.served == {"m": ["1"], "n": ["1"]}
    await followed.look()
    assert followed.store.served == {"n": ["1"]}


async def test_what_was_there_in_an_earlier_life_goes(tmp_path: Path) -> None:
    put(tmp_path, "m.onnx", "n.onnx")
    first = Followed(tmp_path)
    await first.look()
    remove(tmp_path / "m.onnx")
    await Followed(tmp_path, first.store).look()
    assert first.store.served == {"n": ["1"]}


async def test_a_young_file_is_waited_for_and_one_from_the_future_is_not(tmp_path: Path) -> None:
    put(tmp_path, "m.onnx")
    followed = Followed(tmp_path)
    born_ns = (tmp_path / "m.onnx").stat().st_ctime_ns
    now = born_ns + int(0.9e9)
    repository = Repository(ServerConfig(repository=str(tmp_path)), followed.store.change, ManualClock(), wall_ns=lambda: now)
    assert await repository.look() == {"m"}
    now = born_ns + int(1.1e9)
    repository = Repository(ServerConfig(repository=str(tmp_path)), followed.store.change, ManualClock(), wall_ns=lambda: now)
    assert await repository.look() == set()
    now = born_ns - 1
    repository = Repository(ServerConfig(repository=str(tmp_path)), followed.store.change, ManualClock(), wall_ns=lambda: now)
    assert await repository.look() == set()


async def test_a_repository_that_vanishes_unloads_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root, "m.onnx", "n.onnx")
    followed = Followed(root)
    await followed.look()
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="cannot be read"):
        await followed.look()
    root.mkdir()  # as what a disk was mounted on
    for _ in range(3):
        with pytest.raises(ConfigError, match="is empty, and another folder than before: is it mounted"):
            await followed.look()
    assert followed.store.served == {"m": ["1"], "n": ["1"]}
    root.rmdir()
    (tmp_path / "elsewhere").rename(root)
    assert await followed.look() == set()
    assert followed.store.changes == 1
    remove(root / "m.onnx")
    remove(root / "n.onnx")  # emptied by hand
    await followed.look()
    await followed.look()
    assert followed.store.served == {}


async def test_what_is_left_out_is_logged_once_until_it_is_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "m/1/model.onnx", "m/old/model.onnx", "n.onnx")
    followed = Followed(tmp_path)
    for _ in range(3):
        await followed.look()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "model 'm': the folder old is left out" in caplog.text
    for step in (lambda: remove(tmp_path / "m" / "old"), lambda: put(tmp_path, "m/old/model.onnx")):
        step()
        await followed.look()
        await followed.look()
    assert len(caplog.records) == 2


async def test_models_of_the_configuration_win(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "m.onnx")
    theirs = WantedModel(versions={"1": WantedVersion(config=ModelConfig(path="theirs.onnx"))})
    followed = Followed(tmp_path, Store(Wanted(models={"m": theirs})))
    await followed.look()
    await followed.look()
    assert followed.store.wanted.models == {"m": theirs}
    assert caplog.text.count("another one of that name is served") == 1


async def test_a_model_whose_files_are_the_same_stays_as_operators_want_it(tmp_path: Path) -> None:
    put(tmp_path, "m/3/model.onnx", "n.onnx")
    followed = Followed(tmp_path)
    await followed.look()
    back = replace(followed.store.wanted.models["m"], versions={})
    followed.store.wanted = followed.store.wanted.having("m", back)
    put(tmp_path, "o.onnx")
    await followed.look()
    await followed.look()
    assert followed.store.served == {"m": [], "n": ["1"], "o": ["1"]}


@pytest.mark.parametrize("content", [b"", b"max_batch = nothing"])
async def test_a_model_that_breaks_stays_as_it_was(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "m/3/model.onnx", "n.onnx", "o/net.onnx")
    followed = Followed(tmp_path)
    await followed.look()
    before = followed.store.wanted
    put(tmp_path, "m/dlproxy.toml", "n.onnx", content=content)
    remove(tmp_path / ("m/3" if not content else "n.onnx"))
    remove(tmp_path / "o" / "net.onnx")  # as if nothing was mounted there
    await followed.look()
    await followed.look()
    assert followed.store.wanted.models["m"] == before.models["m"]
    assert followed.store.wanted.models["o"] == before.models["o"]
    assert caplog.text.count("model 'm' stays as it was: ") == 1
    assert followed.store.wanted.models.get("n") == (None if content else before.models["n"])


# By name


async def test_explicit_wants_nothing_until_it_is_asked(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx", "m/2/model.onnx", "n.onnx", "bad/1/labels.txt")
    store = Store()
    server = ServerConfig(repository=str(tmp_path), repository_mode="explicit", repository_on_demand=True)
    repository = Repository(server, store.change, wall_ns=much_later)
    await repository.start()
    assert store.changes == 0
    assert await repository.available() == {"m": ["1", "2"], "n": ["1"], "bad": ["1"]}
    await repository.load("m")
    assert store.served == {"m": ["2"]}
    assert store.wanted.models["m"].on_demand
    await repository.load("m", {"serve_versions": "all", "max_batch": 7})
    assert store.served == {"m": ["1", "2"]}
    assert store.wanted.models["m"].versions["1"].config.max_batch == 7
    with pytest.raises(ConfigError, match=r"model 'bad': .*1 holds no model: nothing but labels.txt"):
        await repository.wanted_of("bad")
    with pytest.raises(ConfigError, match=r"no model 'mm' in the repository "):
        await repository.wanted_of("mm")
    await repository.stop()


async def test_what_a_pipeline_asks_comes_with_it(tmp_path: Path) -> None:
    put(tmp_path, "det/1/model.onnx", "rec/1/model.onnx", "rec/2/model.onnx", "spare.onnx")
    for name, asked in (("ocr", ("det", "words", "elsewhere")), ("words", ("rec",))):
        steps = "".join(f'[steps.s{at}]\nmodel = "{one}"\ninputs = {{x = "x"}}\n' for at, one in enumerate(asked))
        outputs = " | ".join(f"s{at}.y" for at in range(len(asked)))
        text = f'inputs = {{x = "FP32[-1]"}}\noutputs = {{y = "{outputs}"}}\n{steps}'
        put(tmp_path, f"{name}/dlproxy.toml", content=text.encode())
    store = Store()
    server = ServerConfig(repository=str(tmp_path), repository_mode="explicit")
    repository = Repository(server, store.change, wall_ns=much_later)
    await repository.load("rec", {"serve_versions": [1]})
    await repository.load("ocr")
    assert store.served == {"rec": ["1"], "ocr": ["1"], "det": ["1"], "words": ["1"]}
    await repository.load("rec")
    assert store.served["rec"] == ["2"], "what is asked for by its name is read anew"


@pytest.mark.looptime(idle_step=0.1)
async def test_a_load_waits_for_files_that_still_change(tmp_path: Path) -> None:
    put(tmp_path, "m.onnx")
    loop = asyncio.get_running_loop()
    begun_ns = (tmp_path / "m.onnx").stat().st_ctime_ns
    server = ServerConfig(repository=str(tmp_path), repository_mode="explicit")
    patient = Repository(server, Store().change, loop.time, wall_ns=lambda: begun_ns + int(loop.time() * 1e9))
    before = loop.time()
    assert list((await patient.wanted_of("m")).versions) == ["1"]
    assert loop.time() - before <= 2 * SETTLE_S
    hasty = Repository(server, Store().change, loop.time, wall_ns=lambda: begun_ns)
    with pytest.raises(ConfigError, match="model 'm' is not loaded: its files are still changing"):
        await hasty.wanted_of("m")
    assert loop.time() - before >= PATIENCE_S


# By itself


class Wakes:
    """Who tells of changes, as the test says."""

    def __init__(self) -> None:
        self.folders: list[list[str]] = []
        self.tell: Callable[[], None] = lambda: None
        self.stopped = 0

    def __call__(self, folders: Collection[str], on_change: Callable[[], None]) -> Callable[[], None]:
        self.folders.append(list(folders))
        self.tell = on_change
        return self._stop

    def _stop(self) -> None:
        self.stopped += 1


def following(root: Path, store: Store, wakes: Wakes) -> Repository:
    return Repository(
        ServerConfig(repository=str(root)), store.change, asyncio.get_running_loop().time, wall_ns=much_later, wake=wakes
    )


async def changed(store: Store, count: int) -> float:
    """The time when it has been changed so often."""
    loop = asyncio.get_running_loop()
    while store.changes < count:
        await asyncio.wait([loop.create_future()], timeout=0.1)
    return loop.time()


@pytest.mark.looptime(idle_step=0.1)
async def test_changes_are_seen_in_a_while_and_at_once_if_somebody_tells(tmp_path: Path) -> None:
    put(tmp_path, "m.onnx")
    store, wakes, loop = Store(), Wakes(), asyncio.get_running_loop()
    repository = following(tmp_path, store, wakes)
    await repository.start()
    assert store.served == {"m": ["1"]}
    await asyncio.wait([loop.create_future()], timeout=3.0)
    begun = loop.time()
    put(tmp_path, "n.onnx")
    assert RESCAN_S / 2 < await changed(store, 2) - begun < RESCAN_S + 3 * SETTLE_S
    assert store.served == {"m": ["1"], "n": ["1"]}
    await asyncio.wait([loop.create_future()], timeout=3.0)
    begun = loop.time()
    put(tmp_path, "o.onnx")
    wakes.tell()
    assert await changed(store, 3) - begun < 4 * SETTLE_S
    assert wakes.folders == [[str(tmp_path)]]
    await repository.stop()
    assert wakes.stopped == 1


@pytest.mark.looptime(idle_step=0.1)
async def test_what_changes_before_anybody_watches_is_seen_soon(tmp_path: Path) -> None:
    store, begun = Store(), asyncio.get_running_loop().time()
    repository = following(tmp_path, store, Wakes())
    await repository.start()
    put(tmp_path, "m.onnx")
    assert await changed(store, 2) - begun < 4 * SETTLE_S
    await repository.stop()


@pytest.mark.looptime(idle_step=0.1)
async def test_a_repository_that_comes_back_is_followed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "root"
    put(root, "m.onnx")
    store, wakes = Store(), Wakes()
    repository = following(root, store, wakes)
    await repository.start()
    root.rename(tmp_path / "elsewhere")
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=5 * RESCAN_S)
    assert store.served == {"m": ["1"]}
    assert caplog.text.count("what is served stays") == 1
    put(root, "m.onnx", "n.onnx")
    await changed(store, 2)
    assert store.served == {"m": ["1"], "n": ["1"]}
    assert len(wakes.folders) == 2
    await repository.stop()


@pytest.mark.looptime(idle_step=0.1)
async def test_a_look_that_fails_is_not_the_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "m.onnx")
    store, wakes = Store(), Wakes()
    fails = 0

    async def change(edit: Callable[[Wanted], Wanted]) -> Wanted:
        nonlocal fails
        if store.changes == 1 and not fails:
            fails += 1
            raise RuntimeError("the store is away")
        return await store.change(edit)

    repository = Repository(
        ServerConfig(repository=str(tmp_path)), change, asyncio.get_running_loop().time, wall_ns=much_later, wake=wakes
    )
    await repository.start()
    put(tmp_path, "n.onnx")
    await changed(store, 2)
    assert fails == 1
    assert "the store is away" in caplog.text
    assert store.served == {"m": ["1"], "n": ["1"]}
    await repository.stop()


@pytest.mark.looptime(idle_step=0.1)
async def test_mode_none_looks_at_start_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "m.onnx")
    store, wakes, loop = Store(), Wakes(), asyncio.get_running_loop()
    server = ServerConfig(repository=str(tmp_path), repository_mode="none")
    born_ns = time_ns()
    repository = Repository(server, store.change, loop.time, wall_ns=lambda: born_ns + int(loop.time() * 1e9), wake=wakes)
    await repository.start()
    assert store.served == {"m": ["1"]}
    put(tmp_path, "n.onnx")
    await asyncio.wait([loop.create_future()], timeout=5 * RESCAN_S)
    assert store.served == {"m": ["1"]}
    assert wakes.folders == []
    await repository.stop()


async def test_a_repository_that_is_not_there_is_an_error_at_start(tmp_path: Path) -> None:
    repository = Repository(ServerConfig(repository=str(tmp_path / "none")), Store().change)
    with pytest.raises(ConfigError, match="none is not there"):
        await repository.start()
