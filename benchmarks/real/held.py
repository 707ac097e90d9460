"""dlproxy that also measures how long batches hold its event loop: `python -m benchmarks.real.held FILE serve ...`.

What it writes into FILE when it ends is the processor time of the loop's own thread for each inline batch: gathering and
computing. Elapsed time would be that of whoever else runs on the machine. No batch means that nothing ran inline.
"""

import json
import sys
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from time import thread_time
from typing import Any

import numpy as np

from dlproxy.cli import main as dlproxy
from dlproxy.instance import inline


def timed(run: Callable[..., Any], spent: "array[float]") -> Callable[..., Any]:
    def run_batch(*arguments: Any) -> Any:
        before = thread_time()
        try:
            return run(*arguments)
        finally:
            spent.append(thread_time() - before)

    return run_batch


def described(spent: Sequence[float]) -> dict[str, float]:
    """Milliseconds."""
    if not spent:
        return {"batches": 0}
    p50, p999, most = np.quantile(spent, [0.5, 0.999, 1.0]) * 1e3
    return {"batches": len(spent), "p50_ms": float(p50), "p999_ms": float(p999), "max_ms": float(most)}


def main() -> int:
    spent: array[float] = array("d")
    inline.run_batch = timed(inline.run_batch, spent)
    try:
        return dlproxy(sys.argv[2:])
    finally:
        Path(sys.argv[1]).write_text(json.dumps(described(spent)))


if __name__ == "__main__":
    sys.exit(main())
