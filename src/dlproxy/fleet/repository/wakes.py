"""Says that something has changed below folders, where the operating system tells: a hint to look, nothing more.

Used by watcher.py. Not aware of: what is in the folders.
"""

import logging
from collections.abc import Callable, Collection
from threading import Event, Thread

STEP_MS = 250  # of rest that ends a burst of changes; as often somebody looks whether to stop

log = logging.getLogger(__name__)


def wake_on_changes(folders: Collection[str], on_change: Callable[[], None]) -> Callable[[], None]:
    """Calls `on_change` from a thread until what is returned is called. Where it cannot, it says so in the log."""
    stop = Event()
    Thread(target=_follow, args=(folders, on_change, stop), name="repository", daemon=True).start()
    return stop.set


def _follow(folders: Collection[str], on_change: Callable[[], None], stop: Event) -> None:
    try:
        from watchfiles import watch  # its import costs some ms, and most servers follow no folder

        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        for _ in watch(*folders, stop_event=stop, step=STEP_MS, raise_interrupt=False, ignore_permission_denied=True):
            on_change()
    except (ImportError, OSError, RuntimeError) as error:  # too many watches, or a folder that has gone
        if not stop.is_set():
            log.info("changes below %s are seen by looking every few seconds: %s", ", ".join(folders), error)
