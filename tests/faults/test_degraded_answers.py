"""A real server with much too much to do, whose quick variant comes and goes: each answer is of whoever its header names."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from dlproxy import AsyncClient, InferenceError
from tests.clients.server import HANG_S, ServerProcess, write_config
from tests.serve.rig import pass_time

CLIENTS = 64
MODEL = '''
import time


class Slow:
    """Two times x, 4 ms for each row."""

    inputs, outputs = {"x": "FP32[N,1]"}, {"y": "FP32[N,1]"}
    factor, row_s = 2, 0.004

    def predict(self, batch):
        time.sleep(self.row_s * len(batch["x"]))
        return {"y": self.factor * batch["x"]}


class Quick(Slow):
    """Three times x, which nobody could take for the other's answer."""

    factor, row_s = 3, 0.0002
'''
FACTORS = {"": 2, "quick": 3}  # by who is named
NO_TIME = ("Request timeout expired", "Exceeds maximum queue size")  # begins what whoever has none says


class Site:
    def __init__(self, folder: Path) -> None:
        (folder / "models.py").write_text(MODEL)
        self.quick = {"path": f"{folder / 'models.py'}:Quick", "run": "thread", "instances": 1}
        slow = {**self.quick, "path": f"{folder / 'models.py'}:Slow", "slo": "p95=80ms", "variants": ["quick"]}
        config = write_config(folder / "dlproxy.toml", {"slow": slow, "quick": self.quick}, calibration_folder="")
        self.process = ServerProcess("--config", config)

    def operate(self, action: str, **terms: Any) -> None:
        """The variant is loaded or unloaded."""
        url = f"http://127.0.0.1:{self.process.control_port}/models/quick/{action}"
        with urlopen(Request(url, json.dumps(terms).encode()), timeout=HANG_S) as reply:
            assert reply.status == 200


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    with made.process:
        yield made


class Load:
    """Clients that ask for one number after the other, each its own."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.stopping = False
        self._news = asyncio.Event()

    async def more(self, by: str, times: int) -> None:
        """Returns when so many further answers have come from this one."""
        goal = self.answers[by] + times
        async with asyncio.timeout(HANG_S):
            while self.answers[by] < goal:
                self._news.clear()
                await self._news.wait()

    async def ask(self, address: str, first: int) -> None:
        async with AsyncClient(address, retry_budget=0.0) as client:
            number = first
            while not self.stopping:
                number += 1
                try:
                    answer = await asyncio.wait_for(client.infer("slow", [[number]]), HANG_S)
                except InferenceError as error:
                    self.refused[str(error)] += 1
                    await pass_time(0.02)
                    continue
                self.answers[answer.variant] += 1
                self._news.set()
                y = float(answer["y"][0, 0])
                if y != FACTORS[answer.variant] * number:
                    self.wrong.append(f"{y} for {number} from {answer.variant!r}")


@asynccontextmanager
async def _load(server: ServerProcess) -> AsyncIterator[Load]:
    load = Load()
    addresses = (f"http://{server.address}", f"grpc://{server.grpc_address}")
    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(load.ask(addresses[number % 2], number * 50_000))
        try:
            yield load
        finally:
            load.stopping = True


async def test_no_answer_is_another_models_than_it_says(site: Site) -> None:
    async with _load(site.process) as load:
        for _ in range(2):
            await load.more("quick", 200)
            await asyncio.to_thread(site.operate, "unload")
            await load.more("", 30)
            gone = load.answers["quick"]
            await load.more("", 30)
            assert load.answers["quick"] == gone, "it is not there"
            await asyncio.to_thread(site.operate, "load", path=site.quick["path"], config={"run": "thread", "instances": 1})
        await load.more("quick", 200)
    assert load.wrong == []
    assert not [words for words in load.refused if not words.startswith(NO_TIME)]
    assert site.process.metric("dlproxy_variant_answers", model="slow", variant="quick") == load.answers["quick"]
    assert "Traceback" not in site.process.errors()
