"""Whether an upstream can be used, looked at again and again: up, lost, and up again. One task per upstream.

Made by remote.py, which says what a look is and who is told. Not aware of: protocols, connections.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from dlproxy.instance.remote.failures import UpstreamError
from dlproxy.instance.remote.settings import RemoteSettings
from dlproxy.instance.runtime import ModelError

JITTER = 0.2  # of every pause, so that many proxies do not ask at the same moment

log = logging.getLogger(__name__)


class Watch:
    """`probe` raises UpstreamError or ModelError if the upstream cannot be used; its argument says that it was lost before,

    and may have come back as something else. `draw`: uniform in [0, 1).
    """

    def __init__(
        self,
        name: str,
        probe: Callable[[bool], Awaitable[None]],
        settings: RemoteSettings,
        *,
        on_lost: Callable[[str], None],
        on_up: Callable[[], None],
        on_leaves: Callable[[str], None],
        draw: Callable[[], float],
    ) -> None:
        self._name = name
        self._probe = probe
        self._settings = settings
        self._on_lost = on_lost
        self._on_up = on_up
        self._on_leaves = on_leaves
        self._draw = draw
        self._look_now = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.up = False

    def start(self, *, up: bool) -> None:
        """Begin to look; `up`: it was seen to be well just now."""
        self.up = up
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"watch-{self._name}")

    def lost(self, reason: str) -> None:
        """It is gone for certain."""
        if self.up:
            self.up = False
            self._look_now.set()
            log.warning("upstream %s is lost: %s", self._name, reason)
            self._on_lost(reason)

    def leaves(self, reason: str) -> None:
        """It says that it takes no more; what it has it ends."""
        if self.up:
            self.up = False
            self._look_now.set()
            log.info("upstream %s takes no more: %s", self._name, reason)
            self._on_leaves(reason)

    def suspect(self) -> None:
        """Something went wrong there: look sooner."""
        if self.up:
            self._look_now.set()

    async def stop(self) -> None:
        """Look no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self.up = False

    async def _run(self) -> None:
        settings = self._settings
        failures = 0
        back_off_s = settings.recheck_s
        while True:
            if not self.up:
                await self._pause(back_off_s)
            else:
                await self._pause(settings.recheck_s if failures else settings.check_interval_s)
            was_lost = not self.up
            error = await self._look(was_lost)
            if error is None:
                failures = 0
                if was_lost and not self.up:
                    back_off_s = settings.recheck_s
                    self._back()
            elif self.up:
                failures += 1
                if error.gone or failures >= settings.fall:
                    failures = 0
                    self.leaves(str(error)) if error.leaves else self.lost(str(error))
                    self._look_now.clear()  # it was looked at just now
            else:
                back_off_s = min(2 * back_off_s, settings.check_interval_s)

    async def _look(self, was_lost: bool) -> UpstreamError | None:
        self._look_now.clear()
        try:
            await self._probe(was_lost)
        except UpstreamError as error:
            return error
        except ModelError as error:  # another model has taken its place
            log.warning("upstream %s cannot be used: %s", self._name, error)
            return UpstreamError(str(error), gone=True)
        except Exception as error:  # a mistake in here must not end the watch
            log.exception("upstream %s could not be looked at", self._name)
            return UpstreamError(f"{type(error).__name__}: {error}")
        return None

    def _back(self) -> None:
        self.up = True
        log.info("upstream %s is up", self._name)
        self._on_up()

    async def _pause(self, seconds: float) -> None:
        """Until something happens, but no less than `recheck_s`: errors by the thousand make no thousand looks."""
        seconds *= 1.0 + JITTER * (2.0 * self._draw() - 1.0)
        least_s = min(self._settings.recheck_s, seconds)
        await asyncio.sleep(least_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds - least_s):
                await self._look_now.wait()
