"""Notices of the operating system that something has changed, and what is said where there are none."""

import asyncio
import logging
import sys
import threading
from pathlib import Path

import pytest

from dlproxy.fleet.repository.wakes import wake_on_changes
from tests.fleet.repository.fixtures import put


async def test_a_change_far_below_is_told_of(tmp_path: Path) -> None:
    pytest.importorskip("watchfiles")
    put(tmp_path, "m/1/model.onnx")
    woken, loop = asyncio.Event(), asyncio.get_running_loop()
    stop = wake_on_changes([str(tmp_path)], lambda: loop.call_soon_threadsafe(woken.set))
    try:
        for number in range(100):  # it takes a moment until somebody watches
            put(tmp_path, f"m/{number}/model.onnx")
            await asyncio.wait([asyncio.ensure_future(woken.wait())], timeout=0.2)
            if woken.is_set():
                break
        assert woken.is_set()
    finally:
        stop()


def test_where_nobody_tells_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    caplog.set_level(logging.INFO)
    before = set(threading.enumerate())
    wake_on_changes([str(tmp_path)], lambda: None)
    for thread in set(threading.enumerate()) - before:
        thread.join(10.0)
    assert f"changes below {tmp_path} are seen by looking every few seconds" in caplog.text
