"""One browser for all tests of this folder; windows of its own for each test. Imports Playwright only where it is needed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.clients.server import ServerProcess, asked

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from .browser import Window

Opens = Callable[..., "Window"]


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    from playwright.sync_api import expect, sync_playwright

    from .browser import installed

    path = installed()
    if not path:
        pytest.skip("no Chromium or Chrome is installed")
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def opens(browser: "Browser") -> Iterator[Opens]:
    """Opens windows, in which nothing may go wrong but what the test says."""
    from .browser import Window

    windows: list[Window] = []

    def open_(server: ServerProcess | int, **how: int) -> "Window":
        """`server`: or the port of a recording that is played."""
        windows.append(Window(browser, server if isinstance(server, int) else server.control_port, **how))
        return windows[-1]

    yield open_
    for window in windows:
        window.context.close()
    said = [complaint for window in windows for complaint in window.complaints]
    assert [each for each in said if "ERR_CONNECTION_REFUSED" not in each] == [], "a server may end before its window does"


class Load:
    """Clients that ask one model after the other for as long as it is entered, and how many answers they got."""

    def __init__(self, server: ServerProcess, body: bytes, *models: str, clients: int = 4) -> None:
        self.answers = 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(server, body, models)) for _ in range(clients)]

    def _ask(self, server: ServerProcess, body: bytes, models: tuple[str, ...]) -> None:
        while not self._over.is_set():
            for model in models:
                told = asked(f"http://{server.address}/predict/{model}", body)
                self.answers += told.status == 200

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with ExitStack() as stack:
            for thread in self._threads:
                stack.callback(thread.join)
