"""Nodes announce themselves in a real Redis: there until they go or fall silent; what is no node is passed over."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from dlproxy.config import ModelConfig
from dlproxy.config.node import NodeConfig
from dlproxy.config.redis_address import parse_redis
from dlproxy.fleet import registry
from dlproxy.fleet.members import finder_of
from dlproxy.fleet.redis_wire import asked, connected
from dlproxy.fleet.registry import PREFIX, Node, Registry
from dlproxy.instance.runtime import ModelError
from tests.fleet.redis_server import RedisServer

A, B = Node("http://10.0.0.1:8000", "grpc://10.0.0.1:8001", "eu"), Node("http://10.0.0.2:8000")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
async def nodes(redis: RedisServer) -> AsyncIterator[Registry]:
    made = Registry(parse_redis(redis.url, "registry"))
    yield made
    await made.close()


def who(found: list[Node]) -> set[str]:
    return {node.http for node in found}


async def test_who_is_there(nodes: Registry) -> None:
    assert await nodes.nodes("g") == []
    await nodes.announce("g", A)
    await nodes.announce("g", B)
    await nodes.announce("g", A)
    await nodes.announce("other", B)
    assert sorted(await nodes.nodes("g"), key=lambda node: node.http) == [A, B]
    await nodes.withdraw("g", A)
    assert await nodes.nodes("g") == [B]
    await nodes.withdraw("g", B)
    assert await nodes.own_host() == "127.0.0.1"


async def test_who_falls_silent_is_gone_by_the_clock_of_redis(nodes: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "TTL_S", 1.0)
    await nodes.announce("silent", A)
    assert await nodes.nodes("silent") == [A]
    while await nodes.nodes("silent"):
        pass


async def test_what_is_no_node_is_passed_over(redis: RedisServer, nodes: Registry) -> None:
    wire = await connected(parse_redis(redis.url, "registry"))
    odd = (
        b"x",
        b"[]",
        b'{"http": 3}',
        b"\xff",
        b'{"http": "http://10.0.0.3:8000", "gpus": 8, "zone": "eu"}',
        b'{"http": "ftp://x"}',
    )
    for member in odd:
        await asked(wire, b"ZADD", PREFIX + b"odd", b"9e15", member)
    await asked(wire, b"SET", PREFIX + b"text", b"x")
    wire.close("")
    assert who(await nodes.nodes("odd")) == {"http://10.0.0.3:8000", "ftp://x"}
    with pytest.raises(OSError, match="WRONGTYPE"):
        await nodes.nodes("text")
    node = NodeConfig(registry=redis.url)
    finder = finder_of(ModelConfig(path="http://odd/v2/models/m", members="redis"), node)
    assert finder is not None
    assert list(await finder.look()) == ["10.0.0.3:8000"], "what is no address of a server is left out"
    await finder.close()


async def test_a_finder_takes_the_ports_of_its_protocol(redis: RedisServer, nodes: Registry) -> None:
    for one in (A, B):
        await nodes.announce("both", one)
    ways = {
        "http://both/v2/models/m": ["10.0.0.1:8000", "10.0.0.2:8000"],
        "grpc://both:1/v2/models/m": ["10.0.0.1:8001"],
    }
    for path, places in ways.items():
        finder = finder_of(ModelConfig(path=path, members="redis"), NodeConfig(registry=redis.url))
        assert finder is not None
        found = await finder.look()
        assert sorted(found) == places
        assert found[places[0]].zone == "eu"
        assert found[places[0]].path == "/v2/models/m"
        await finder.close()
    with pytest.raises(ModelError, match=r"set registry in \[node\]"):
        finder_of(ModelConfig(path="http://g/v2/models/m", members="redis"), NodeConfig())


async def test_a_registry_that_is_away_is_an_error_and_back_later(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    try:
        nodes = Registry(parse_redis(server.url, "registry"))
        await nodes.announce("g", A)
        server.kill()
        with pytest.raises(OSError, match=r"redis://127\.0\.0\.1:\d+/0 cannot be used"):
            await nodes.nodes("g")
        server.start(empty=True)
        assert await nodes.nodes("g") == []
        await nodes.announce("g", A)
        assert await nodes.nodes("g") == [A]
        await nodes.close()
    finally:
        server.kill()


def test_later_versions_may_say_more() -> None:
    assert msgspec.json.decode(b'{"http": "http://a:1", "load": 1}', type=Node) == Node("http://a:1")
