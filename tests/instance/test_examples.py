"""The Python models among the examples: served as their first lines say, they answer as they promise."""

import asyncio
from pathlib import Path

from dlproxy import Model, Proxy

EXAMPLES = Path(__file__).parents[2] / "examples"


async def test_bigrams_go_on_with_every_word_of_every_request() -> None:
    async with Proxy([Model(f"{EXAMPLES}/bigrams/bigrams.py:Bigrams")]) as proxy:
        (loaded,) = proxy.models
        assert loaded.fleet.calibration.independent_rows
        two, one = await asyncio.gather(*(proxy.infer("bigrams", {"start": start}) for start in (["sh", "w"], ["q"])))
    assert two["text"].tolist() == ["she", "was"]
    assert two["letters"].tolist() == [["e", "", "", ""], ["a", "s", "", ""]]
    assert (one["text"].tolist(), one["letters"].tolist()) == (["q"], [["", "", "", ""]])
