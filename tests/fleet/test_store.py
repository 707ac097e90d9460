"""What every store promises: no change is lost, whoever waits hears of it."""

import asyncio

import pytest
from msgspec.structs import replace

from dlproxy.fleet.store import MemoryStore, Store
from dlproxy.policy.wanted import WantedModel

TASKS = 8
EDITS = 20


@pytest.fixture(params=["memory"])
def handles() -> tuple[Store, Store]:
    store = MemoryStore()
    return store, store


async def add(store: Store, name: str) -> None:
    while True:
        seen = await store.read()
        edited = seen.having(name, WantedModel(on_demand=True))
        if await store.swap(seen.revision, replace(edited, revision=seen.revision + 1)):
            return


async def test_concurrent_edits_lose_no_change(handles: tuple[Store, Store]) -> None:
    async def edit(number: int) -> None:
        for turn in range(EDITS):
            await add(handles[number % 2], f"m{number}-{turn}")

    await asyncio.gather(*map(edit, range(TASKS)))
    for handle in handles:
        found = await handle.read()
        assert sorted(found.models) == sorted(f"m{task}-{turn}" for task in range(TASKS) for turn in range(EDITS))
        assert found.revision == TASKS * EDITS


async def test_an_outdated_revision_changes_nothing(handles: tuple[Store, Store]) -> None:
    seen = await handles[0].read()
    await add(handles[1], "first")
    assert not await handles[0].swap(seen.revision, replace(seen, revision=seen.revision + 1))
    assert list((await handles[0].read()).models) == ["first"]


async def test_whoever_waits_for_a_change_hears_of_it(handles: tuple[Store, Store]) -> None:
    waits = [asyncio.create_task(handle.changed(0)) for handle in handles]
    await asyncio.sleep(0)
    assert not any(wait.done() for wait in waits)
    await add(handles[1], "m")
    await asyncio.wait_for(asyncio.gather(*waits), 5)
    await asyncio.wait_for(handles[0].changed(0), 5)
