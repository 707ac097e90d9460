"""Whatever happens to the files between looks: in the end what is wanted is what a fresh look would want."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from dlproxy.config import ServerConfig
from dlproxy.fleet.repository.settling import SETTLE_S
from dlproxy.fleet.repository.watcher import Repository
from dlproxy.testing.clock import ManualClock
from tests.fleet.repository.fixtures import Store, found_in, much_later, put, remove

NAMES = st.sampled_from(["a", "b"])
VERSIONS = st.sampled_from(["1", "2", "10"])

Operation = Callable[[Path], None]


def written(name: str, content: bytes) -> Operation:
    return lambda root: put(root, name, content=content)


def removed(name: str) -> Operation:
    return lambda root: remove(root / name)


def swapped(root: Path) -> None:
    """Two models change names."""
    if (root / "a").exists() and (root / "b").exists():
        os.rename(root / "a", root / "c")
        os.rename(root / "b", root / "a")
        os.rename(root / "c", root / "b")


PIPELINE = b'inputs = {x = "FP32[-1]"}\noutputs = {y = "s.y"}\nsteps = {s = {model = "a", inputs = {x = "x"}}}'
MODELS = st.builds("{}/{}/model.onnx".format, NAMES, VERSIONS)
OPERATIONS = st.one_of(
    st.builds(written, MODELS, st.binary(min_size=0, max_size=3)),
    st.builds(written, st.builds("{}.onnx".format, NAMES), st.just(b"x")),
    st.builds(
        written,
        st.builds("{}/dlproxy.toml".format, NAMES),
        st.sampled_from([b"", b'serve_versions = "all"', b"serve_versions = [2]", b"max_batch = 3", PIPELINE]),
    ),
    st.builds(removed, MODELS),
    st.builds(removed, st.builds("{}/{}".format, NAMES, VERSIONS)),
    st.builds(removed, NAMES),
    st.builds(removed, st.builds("{}.onnx".format, NAMES)),
    st.just(swapped),
)
LOOK = None


async def follow(root: Path, steps: list[Operation | None]) -> tuple[Store, Store, set[str]]:
    """What whoever has followed it all wants, and who looks at last; and the models that may be as they were, being broken."""
    put(root, "keeps.onnx")
    clock, store, fresh = ManualClock(), Store(), Store()
    follower = Repository(ServerConfig(repository=str(root)), store.change, clock, wall_ns=much_later)
    for step in steps:
        if step is not None:
            step(root)
        else:
            clock.advance(SETTLE_S / 2)
            await follower.look()
    for _ in range(2):
        clock.advance(SETTLE_S)
        unsettled = await follower.look()
    assert unsettled == set()
    await Repository(ServerConfig(repository=str(root)), fresh.change, clock, wall_ns=much_later).look()
    return store, fresh, {name for name, model in found_in(root).items() if model.problem}


def versions(store: Store) -> dict[str, object]:
    return {name: model.versions for name, model in store.wanted.models.items()}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(OPERATIONS, st.just(LOOK), st.just(LOOK)), max_size=25))
def test_what_is_wanted_depends_on_the_files_alone(steps: list[Operation | None]) -> None:
    with TemporaryDirectory() as folder:
        store, fresh, broken = asyncio.run(follow(Path(folder), steps))
    wanted, looked = versions(store), versions(fresh)
    assert wanted.keys() == looked.keys()
    assert {name: wanted[name] for name in wanted.keys() - broken} == {name: looked[name] for name in looked.keys() - broken}
