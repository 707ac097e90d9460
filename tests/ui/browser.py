"""A real browser that looks at a dashboard: what it asked for, and what it complained of."""

import os
import shutil
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, Route

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SCREENSHOTS = os.environ.get("DLPROXY_SCREENSHOTS", "")
"""A folder for the pictures of the documentation; empty: none are taken."""

FRAMES = """
window.updates = [];
const request = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (draw) => request((at) => {
  const began = performance.now();
  draw(at);
  document.body.offsetHeight;
  window.updates.push(performance.now() - began);
});
"""
"""How many milliseconds each update of the page takes, with its layout."""


def installed() -> str:
    """The path of Chromium or Chrome; empty if there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), "")


class Window:
    """A page of its own that asks nobody but `host`. `complaints`: of the console, uncaught errors, requests to others.

    `moved`: ports at which another server has taken the place of the one that was asked.
    """

    def __init__(self, browser: Browser, port: int, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.moved: dict[int, int] = {}
        self.complaints: list[str] = []
        self.context: BrowserContext = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
        )
        self.context.add_init_script(FRAMES)
        self.context.route("**/*", self._route)
        self.context.set_default_timeout(20_000)
        self.page: Page = self.context.new_page()
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _route(self, route: Route) -> None:
        url = route.request.url
        if not url.startswith(f"{self.address}/"):
            self.complaints.append(f"asked {url}")
            route.abort()
            return
        port = urlsplit(url).port or 0
        route.continue_(url=url.replace(f":{port}/", f":{self.moved.get(port, port)}/", 1))

    def show(self, place: str = "") -> Page:
        """The dashboard, at a place of its own such as "models/digits/1", once it has values."""
        self.page.goto(f"{self.address}/#/{place}")
        self.page.locator("#connection[data-level=good]").wait_for()
        self.page.locator("main h1").first.wait_for(state="attached")
        return self.page

    def picture(self, name: str) -> None:
        """For the documentation, where it is asked for; of few colours, so that it is small."""
        if SCREENSHOTS:
            picture = Image.open(BytesIO(self.page.screenshot())).convert("RGB")
            few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
            few.save(Path(SCREENSHOTS) / f"{name}.png", optimize=True)
