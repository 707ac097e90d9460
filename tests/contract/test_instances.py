"""Every kind of instance keeps the contract of instance/__init__.py."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from tempfile import mkdtemp

import pytest

from dlproxy.fleet.lent import LentInstance
from dlproxy.instance import Instance
from dlproxy.instance.inline import InlineInstance
from dlproxy.instance.process.instance import ProcessInstance, WorkerSettings
from dlproxy.instance.runtime import Runtime
from dlproxy.instance.runtime.specs import PythonSpec
from dlproxy.instance.thread import ThreadInstance
from dlproxy.lab.simulate.instance import SimulatedInstance
from dlproxy.lab.simulate.service_times import Fitted
from dlproxy.testing import FakeInstance, check_instance
from dlproxy.testing.instance_contract import RULES, STREAM_RULES, MakeInstance, describe, reports_once_on_the_event_loop
from tests.instance.remote_grpc import GrpcUpstream
from tests.instance.upstreams import DlproxyUpstream, WithUpstream

numbers = count(1)


def _inline(runtime: Runtime) -> Instance:
    return InlineInstance(f"inline-{next(numbers)}", runtime)


def _thread(runtime: Runtime) -> Instance:
    return ThreadInstance(f"thread-{next(numbers)}", runtime)


def _fake(runtime: Runtime) -> Instance:
    return FakeInstance(f"fake-{next(numbers)}", runtime, service_s=lambda rows: 0.001 * rows)


def _simulated(runtime: Runtime) -> Instance:
    return SimulatedInstance(f"simulated-{next(numbers)}", Fitted(0.001, 0.001, cv=0.5), runtime=runtime)


async def _process(runtime: Runtime) -> Instance:
    spec = PythonSpec("dlproxy.testing.instance_contract:rebuild", describe(runtime))
    instance = ProcessInstance(f"process-{next(numbers)}", spec)
    await instance.start()
    return instance


class _Lent(LentInstance):
    """With the worker that another process would have started."""

    owner: ProcessInstance

    async def stop(self) -> None:
        await super().stop()
        await self.owner.stop()


async def _lent(runtime: Runtime) -> Instance:
    spec = PythonSpec("dlproxy.testing.instance_contract:rebuild", describe(runtime))
    path = str(Path(mkdtemp(), "worker"))
    owner = ProcessInstance(f"process-{next(numbers)}", spec, WorkerSettings(shared_at=path))
    await owner.start()
    instance = _Lent(f"lent-{next(numbers)}", path, WorkerSettings())
    instance.owner = owner
    await instance.start()
    return instance


async def _remote(runtime: Runtime) -> Instance:
    return await WithUpstream.around(f"remote-{next(numbers)}", DlproxyUpstream(runtime))


async def _remote_grpc(runtime: Runtime) -> Instance:
    return await WithUpstream.around(f"remote-{next(numbers)}", GrpcUpstream(runtime))


HERE = [
    pytest.param(_inline, id="inline"),
    pytest.param(_thread, id="thread"),
    pytest.param(_fake, id="fake"),
    pytest.param(_simulated, id="simulated"),
]
KINDS = [
    *HERE,
    pytest.param(_process, id="process"),
    pytest.param(_lent, id="lent"),
    pytest.param(_remote, id="remote"),
    pytest.param(_remote_grpc, id="remote-grpc"),
]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
async def test_rule_holds(rule: Callable[..., object], make: MakeInstance) -> None:
    await rule(make)  # type: ignore[misc]


@pytest.mark.parametrize(
    "make", [pytest.param(_thread, id="thread"), pytest.param(_process, id="process"), pytest.param(_lent, id="lent")]
)
@pytest.mark.parametrize("rule", STREAM_RULES, ids=lambda rule: rule.__name__)
async def test_streams_hold_their_rules(rule: Callable[..., object], make: MakeInstance) -> None:
    await rule(make)  # type: ignore[misc]


@pytest.mark.parametrize("make", HERE)
async def test_whole_suite_passes(make: MakeInstance) -> None:
    await check_instance(make)


async def test_suite_catches_an_instance_that_forgets_to_report() -> None:
    class Forgetful(InlineInstance):
        def run(self, requests: object, done: object) -> None: ...

    with pytest.raises(AssertionError, match="calls itself inline and computes later"):
        await reports_once_on_the_event_loop(lambda runtime: Forgetful("forgetful", runtime))


async def test_suite_catches_an_instance_that_raises() -> None:
    class Raising(InlineInstance):
        def run(self, requests: object, done: object) -> None:
            raise RuntimeError("boom")

    with pytest.raises(AssertionError, match="instead of reporting it"):
        await check_instance(lambda runtime: Raising("raising", runtime))
