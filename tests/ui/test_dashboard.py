"""The dashboard in a real browser, on real servers: what it shows, while they work, restart, refuse and have many models."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import pytest

from dlproxy.cli import main
from dlproxy.message import DType
from dlproxy.wire.identity import key_file
from tests import models
from tests.cli.test_record import replayed
from tests.clients.server import ServerProcess, asked, write_config

from .conftest import Load, Opens

pytest.importorskip("axe_playwright_python", reason="`make test-ui` installs Playwright")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from .browser import SCREENSHOTS

pytestmark = pytest.mark.ui

ROW = b'{"inputs":[[1]]}'
HOSTILE = "<img src=x onerror=\"document.title='broken'\">"
SLEEPER = {"path": "sleep:base=1ms,row=0.1ms", "run": "thread", "instances": 2}
MANY = 1000
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("dashboard")
    settings: dict[str, dict[str, Any]] = {
        "ranker": {**SLEEPER, "slo": "p99=50ms", "cache": "off"},
        "tagger": {**SLEEPER, "instances": 1, "cache": "on"},
    }
    config = write_config(folder / "dlproxy.toml", settings, grpc="off")
    with ServerProcess("--config", config, "--autopilot", "on") as process:
        yield process


def state_of(server: ServerProcess, name: str, version: str = "1") -> dict[str, Any]:
    states: list[dict[str, Any]] = server.control("/models")
    return next(state for state in states if (state["name"], state["version"]) == (name, version))


def act(page: Page, button: str, verb: str, **values: str) -> None:
    """Presses a button, fills the fields of its dialog by their labels, and confirms."""
    page.get_by_role("button", name=button, exact=True).click()
    fill(page, verb, **values)


def fill(page: Page, verb: str, **values: str) -> None:
    dialog = page.get_by_role("dialog")
    for label, value in values.items():
        field = dialog.get_by_label(label.replace("_", " "))
        if field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(value)
    expect(dialog.locator(".says")).not_to_be_empty()
    dialog.get_by_role("button", name=verb, exact=True).click()


def act_well(page: Page, button: str, verb: str, **values: str) -> None:
    act(page, button, verb, **values)
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".toast.good").last).to_contain_text("Done")


def until(page: Page, holds: Callable[[], bool]) -> None:
    """Within 20 s."""
    tries = 200
    while not holds():
        tries -= 1
        assert tries
        page.wait_for_timeout(100)


def rate_of(page: Page, name: str) -> float:
    text = page.locator(f"tr[data-key='{name}/1'] .c-rate").inner_text()
    return float(re.sub(r"[^\d.]", "", text) or 0)


def test_values_change_while_requests_come(server: ServerProcess, opens: Opens) -> None:
    window = opens(server)
    page = window.show()
    expect(page.locator(".verdict")).to_have_text("All is well: 2 models up")
    assert rate_of(page, "ranker") == 0
    with Load(server, ROW, "ranker", "tagger"):
        until(page, lambda: rate_of(page, "ranker") > 5)
        first = page.locator("tr[data-key='ranker/1'] .c-rate").inner_text()
        expect(page.locator("tr[data-key='ranker/1'] .c-rate")).not_to_have_text(first)
        expect(page.locator("tr[data-key='ranker/1'] .c-p99")).to_contain_text("of 50 ms")
        expect(page.locator("tr[data-key='ranker/1'] [data-phase=compute]")).to_be_visible()
        page.get_by_role("link", name="ranker").first.click()
        expect(page.locator("h1")).to_have_text("ranker version 1")
        expect(page.get_by_role("img", name=re.compile(r"^Requests: answered [1-9]"))).to_be_visible()
        expect(page.get_by_role("img", name=re.compile(r"^Response time: p50 [\d.]+\s.?s,"))).to_be_visible()


def test_a_request_is_explained(server: ServerProcess, opens: Opens) -> None:
    assert asked(f"http://{server.address}/predict/ranker", ROW).status == 200
    page = opens(server).show("requests")
    page.locator("details", has_text="ranker").first.locator("summary").click()
    expect(page.locator("details[open] tbody", has_text="compute")).to_be_visible()
    page.get_by_label("Find by request id").fill(server.control("/why?kind=all&model=ranker")[0]["id"])
    page.keyboard.press("Enter")
    expect(page.locator(".single details[open]")).to_contain_text("ranker version 1")


def test_each_action_does_what_its_dialog_says(server: ServerProcess, opens: Opens) -> None:
    page = opens(server).show("models/ranker/1")
    act_well(page, "Scale…", "Scale to 1", Instances="1")
    assert len(state_of(server, "ranker")["instances"]) == 1
    act_well(page, "Change a knob…", "Change max_batch", Knob="max_batch", New_value="7")
    assert state_of(server, "ranker")["knobs"]["max_batch"] == 7
    expect(page.locator(".events li", has_text="max_batch").first).to_be_visible()
    act_well(page, "Pin a knob…", "Pin max_wait_s", Knob="max_wait_s")
    assert "max_wait_s" in state_of(server, "ranker")["knobs"]["pinned"]
    expect(page.locator("dd", has_text="max_wait_s").first).to_be_visible()
    act_well(page, "Unpin a knob…", "Unpin max_wait_s", Knob="max_wait_s")
    assert "max_wait_s" not in state_of(server, "ranker")["knobs"]["pinned"]
    act_well(page, "Pause…", "Pause it")
    assert server.control("/autopilot/ranker")[0]["paused"]
    act_well(page, "Resume…", "Resume it")
    assert not server.control("/autopilot/ranker")[0]["paused"]
    page.goto(page.url.replace("ranker", "tagger"))
    assert asked(f"http://{server.address}/predict/tagger", ROW).status == 200
    act_well(page, "Clear…", "Clear it")
    assert server.control("/cache/tagger")[0]["entries"] == 0


def test_a_version_comes_as_a_canary_is_promoted_and_goes(server: ServerProcess, opens: Opens) -> None:
    page = opens(server).show()
    act_well(page, "Load a model…", "Load it", Name="ranker", File_on_the_server="sleep:base=1ms", Share_at_first="10")
    assert state_of(server, "ranker", "2")["share"] == 0.1
    page.locator("tr[data-key='ranker/2'] a").click()
    act_well(page, "Canary…", "Send it 25 %", Share="25")
    assert state_of(server, "ranker", "2")["share"] == 0.25
    act_well(page, "Promote…", "Promote version 2")
    assert state_of(server, "ranker", "2")["default"]
    expect(page.locator("tr[aria-current]")).to_contain_text("default")
    act_well(page, "Roll back…", "Roll back")
    assert state_of(server, "ranker", "1")["default"]
    act_well(page, "Unload…", "Unload it")
    expect(page.get_by_text("This version is not there any more")).to_be_visible()
    assert [state["version"] for state in server.control("/models") if state["name"] == "ranker"] == ["1"]


def test_what_cannot_be_done_is_said_in_the_servers_words(server: ServerProcess, opens: Opens) -> None:
    window = opens(server)
    page = window.show()
    act(page, "Load a model…", "Load it", Name="other", File_on_the_server="/nowhere/model.onnx")
    expect(page.get_by_role("alert")).to_contain_text("/nowhere/model.onnx does not exist")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert len(window.complaints) == 1  # the browser's own, of status 400
    window.complaints.clear()


def test_a_pipeline_shows_its_steps(server: ServerProcess, opens: Opens) -> None:
    ends = {"inputs": {"x": "FP32[-1,1]"}, "outputs": {"y": "again.y"}}
    steps = {"once": {"model": "ranker", "inputs": {"x": "x"}}, "again": {"model": "ranker", "inputs": {"x": "once.y"}}}
    server.control("/models/chain/load", {"path": "pipeline", "config": {**ends, "steps": steps}})
    try:
        page = opens(server).show("models/chain/1")
        steps_of = page.locator("section", has=page.get_by_role("heading", name="Steps", exact=True))
        expect(steps_of.locator("tbody th")).to_have_text(["once", "again"])
        expect(steps_of.locator("tbody td").first).to_have_text("\u2013")
        with Load(server, ROW, "chain"):
            expect(steps_of.locator("tbody tr").last.locator("td").nth(1)).to_contain_text("ms")
    finally:
        asked(f"http://127.0.0.1:{server.control_port}/models/chain/unload", b"{}", method="POST")


def test_what_the_server_says_is_text(server: ServerProcess, opens: Opens) -> None:
    page = opens(server).show()
    body = json.dumps({"path": "sleep:base=1ms", "on_demand": True}).encode()
    url = f"http://127.0.0.1:{server.control_port}/models/%3Cimg%20src=x%20onerror=%22document.title='broken'%22%3E"
    assert asked(f"{url}/load", body, method="POST").status == 200
    try:
        page.get_by_role("link", name=HOSTILE).click()
        expect(page.locator("h1")).to_have_text(f"{HOSTILE} version 1")
        assert page.locator("main img").count() == 0
        assert "broken" not in page.title()
    finally:
        asked(f"{url}/unload", b"{}", method="POST")


FORMATS = [
    (
        "seconds",
        [None, 0, 0.0000125, 0.00099999, 0.0123, 0.9999, 12.34],
        ["\u2013", "0 ms", "12.5 µs", "1 ms", "12.3 ms", "1 s", "12.3 s"],
    ),
    (
        "percent",
        [None, 0, 0.0123, 0.5, 0.987, 0.9987, 1, -0.4],
        ["\u2013", "0 %", "1.2 %", "50 %", "98.7 %", "99.87 %", "100 %", "-40 %"],
    ),
    (
        "rate",
        [0, 0.004, 0.25, 12.34, 1234, 12345, 2.5e6],
        ["0/s", "0.004/s", "0.25/s", "12.3/s", "1,234/s", "12.3 k/s", "2.5 M/s"],
    ),
    ("bytes", [0, 1023, 1536, 3 << 30], ["0 B", "1,023 B", "1.5 KiB", "3 GiB"]),
    ("span", [5, 65, 3700, 90000], ["5 s", "1 min", "1 h 1 min", "1 d 1 h"]),
]


def test_values_are_written_with_their_units(server: ServerProcess, opens: Opens) -> None:
    page = opens(server).show()
    for name, values, written in FORMATS:
        script = "async ([name, values]) => values.map((await import('/dashboard/static/format.js'))[name])"
        assert [text.replace("\u00a0", " ") for text in page.evaluate(script, [name, values])] == written, name


def test_light_or_dark_is_remembered(server: ServerProcess, opens: Opens) -> None:
    page = opens(server).show()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for _ in range(2):
        page.get_by_role("button", name="Theme: ").click()
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


def test_a_keyboard_is_enough(server: ServerProcess, opens: Opens) -> None:
    page = opens(server).show()
    page.keyboard.press("/")
    expect(page.get_by_label("Search models")).to_be_focused()
    page.keyboard.type("tag")
    expect(page.locator("tbody tr[data-key]")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("tagger version 1")
    page.get_by_role("button", name="Scale…").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(page.locator("table.models")).to_be_visible()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_it_fits_and_has_no_serious_fault(server: ServerProcess, opens: Opens, width: int, dark: bool) -> None:
    page = opens(server, width=width, dark=dark).show()
    for place in ("", "models/ranker/1", "requests", "events"):
        page.goto(f"{page.url.partition('#')[0]}#/{place}")
        page.locator("main .panel").first.wait_for()
        found = Axe().run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in SERIOUS] == [], place
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), place
    page.goto(f"{page.url.partition('#')[0]}#/models/ranker/1")
    page.get_by_role("button", name="Scale…").click()
    found = Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in SERIOUS] == []


def test_keys_are_asked_for_and_decide_what_may_be_done(tmp_path: Path, opens: Opens) -> None:
    keys = tmp_path / "keys.toml"
    reads = key_file.create(keys, "reads", scopes=["read"], models=["*"])
    ranker = key_file.create(keys, "ranker", scopes=["read", "admin"], models=["ranker"])
    config = write_config(tmp_path / "dlproxy.toml", {"ranker": SLEEPER, "tagger": SLEEPER}, grpc="off")
    with ServerProcess("--config", config, "--auth-keys", keys) as server:
        window = opens(server)
        page = window.page
        page.goto(window.address)
        key = page.get_by_label("API key or token")
        key.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_have_count(1)
        key.fill(reads)
        page.keyboard.press("Enter")
        expect(page.locator("tbody tr[data-key]")).to_have_count(2)
        expect(page.get_by_text("Read-only")).to_be_visible()
        expect(page.get_by_role("button", name="Load a model…")).to_be_disabled()
        page.evaluate("{ const load = document.querySelector('[data-action=load]'); load.disabled = false; load.click(); }")
        fill(page, "Load it", Name="other", File_on_the_server="sleep:base=1ms")
        expect(page.get_by_role("alert")).to_contain_text("Refused: ")
        page.get_by_role("button", name="Cancel").click()
        page.evaluate(f"sessionStorage.setItem('dlproxy key', '{ranker}')")
        page.reload()
        expect(page.locator("tbody tr[data-key]")).to_have_count(1)
        act(page, "Load a model…", "Load it", Name="other", File_on_the_server="sleep:base=1ms")
        expect(page.get_by_role("alert")).to_contain_text("Refused: ")
        expect(page.get_by_role("dialog")).to_have_count(1)
        page.get_by_role("button", name="Cancel").click()
        page.locator("tr[data-key='ranker/1'] a").click()
        act_well(page, "Scale…", "Scale to 1", Instances="1")
        assert [text for text in window.complaints if "40" not in text] == []  # the browser's own, of 401 and 403
        window.complaints.clear()


def test_it_finds_a_server_again_that_was_restarted(tmp_path: Path, opens: Opens) -> None:
    config = write_config(tmp_path / "dlproxy.toml", {"ranker": SLEEPER}, grpc="off")
    with ServerProcess("--config", config) as before:
        window = opens(before)
        page = window.show()
    expect(page.locator("#notice")).to_contain_text("trying again. What you see is from")
    expect(page.locator("#connection")).to_have_text("Not connected")
    expect(page.locator("tbody tr[data-key]")).to_have_count(1)
    both = {"ranker": SLEEPER, "tagger": SLEEPER}
    with ServerProcess("--config", write_config(tmp_path / "dlproxy.toml", both, grpc="off")) as after:
        window.moved[before.control_port] = after.control_port
        expect(page.locator("#connection")).to_have_text("Live")
        expect(page.locator("tbody tr[data-key]")).to_have_count(2)
        expect(page.locator("#notice")).to_be_hidden()
    assert all("ERR_" in text for text in window.complaints)  # the browser's own
    window.complaints.clear()


def test_a_recording_is_played_held_and_moved(server: ServerProcess, tmp_path: Path, opens: Opens) -> None:
    path = tmp_path / "sale.jsonl"
    with Load(server, ROW, "ranker"):
        assert main(["record", str(path), "--for", "3s", "--control", f"http://127.0.0.1:{server.control_port}"]) == 0
    with replayed(path) as address:
        page = opens(urlsplit(address).port).show("models/ranker/1")
        expect(page.get_by_role("button", name="Play")).to_be_visible()  # it has come to its end
        time = page.locator(".replay output")
        ended = time.inner_text()
        page.get_by_role("slider").press("Home")
        expect(time).not_to_have_text(ended)
        page.get_by_label("Speed").select_option("60")
        page.get_by_role("button", name="Play").click()
        expect(time).to_have_text(ended)
        assert page.locator(".plot").first.is_visible()
        assert page.get_by_role("button", name="Unload…").is_disabled()
        found = Axe().run(page).response["violations"]
        assert [one["id"] for one in found if one["impact"] in SERIOUS] == []


def test_many_models_stay_usable(tmp_path: Path, opens: Opens) -> None:
    file = models.identity(DType.FP32, ("N", 1)).SerializeToString()
    for number in range(MANY):
        (folder := tmp_path / "models" / f"model-{number:04d}" / "1").mkdir(parents=True)
        (folder / "model.onnx").write_bytes(file)
    server = {"repository": tmp_path / "models", "repository_on_demand": True, "grpc": "off"}
    config = tmp_path / "dlproxy.toml"
    config.write_text("[server]\n" + "".join(f"{key} = {json.dumps(value, default=str)}\n" for key, value in server.items()))
    with ServerProcess("--config", config) as process:
        page = opens(process).show()
        expect(page.get_by_role("button", name=f"All {MANY:,}")).to_be_visible()
        expect(page.locator(".verdict")).to_have_text("All is well: 0 of 1,000 models up, the rest load on demand")
        with Load(process, ROW, *(f"model-{number:04d}" for number in range(0, MANY, 100))):
            expect(page.get_by_role("button", name="Active 10")).to_be_visible()
            page.evaluate("window.updates.length = 0")
            until(page, lambda: page.evaluate("window.updates.length") >= 5)
            took_ms = page.evaluate("window.updates")
        assert median(took_ms) < 100, took_ms
        assert page.locator("tbody tr[data-key]").count() < 100
        page.locator(".rows").evaluate("rows => rows.scrollTop = rows.scrollHeight")
        expect(page.get_by_role("link", name="model-0999")).to_be_visible()
        page.get_by_label("Search models").fill("0500")
        expect(page.locator("tbody tr[data-key]")).to_have_count(1)


@pytest.mark.skipif(not SCREENSHOTS, reason="pictures of the documentation are taken if DLPROXY_SCREENSHOTS names a folder")
def test_pictures(tmp_path: Path, opens: Opens) -> None:
    settings: dict[str, dict[str, Any]] = {
        "answers": {"path": "sleep:base=3ms,row=0.3ms", "run": "thread", "slo": "p99=15ms", "max_batch": 8},
        "embedder": {"path": "sleep:base=2ms,row=0.1ms", "run": "thread", "cache": "on", "slo": "p99=40ms"},
        "ranker": {"path": "sleep:base=1ms,row=0.1ms", "run": "process", "instances": 2, "slo": "p99=60ms"},
        "tagger": {"path": "sleep:base=4ms,row=0.2ms", "run": "thread"},
    }
    config = write_config(tmp_path / "dlproxy.toml", settings, grpc="off")
    with ServerProcess("--config", config, "--autopilot", "on") as server, ExitStack() as loads:
        bodies = [b'{"inputs":[[%d]]}' % number for number in range(3)]
        for model, clients, body in (("answers", 8, 0), ("embedder", 2, 1), ("ranker", 3, 2), ("tagger", 1, 0)):
            loads.enter_context(Load(server, bodies[body], model, clients=clients))
        server.control("/models/embedder/load", {"path": "sleep:base=1ms", "share": 0.1})
        window = opens(server)
        window.show().wait_for_timeout(25_000)
        os.kill(server.instances("ranker")[0]["pid"], signal.SIGKILL)
        window.page.wait_for_timeout(20_000)
        window.picture("dashboard")
        window.page.set_viewport_size({"width": 1280, "height": 1000})
        window.show("models/answers/1").wait_for_timeout(12_000)
        window.picture("dashboard-model")
        window.show("requests").locator("summary").first.click()
        window.picture("dashboard-requests")
        phone = opens(server, width=360, height=740, dark=True)
        phone.show().wait_for_timeout(3_000)
        phone.picture("dashboard-phone")
