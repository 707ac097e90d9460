"""For all tests: no event loop but those that tests ask for, Ctrl-C heard, and raw connections that are cut at the end."""

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import settings
from looptime import LoopTimeEventLoop

from dlproxy.instance.runtime import TELEMETRY_OFF
from tests.clients import raw

TIMES = int(os.environ.get("DLPROXY_TIMES", "1"))  # make prove-properties


def pytest_configure() -> None:
    """Mends five things for the whole suite.

    Looptime's look at the current loop, before the first plain test, would make one that nobody closes. And what a shell
    starts in the background ignores SIGINT, as do its children: a command that a test interrupts would never end.
    Some tests import ONNX Runtime by themselves, which shall report nothing then either. How long an example takes says
    how busy the machine is. Virtual time idles through 42 turns of the loop before each step, of which a few will do.
    """
    settings.register_profile("suite", deadline=None, max_examples=50)
    settings.load_profile("suite")
    os.environ.setdefault(*TELEMETRY_OFF)
    os.environ["XDG_CACHE_HOME"] = os.devnull  # no test shall know what another has found out, nor leave it in a home
    asyncio.set_event_loop(None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    LoopTimeEventLoop.setup_looptime.__kwdefaults__["noop_cycles"] = 3


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Every test that is found is kept: to look through all of them for garbage, again and again, finds none.

    Of all test files, each of several processes imports a share of its own first: what one has compiled, the others read.
    """
    gc.disable()
    try:
        if "PYTEST_XDIST_WORKER" in os.environ and session.config.args_source is session.config.ArgsSource.TESTPATHS:
            first, count = int(os.environ["PYTEST_XDIST_WORKER"][2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
            for path in sorted(Path(__file__).parent.rglob("test_*.py"))[first::count]:
                with suppress(Exception, pytest.skip.Exception):  # what is wrong with it is said when it is collected
                    import_module(".".join(path.relative_to(session.config.rootpath).with_suffix("").parts))
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a test that is marked `alone` come last: the others wait for it, and it for them, once and not in between.

    TIMES: every property is tried on so many times more examples.
    """
    last = {item.path for item in items if item.get_closest_marker("alone")}
    items.sort(key=lambda item: item.path in last)
    if TIMES == 1:
        return
    held = {(getattr(item, "obj", None), "_hypothesis_internal_use_settings") for item in items}
    for holder, name in held | {(getattr(item, "cls", None), "settings") for item in items}:
        if isinstance(own := getattr(holder, name, None), settings):
            setattr(getattr(holder, "__func__", holder), name, settings(own, max_examples=TIMES * own.max_examples))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Where tests run beside each other, one that is marked `alone` waits until no other runs, and then they wait for it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    import fcntl

    alone = item.get_closest_marker("alone") is not None
    with ExitStack() as stack:
        door, room = (stack.enter_context((Path(__file__).parent / name).open()) for name in ("conftest.py", "__init__.py"))
        fcntl.flock(door, fcntl.LOCK_EX)  # held while one waits for the room to be empty, else it never is
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        stack.callback(fcntl.flock, room, fcntl.LOCK_UN)  # closing is not enough: a process that the test forked has it, too
        fcntl.flock(door, fcntl.LOCK_UN)
        return (yield)


@pytest.fixture(scope="module", autouse=True)
def nothing_left_open() -> Iterator[None]:
    """What a module leaves open is its last test's failure, not that of whoever is running when the garbage is collected.

    At the set-up of the next one if its last test still held it. Once, what there is then is put aside, the tests
    themselves above all: later collections take milliseconds.
    """
    gc.collect()
    yield
    gc.collect()
    if not gc.get_freeze_count():
        gc.freeze()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt in the test, whatever others have made of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
async def connect() -> AsyncIterator[raw.Connect]:
    """raw.connect, with whatever is still open cut at the end of the test."""
    opened: list[raw.RawConnection] = []

    async def open_one(port: int, on_reply: raw.OnReply | None = None) -> raw.RawConnection:
        connection = await raw.connect(port, on_reply)
        opened.append(connection)
        return connection

    yield open_one
    for connection in opened:
        connection.transport.abort()
        await connection.ended
