"""A progress bar in seconds for whoever loads a server. Called by bench.py and evaluate.py. Not aware of: what is measured."""

import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlproxy.lab.load.run import Watch


class Bar:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, seconds: float) -> None:
        from tqdm import tqdm

        form = "{l_bar}{bar}| {n:.1f}/{total:.1f} s{postfix}"
        self._bar = tqdm(total=seconds, bar_format=form, leave=False, disable=None, file=sys.stderr)
        self._started_at: float | None = None
        self.watch: Watch = self._show

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def part(self, name: str) -> None:
        """What is measured from now on, where that is one thing of several."""
        self._started_at = self._started_at or monotonic()
        self._bar.set_description(name)

    def _show(self, progress: Any) -> bool:
        now = monotonic()
        if self._started_at is None:
            self._started_at = now
        self._bar.set_postfix_str(
            f" {progress.ok:,} answered, {progress.failed:,} failed, {progress.under_way:,} in flight", refresh=False
        )
        self._bar.update(min(now - self._started_at, self._bar.total or 0.0) - self._bar.n)
        return True
