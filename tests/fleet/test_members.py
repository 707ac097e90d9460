"""Upstreams whose servers come and go: who joins shows first that it serves the model, who leaves ends what it has."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from dlproxy.config import ConfigError, ModelConfig, check
from dlproxy.config.node import NodeConfig
from dlproxy.fleet import members, upstreams
from dlproxy.fleet.members import finder_of
from dlproxy.instance.remote import RemoteSettings
from dlproxy.instance.runtime import ModelError
from tests.faults.tiers import Leaf, Load, Site, instances, site

HOST = "gpus.internal"


class Names:
    """In place of the system's resolver."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}
        self.error: OSError | None = None
        self.asked = 0

    async def resolve(self, host: str, port: int) -> list[str]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.known.get(host, [])


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    made = Names()
    monkeypatch.setattr(members, "_system_says", made.resolve)
    monkeypatch.setattr(upstreams, "RemoteSettings", partial(RemoteSettings, check_interval_s=0.2, recheck_s=0.02))
    return made


@pytest.fixture
async def tiers() -> AsyncIterator[Site]:
    async with site() as made:
        yield made


async def leaf_at(tiers: Site, host: str, port: int) -> Leaf:
    """All at one port, as the addresses of one name are."""
    leaf = Leaf()
    leaf.host, leaf.port = host, port
    await leaf.start()
    tiers.at_end(leaf.stop)
    return leaf


async def test_addresses_of_a_name_come_and_go_while_it_serves(tiers: Site, names: Names) -> None:
    first = await tiers.leaf(host="127.0.0.1")
    second = await leaf_at(tiers, "127.0.0.2", first.port)
    names.known[HOST] = ["127.0.0.1"]
    front = await tiers.node(f"http://{HOST}:{first.port}/v2/models/m", members="dns", node={"refresh_s": 0.1})
    one, two = (f"m-127.0.0.{number}:{first.port}" for number in (1, 2))
    assert list(instances(front)) == [one]
    assert first.asked[-1].header("host") == f"{HOST}:{first.port}"
    load = Load(front)
    names.known[HOST] = ["127.0.0.1", "127.0.0.2"]
    await load.until(lambda: second.seen.total() > 20)
    assert instances(front)[two]["state"] == "up"

    names.error = OSError("the resolver is away")
    asked = names.asked
    await load.until(lambda: names.asked > asked + 3)
    names.error, names.known[HOST] = None, []
    asked = names.asked
    await load.until(lambda: names.asked > asked + 3)
    assert set(instances(front)) == {one, two}, "those known stay"

    names.known[HOST] = ["127.0.0.2"]
    await load.until(lambda: one not in instances(front))
    seen = first.seen.total()
    await load.after(50)
    assert first.seen.total() <= seen + 2, "but for what was under way"
    names.known[HOST] = ["127.0.0.2", "127.0.0.9"]
    await load.until(lambda: f"m-127.0.0.9:{first.port}" in instances(front))
    await load.after(50)
    assert instances(front)[f"m-127.0.0.9:{first.port}"]["state"] == "starting", "nobody is there"
    await load.stop()
    assert set(load.statuses) == {200}


async def test_whoever_serves_something_else_is_not_used(tiers: Site, names: Names, caplog: pytest.LogCaptureFixture) -> None:
    first = await tiers.leaf(host="127.0.0.1")
    other = await leaf_at(tiers, "127.0.0.2", first.port)
    other.answers["/v2/models/m"] = {**first.answers["/v2/models/m"], "outputs": []}
    names.known[HOST] = ["127.0.0.1"]
    front = await tiers.node(f"http://{HOST}:{first.port}/v2/models/m", members="dns", node={"refresh_s": 0.1})
    names.known[HOST] = ["127.0.0.1", "127.0.0.2"]
    load = Load(front)
    await load.until(lambda: "cannot be used" in caplog.text)
    await load.after(50)
    await load.stop()
    assert not other.seen
    assert set(load.statuses) == {200}


@pytest.mark.parametrize(
    ("known", "error", "why"),
    [([], None, "there is none among the addresses of gpus.internal"), ([], OSError("no such name"), "no such name")],
)
async def test_a_name_without_servers_ends_the_start(
    tiers: Site, names: Names, known: list[str], error: OSError | None, why: str
) -> None:
    names.known[HOST], names.error = known, error
    with pytest.raises(ModelError, match=why):
        await tiers.node(f"http://{HOST}:8000/v2/models/m", members="dns")


async def test_one_look_at_a_time_while_a_resolver_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def hangs(host: str, port: int) -> list[str]:
        asked.append(host)
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(members, "_system_says", hangs)
    monkeypatch.setattr(members, "PATIENCE_S", 0.01)
    finder = finder_of(ModelConfig(path=f"http://{HOST}/v2/models/m", members="dns"), NodeConfig())
    assert finder is not None
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await finder.look()
    assert asked == [HOST]


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"path": "http://10.0.0.1:8000/v2/models/m", "members": "dns"}, "10.0.0.1 in the path is an address already"),
        ({"path": "http://[::1]:8000/v2/models/m", "members": "srv"}, "::1 in the path is an address already"),
        ({"path": "http://a/v2/models/m,http://b/v2/models/m", "members": "redis"}, "takes one address"),
        ({"path": "m.onnx", "members": "dns"}, "has no effect: it needs batches that run on another server"),
    ],
)
def test_what_cannot_be_followed(config: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check(ModelConfig(**config))


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ({"zone": "a;b"}, "zone = 'a;b' is not understood"),
        ({"group": "g", "registry": "http://x"}, "the address of registry is not understood"),
        ({"group": "g"}, "group = 'g' has no effect: it needs a registry"),
        ({"registry": "redis://r", "group": "g", "address": "http://x:1"}, "is no host"),
    ],
)
def test_a_node_that_makes_no_sense(node: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check(NodeConfig(**node))
