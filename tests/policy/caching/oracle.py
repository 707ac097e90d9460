"""Run by an interpreter that has libcachesim: the hit ratios of its policies on the keys of a file, as JSON.

Called by hits.py, by its path. Not aware of: dlproxy.
"""

import json
import sys

import libcachesim
import numpy as np

CACHES = {
    "s3-fifo": libcachesim.S3FIFO,
    "sieve": libcachesim.Sieve,
    "lru": libcachesim.LRU,
    "lfu": libcachesim.LFU,
    "w-tinylfu": libcachesim.WTinyLFU,
    "gdsf": libcachesim.GDSF,
}


def hits(name: str, keys: list[int], sizes: list[int], budget: int) -> int:
    get = CACHES[name](budget, hashpower=18).get
    request = libcachesim.Request()
    count = 0
    for at, key in enumerate(keys):
        request.obj_id = key + 1
        request.obj_size = sizes[key]
        request.clock_time = at // 1000  # seconds
        count += get(request)
    return count


def main(path: str) -> None:
    with np.load(path) as file:
        keys, sizes, budget = file["keys"].tolist(), file["sizes"].tolist(), int(file["budget"])
    sys.stdout.write(json.dumps({name: round(hits(name, keys, sizes, budget) / len(keys), 4) for name in CACHES}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
