"""A store in a folder, edited by several processes, of which some are killed in the middle of it.

`DLPROXY_KILLS=200` kills more of them.
"""

import asyncio
import fcntl
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dlproxy.fleet import folder_store
from dlproxy.fleet.folder_store import FolderStore
from dlproxy.fleet.store import StoreError, open_store
from dlproxy.policy.wanted import Wanted
from tests.fleet.store_editor import add

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("DLPROXY_KILLS", "4"))


def editor(folder: Path, prefix: str, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.fleet.store_editor", str(folder), prefix, str(count)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


async def kept(folder: Path) -> Wanted:
    store = open_store(str(folder))
    try:
        return await store.read()
    finally:
        await store.close()


async def test_two_processes_that_edit_at_once_lose_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "when needed"
    editors = [editor(folder, prefix, 40) for prefix in "ab"]
    assert [len(each.communicate(timeout=60)[0].split()) for each in editors] == [40, 40]
    found = await kept(folder)
    assert sorted(found.models) == sorted(f"{prefix}-{number}" for prefix in "ab" for number in range(40))
    assert found.revision == 80
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


async def test_killed_in_the_middle_of_a_write_it_is_readable_and_has_what_was_confirmed(tmp_path: Path) -> None:
    chance = random.Random(7)
    confirmed: set[str] = set()
    for kill in range(KILLS):
        victim, other = editor(tmp_path, f"victim{kill}", 10_000), editor(tmp_path, f"other{kill}", 10)
        assert victim.stdout is not None
        confirmed.update(victim.stdout.readline().strip() for _ in range(chance.randrange(1, 15)))
        victim.kill()
        confirmed.update(victim.communicate(timeout=60)[0].split("\n")[:-1])
        confirmed.update(other.communicate(timeout=60)[0].split())
        found = await kept(tmp_path)
        assert confirmed <= set(found.models)
        assert found.revision == len(found.models)
    assert len(confirmed) > 10 * KILLS
    assert set(os.listdir(tmp_path)) <= {"wanted.json", "wanted.lock", "wanted.new"}


async def test_a_handle_hears_of_its_own_change_at_once(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, poll_s=10_000.0)
    waiting = asyncio.create_task(store.changed(0))
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert not done
    await add(store, "a")
    await asyncio.wait_for(waiting, 5)
    await store.close()


async def test_a_half_written_new_file_changes_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    await add(store, "a")
    (tmp_path / "wanted.new").write_bytes(b'{"format": 1, "dl')
    assert list((await kept(tmp_path)).models) == ["a"]
    await add(store, "b")
    assert list((await kept(tmp_path)).models) == ["a", "b"]
    await store.close()


async def test_a_full_disk_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path)
    await add(store, "a")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _full)
        with pytest.raises(StoreError, match=r"store .*wanted\.json cannot be used: .*No space left"):
            await add(store, "b")
    assert list((await kept(tmp_path)).models) == ["a"]
    await add(store, "b")
    await store.close()


def _full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


async def test_a_lock_that_is_not_given_back_is_an_error_and_reading_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_store, "LOCK_S", 0.05)
    store = FolderStore(tmp_path)
    await add(store, "a")
    lock = os.open(tmp_path / "wanted.lock", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(StoreError, match=r"locked by another process \(wanted\.lock"):
        await add(store, "b")
    assert list((await store.read()).models) == ["a"]
    os.close(lock)
    await add(store, "b")
    await store.close()


async def test_a_file_system_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path)
    await add(store, "a")
    seen = await store.read()
    monkeypatch.setattr(folder_store, "PATIENCE_S", 0.1)
    os.remove(tmp_path / "wanted.json")
    os.mkfifo(tmp_path / "wanted.json")  # reading it waits for a writer
    async with asyncio.timeout(5):
        assert await store.read() == seen
        with pytest.raises(StoreError, match=r"does not answer within 0\.1 s"):
            await add(store, "b")
    await asyncio.to_thread((tmp_path / "wanted.json").write_bytes, b"")
    await store.close()
