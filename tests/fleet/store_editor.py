"""`python -m tests.fleet.store_editor URL PREFIX COUNT`: adds models PREFIX-0 and so on, and prints each once it is kept."""

import asyncio
import sys

from msgspec.structs import replace

from dlproxy.fleet.store import Store, open_store
from dlproxy.policy.wanted import WantedModel


async def add(store: Store, name: str) -> None:
    """As the control plane does: again and again until nobody was quicker."""
    while True:
        seen = await store.read()
        edited = seen.having(name, WantedModel(on_demand=True))
        if await store.swap(seen.revision, replace(edited, revision=seen.revision + 1)):
            return


async def main(url: str, prefix: str, count: int) -> None:
    store = open_store(url)
    for number in range(count):
        await add(store, f"{prefix}-{number}")
        sys.stdout.write(f"{prefix}-{number}\n")
        sys.stdout.flush()
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
