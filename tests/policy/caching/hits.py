"""Hit ratios of our policies and of libcachesim's on the same keys; `python -m tests.policy.caching.hits PYTHON` records those.

Called by test_hit_ratios.py. Not aware of: what is near enough.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from dlproxy.lab.load.payload import picks
from dlproxy.policy.caching import CachePolicy, make_cache

RECORDED = Path(__file__).with_name("libcachesim.json")
ALPHAS = (0.8, 1.0, 1.2)
SHARES = (0.01, 0.1)  # of all keys that fit in
ONE_HIT = 0.1  # of the requests are for keys that nobody asks for again


class Workload(NamedTuple):
    """Keys as numbers from 0, the size of each, and the bytes of the cache."""

    keys: list[int]
    sizes: list[int]
    budget: int


@cache
def digest(key: int) -> bytes:
    return blake2b(key.to_bytes(8, "little"), digest_size=16).digest()


def zipf(keys: int, alpha: float, requests: int, *, one_hit: bool = False, seed: int = 1) -> list[int]:
    drawn = list(islice(picks(keys, alpha, (seed, 0)), requests))
    if one_hit:
        once = np.random.default_rng(seed).random(requests) < ONE_HIT
        drawn = [keys + at if alone else key for at, (key, alone) in enumerate(zip(drawn, once.tolist(), strict=True))]
    return drawn


def workloads(keys: int, requests: int) -> Iterator[tuple[str, Workload]]:
    """By name: Zipf with and without keys that are asked for once, and once with sizes that differ."""
    for alpha in ALPHAS:
        for one_hit in (False, True):
            drawn = zipf(keys, alpha, requests, one_hit=one_hit)
            for share in SHARES:
                name = f"zipf {alpha}, {share:.0%}" + (", 10% one-hit" if one_hit else "")
                yield name, Workload(drawn, [1] * (max(drawn) + 1), round(share * keys))
    drawn = zipf(keys, 1.0, requests, seed=2)
    sizes = np.random.default_rng(3).lognormal(5.0, 1.0, keys).clip(16, 1000).astype(int).tolist()
    yield "zipf 1.0, 10%, sizes", Workload(drawn, sizes, round(0.1 * sum(sizes)))


def trace(path: Path) -> Workload:
    """The length of each prompt stands for the prompt: equal prompts have equal lengths, different ones often not."""
    with path.open(newline="") as file:
        lengths = [int(row["ContextTokens"]) for row in csv.DictReader(file)]
    return Workload(lengths, [1] * (max(lengths) + 1), 350)  # a tenth of the distinct lengths


def ours(policy: str, workload: Workload) -> float:
    return of(make_cache(policy, workload.budget), workload)


def of(kept: CachePolicy[None], workload: Workload) -> float:
    """The hit ratio of a cache that is empty yet."""
    get, put, sizes = kept.get, kept.put, workload.sizes
    count = 0
    for key in workload.keys:
        if get(digest(key)) is not None:
            count += 1
        else:
            put(digest(key), None, sizes[key], 1.0)
    return count / len(workload.keys)


def theirs(python: str, workload: Workload) -> dict[str, float]:
    """libcachesim's, by policy."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "workload.npz"
        np.savez(path, keys=workload.keys, sizes=workload.sizes, budget=workload.budget)
        oracle = Path(__file__).with_name("oracle.py")
        done = subprocess.run([python, oracle, path], capture_output=True, text=True, check=True, timeout=600)
    ratios: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return ratios


SMALL = (
    10_000,
    20_000,
)  # keys and requests of what is recorded: a few seconds for all policies; 1 % is 100 entries, a window of 1


def main(python: str) -> None:
    recorded = {name: theirs(python, workload) for name, workload in workloads(*SMALL)}
    lines = [f"  {json.dumps(name)}: {json.dumps(ratios)}" for name, ratios in recorded.items()]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
