"""dlproxy that also measures how long batches hold its event loop: `python -m benchmarks.real.held FILE serve ...`.

What it writes into FILE when it ends is the processor time of the loop's own thread for inline batches, gathering and
computing, in the second half of the time since the first: by then it may have moved them elsewhere. No batch: none ran inline.
"""

import json
import sys
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic, thread_time
from typing import Any

import numpy as np

from dlproxy.cli import main as dlproxy
from dlproxy.instance import inline


def timed(run: Callable[..., Any], began: "array[float]", spent: "array[float]") -> Callable[..., Any]:
    def run_batch(*arguments: Any) -> Any:
        began.append(monotonic())
        before = thread_time()
        try:
            return run(*arguments)
        finally:
            spent.append(thread_time() - before)

    return run_batch


def described(began: Sequence[float], spent: Sequence[float], end_at: float) -> dict[str, float]:
    """Milliseconds; `longest_ms` is of all of them."""
    if not spent:
        return {"batches": 0}
    late = np.asarray(spent)[np.asarray(began) >= (began[0] + end_at) / 2]
    found = {"batches": int(late.size), "longest_ms": max(spent) * 1e3}
    if late.size:
        p50, p999 = np.quantile(late, [0.5, 0.999]) * 1e3
        found |= {"p50_ms": float(p50), "p999_ms": float(p999)}
    return found


def main() -> int:
    began, spent = array("d"), array("d")
    inline.run_batch = timed(inline.run_batch, began, spent)
    try:
        return dlproxy(sys.argv[2:])
    finally:
        Path(sys.argv[1]).write_text(json.dumps(described(began, spent, monotonic())))


if __name__ == "__main__":
    sys.exit(main())
