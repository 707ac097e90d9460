"""Time as tests want it: products take as long as they have weights, all else nothing, and handing over what it is told to."""

from typing import Any

import pytest

from dlproxy.compress.recipes.graphs import every_node
from dlproxy.compress.split import search
from dlproxy.compress.split.handing import Handing
from dlproxy.compress.split.probing import session_of
from tests import models

WEIGHT_S = 1e-6


def work_s(model: models.Model) -> list[float]:
    """Of each node."""
    sizes = {one.name: len(one.raw_data) / 4 for one in model.graph.initializer}
    products = ("MatMul", "Gemm")
    return [WEIGHT_S * sizes.get(node.input[1], 0) if node.op_type in products else 0.0 for node in every_node(model.graph)]


class Timed:
    """A session that knows how long it takes."""

    def __init__(self, model: models.Model) -> None:
        self.seconds = sum(work_s(model))
        self._session = session_of(model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def use(monkeypatch: pytest.MonkeyPatch, handing: Handing) -> None:
    monkeypatch.setattr(search, "session_of", Timed)
    monkeypatch.setattr(search, "seconds_of", lambda session, feed: session.seconds)
    monkeypatch.setattr(search, "node_seconds", lambda model, feed, folder: work_s(model))
    monkeypatch.setattr(search, "measured_handing", lambda: handing)
