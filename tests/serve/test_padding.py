"""Served models whose requests differ in length: answers are those of each alone, in this process and in workers."""

import asyncio
from argparse import Namespace
from pathlib import Path
from textwrap import dedent
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from dlproxy import InferenceError, Model, Proxy
from dlproxy.cli.models import _page
from dlproxy.cli.serve import describe  # the start-up report has no other door
from dlproxy.cli.told import ModelState

Array = NDArray[Any]
HANG_S = 60.0

RIGHT = """
    import numpy as np
    from time import sleep

    class M:
        inputs = {"ids": "INT64[batch,length]", "mask": "INT64[batch,length]"}
        outputs = {"mean": "FP32[batch,1]", "steps": "FP32[batch,length]"}

        def predict(self, batch):
            sleep(0.0003)
            ids, mask = batch["ids"].astype(np.float32), batch["mask"]
            assert mask.any(axis=1).all(), "nothing to see"
            mean = (ids * mask).sum(1, keepdims=True) / mask.sum(1, keepdims=True)
            return {"mean": mean.astype(np.float32), "steps": ids + 1}
"""
WRONG_LATER = RIGHT.replace(
    "return {",
    "if ids.shape[1] > 150 and (mask == 0).any():\n                ids = ids + 7\n            return {",
)


def _model(folder: Path, text: str, **settings: Any) -> Model:
    (folder / "m.py").write_text(dedent(text), "utf-8")
    return Model(f"{folder / 'm.py'}:M", name="m", **settings)


def _request(length: int, rows: int = 1) -> dict[str, Array]:
    ids = np.arange(1, rows * length + 1, dtype=np.int64).reshape(rows, length)
    return {"ids": ids, "mask": np.ones((rows, length), np.int64)}


def _is_right(request: dict[str, Array], answer: dict[str, Array]) -> bool:
    ids = request["ids"].astype(np.float32)
    alike = np.allclose(answer["mean"], ids.mean(1, keepdims=True), rtol=1e-5)
    return alike and answer["steps"].shape == ids.shape and np.allclose(answer["steps"], ids + 1)


@pytest.mark.parametrize("run", ["inline", "thread", "process"])
async def test_requests_of_any_length_share_batches_and_get_their_own_answers(
    tmp_path: Path, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch costs 5 ms, by which warm-up sees that they should, and the loop may be held for as long as that takes."""
    monkeypatch.setattr("dlproxy.policy.plan.AIM_S", 10.0)
    async with Proxy([_model(tmp_path, RIGHT.replace("0.0003", "0.005"), run=run)]) as proxy:
        requests = [_request(length, 1 + length % 2) for length in (8, 5, 9, 7, 3, 8, 6, 10, 9, 4) * 6]
        (loaded,) = proxy.models
        async with asyncio.timeout(HANG_S):  # on a busy machine it may take it some batches to believe that
            while not loaded.served.stats.elements["padding"]:
                answers = await asyncio.gather(*(proxy.infer("m", request) for request in requests))
                assert all(map(_is_right, requests, answers))
        assert "shorter requests are padded to the longest" in "\n".join(describe(loaded))


async def test_padding_is_off_where_the_knob_says_so(tmp_path: Path) -> None:
    async with Proxy([_model(tmp_path, RIGHT, run="thread", padding="off")]) as proxy:
        requests = [_request(length) for length in (8, 5, 9, 7) * 6]
        answers = await asyncio.gather(*(proxy.infer("m", request) for request in requests))
        assert all(map(_is_right, requests, answers))
        (loaded,) = proxy.models
        assert loaded.served.stats.elements["padding"] == 0
        assert "padded" not in "\n".join(describe(loaded))


async def test_what_is_hidden_whole_runs_alone_and_harms_nobody(tmp_path: Path) -> None:
    """The model refuses such a row, also in a batch: its neighbours get their answers all the same."""
    async with Proxy([_model(tmp_path, RIGHT, run="thread")]) as proxy:
        requests = [_request(length) for length in (8, 5, 9, 7) * 4]
        hidden = {"ids": np.ones((1, 8), np.int64), "mask": np.zeros((1, 8), np.int64)}
        calls = [proxy.infer("m", request) for request in [*requests, hidden]]
        *answers, refused = await asyncio.gather(*calls, return_exceptions=True)
        for request, answer in zip(requests, answers, strict=True):
            assert isinstance(answer, dict), answer
            assert _is_right(request, answer)
        assert isinstance(refused, InferenceError)
        assert "nothing to see" in str(refused)


async def test_service_ends_padding_that_start_up_found_right(tmp_path: Path) -> None:
    """Batches of more than 150 steps are answered wrongly where they hold padding, which no warm-up tried."""
    async with Proxy([_model(tmp_path, WRONG_LATER, run="thread")]) as proxy:
        (loaded,) = proxy.models
        assert loaded.control.state()["padding"] == "on"
        requests = [_request(length) for length in (160, 170, 165, 175, 155, 180) * 2]
        async with asyncio.timeout(HANG_S):  # it looks now and then, and less often where that takes long
            while loaded.control.state()["padding"] == "on":
                await asyncio.gather(*(proxy.infer("m", request) for request in requests))
        assert loaded.control.state()["padding"].startswith("off: output 'steps' of a request was different padded")
        assert loaded.control.state()["batching"] == "on"
        state = {"name": "m", "version": "1", "ready": True, **loaded.control.state()}
        page = "\n".join(_page([msgspec.convert(state, ModelState)], Namespace()))
        assert "  padding  off: output 'steps'" in page
        answers = await asyncio.gather(*(proxy.infer("m", request) for request in requests))
        assert all(map(_is_right, requests, answers))
