"""Models whose batches take turns on the cores, on virtual loop time: never too many at once, and nobody waits in vain."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from dlproxy.config import ConfigError, ModelConfig, ServerConfig
from dlproxy.fleet.local import LocalFleet
from dlproxy.instance.batch import BatchResult
from dlproxy.instance.trial import Way
from dlproxy.message import FailureKind, Request
from dlproxy.policy.arbiter import Arbiter, Want
from dlproxy.policy.knobs import LaneKnobs
from dlproxy.policy.queueing import DISCIPLINES
from dlproxy.serve.assemble import LoadedModel
from dlproxy.serve.models import Models
from dlproxy.serve.turns import Turns
from dlproxy.testing import FakeInstance
from tests.serve.rig import KNOBS, Reply, Rig, pass_time, turns

pytestmark = pytest.mark.looptime(idle_step=0.1, idle_timeout=1.0)  # whoever waits for ever fails, and does not hang
ONE = replace(KNOBS, max_batch=1, arbitrated=True)
PROMPT_S = 0.010
every_discipline = pytest.mark.parametrize("discipline", DISCIPLINES)


class Cores:
    """Counts what runs; fails as soon as it is more than there is."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.busy = 0
        self.most = 0
        self.began: list[tuple[float, str]] = []

    def begin(self, lane: str, needs: int) -> None:
        self.busy += needs
        self.most = max(self.most, self.busy)
        self.began.append((asyncio.get_running_loop().time(), lane))
        assert self.busy <= self.cores, f"{self.busy} cores of {self.cores} are busy"


class CountedInstance(FakeInstance):
    """Tells the cores when it works."""

    lane = ""
    needs = 1
    cores = Cores(1)

    def run(self, requests: Sequence[Request], done: Callable[[BatchResult], None]) -> None:
        self.cores.begin(self.lane, self.needs)

        def ended(result: BatchResult) -> None:
            self.cores.busy -= self.needs
            done(result)

        super().run(requests, ended)


class Sharing(Rig):
    """One model among those that take turns."""

    def __init__(
        self,
        machine: "Machine",
        lane: str,
        *,
        needs: int = 1,
        instances: int = 1,
        service_s: float | None = 0.010,
        knobs: LaneKnobs = ONE,
        **more: Any,
    ) -> None:
        super().__init__(instances=0, service_s=service_s, knobs=knobs, **more)
        self.driver._model = lane  # all rigs serve a model of the same name
        self.driver.take_turns(machine.turns, {"cores": needs})
        for number in range(instances):
            fake = CountedInstance(f"{lane}-{number}", self.runtime, service_s=self._service_s)
            fake.lane, fake.needs, fake.cores = lane, needs, machine.cores
            self.fakes.append(fake)
            self.driver.add_instance(fake)

    def send_with(self, *, priority: int, timeout_s: float = float("inf")) -> Reply:
        reply = Reply(self.request(timeout_s=timeout_s))
        reply.request.ticket.priority = priority
        self.driver.submit(reply.request, reply)
        return reply


class Machine:
    """So many cores, and the turns on them."""

    def __init__(self, cores: int = 1, *, discipline: str = "fair", reserved: int = 0) -> None:
        self.cores = Cores(cores)
        arbiter = Arbiter({"cores": cores}, discipline=discipline, reserved={"cores": reserved})
        self.turns = Turns(arbiter, asyncio.get_running_loop().time)

    def check_at_rest(self, *rigs: Sharing) -> None:
        """Nothing runs, nothing is leased, nobody has forgotten a request."""
        assert self.cores.busy == 0
        assert self.turns.free == {"cores": self.cores.cores}
        for rig in rigs:
            assert rig.is_at_rest()
            assert not rig.driver._flights
            assert rig.driver._taker is None or rig.driver._taker.is_at_rest


async def answers(*replies: Reply) -> list[FailureKind | None]:
    return [(await reply.wait()).kind for reply in replies]


@every_discipline
async def test_two_models_on_one_core_run_one_batch_at_a_time_and_both_get_on(discipline: str) -> None:
    machine = Machine(discipline=discipline)
    a, b = Sharing(machine, "a"), Sharing(machine, "b")
    replies = [rig.send() for _ in range(20) for rig in (a, b)]
    assert await answers(*replies) == [None] * 40
    assert asyncio.get_running_loop().time() == pytest.approx(0.4), "the core never idles"
    assert [lane for _, lane in machine.cores.began].count("a") == 20
    machine.check_at_rest(a, b)


async def test_fair_turns_alternate() -> None:
    machine = Machine()
    a, b = Sharing(machine, "a"), Sharing(machine, "b")
    replies = [rig.send() for _ in range(10) for rig in (a, b)]
    await answers(*replies)
    assert all(before != after for (_, before), (_, after) in pairwise(machine.cores.began))


async def test_fair_turns_give_a_heavy_model_half_of_the_time_not_half_of_the_turns() -> None:
    machine = Machine()
    heavy, light = Sharing(machine, "heavy", service_s=0.09), Sharing(machine, "light", service_s=0.03)
    replies = [heavy.send() for _ in range(30)] + [light.send() for _ in range(90)]
    await pass_time(1.8)
    lanes = [lane for _, lane in machine.cores.began]
    assert lanes.count("light") * 0.03 == pytest.approx(lanes.count("heavy") * 0.09, rel=0.25)
    await answers(*replies)
    machine.check_at_rest(heavy, light)


async def test_instances_of_one_model_share_too() -> None:
    machine = Machine(2)
    a, b = Sharing(machine, "a", instances=3), Sharing(machine, "b", instances=2)
    replies = [rig.send() for _ in range(12) for rig in (a, b)]
    assert await answers(*replies) == [None] * 24
    assert asyncio.get_running_loop().time() == pytest.approx(0.12)
    assert machine.cores.most == 2
    machine.check_at_rest(a, b)


async def test_a_wide_batch_gets_its_turn_among_narrow_ones() -> None:
    machine = Machine(2)
    wide, narrow = Sharing(machine, "wide", needs=2), Sharing(machine, "narrow", instances=2)
    replies = [narrow.send() for _ in range(50)]
    await pass_time(0.001)
    last = wide.send()
    await last.wait()
    assert last.at < 0.05
    await answers(*replies)
    machine.check_at_rest(wide, narrow)


async def test_batches_grow_while_they_wait_for_their_turn() -> None:
    machine = Machine()
    a, b = Sharing(machine, "a", service_s=1.0), Sharing(machine, "b", knobs=replace(ONE, max_batch=64))
    first = a.send()
    await turns()
    later = []
    for number in range(5):
        later.append(b.send(float(number)))
        await pass_time(0.1)
    await first.wait()
    assert [(await reply.wait()).values for reply in later] == [[2.0 * number] for number in range(5)]
    assert [len(batch) for batch in b.batches] == [5]


async def test_a_lane_with_nothing_left_passes_its_turn() -> None:
    machine = Machine()
    a, b, c = (Sharing(machine, lane, service_s=1.0) for lane in "abc")
    first = a.send()
    await turns()
    gone, last = b.send(), c.send()
    await pass_time(0.1)
    b.driver.cancel(gone.request)
    assert (await gone.wait()).kind is FailureKind.CANCELLED
    await answers(first, last)
    assert [lane for _, lane in machine.cores.began] == ["a", "c"]
    assert last.at == pytest.approx(2.0)
    machine.check_at_rest(a, b, c)


async def test_a_lane_that_passed_asks_again_when_it_has_something() -> None:
    machine = Machine()
    a, b = Sharing(machine, "a", service_s=1.0), Sharing(machine, "b")
    for _ in range(3):
        running = a.send()
        await turns()
        late = b.send(timeout_s=0.5)
        assert (await late.wait()).kind is FailureKind.DEADLINE
        await running.wait()
        assert (await b.send().wait()).kind is None
    machine.check_at_rest(a, b)


async def test_a_lost_instance_gives_its_lease_back() -> None:
    machine = Machine()
    a, b = Sharing(machine, "a", service_s=None), Sharing(machine, "b")
    first = a.send()
    await turns()
    second = b.send()
    await pass_time(0.5)
    machine.cores.busy = 0  # whatever it ran, it is no longer
    a.driver.lose_instance("a-0", "it died")
    assert (await first.wait()).kind is FailureKind.UNAVAILABLE
    assert (await second.wait()).kind is None
    machine.check_at_rest(a, b)


async def test_an_instance_lost_while_the_lane_waits_for_its_turn_leaves_nothing() -> None:
    machine = Machine()
    a, b = Sharing(machine, "a", service_s=1.0), Sharing(machine, "b")
    first = a.send()
    await turns()
    waiting = b.send()
    await pass_time(0.1)
    b.driver.lose_instance("b-0", "it died")
    assert (await waiting.wait()).kind is FailureKind.UNAVAILABLE
    assert (await first.wait()).kind is None
    machine.check_at_rest(a, b)
    spare = CountedInstance("b-1", b.runtime, service_s=lambda _: 0.01)
    spare.cores = machine.cores
    b.driver.add_instance(spare)
    assert (await b.send().wait()).kind is None
    machine.check_at_rest(a, b)


async def test_a_batch_that_fails_gives_its_lease_back_and_runs_again_in_a_turn() -> None:
    machine = Machine()
    a = Sharing(machine, "a", instances=2, knobs=replace(ONE, retry_budget=1.0))
    b = Sharing(machine, "b")
    for fake in a.fakes:
        fake.fail_next("out of memory")
    replies = [a.send(), b.send(), a.send(), b.send()]
    assert (await answers(*replies))[1::2] == [None, None]
    machine.check_at_rest(a, b)


async def test_stopping_while_a_turn_is_waited_for_leaves_nothing_leased() -> None:
    machine = Machine()
    a, b = Sharing(machine, "a", service_s=1.0), Sharing(machine, "b")
    running = a.send()
    await turns()
    waiting = b.send()
    await turns()
    await b.driver.stop(0.1)
    assert waiting.kind is FailureKind.UNAVAILABLE
    assert waiting.at == pytest.approx(0.1)
    late = b.send()
    assert (await late.wait()).kind is FailureKind.UNAVAILABLE
    assert (await running.wait()).kind is None
    assert (await a.send().wait()).kind is None
    machine.check_at_rest(a, b)
    assert list(machine.turns._takers) == ["a/1"]


async def test_stopping_while_it_runs_hands_the_cores_on() -> None:
    machine = Machine(2)
    a, b = Sharing(machine, "a", service_s=1.0, instances=2), Sharing(machine, "b")
    cut = [a.send(), a.send(), a.send()]
    await turns()
    other = b.send()
    await turns()
    machine.cores.cores = 3  # what the threads of an instance do to their end is no batch any more
    stopping = asyncio.ensure_future(a.driver.stop(0.2))
    await pass_time(0.5)
    assert {reply.kind for reply in cut} == {FailureKind.UNAVAILABLE}
    assert not stopping.done(), "the threads end with their batches"
    assert (await other.wait()).kind is None
    await stopping
    machine.cores.cores = 2
    machine.check_at_rest(a, b)


@every_discipline
async def test_deadlines_are_kept_although_the_cores_are_busy(discipline: str) -> None:
    machine = Machine()
    busy = Sharing(machine, "busy", service_s=2.0)
    waits = Sharing(machine, "waits", knobs=replace(ONE, max_batch=64, discipline=discipline))
    running = busy.send()
    await turns()
    patient = waits.send()
    replies = []
    for number in range(40):
        await pass_time(0.0137)
        replies.append(waits.send(timeout_s=0.05 + (number * 0.37) % 1.0))
    for reply in replies:
        assert (await reply.wait()).kind is FailureKind.DEADLINE
        assert 0.0 <= reply.at - reply.request.ticket.deadline_at <= PROMPT_S, "as it waited, not when it came"
    assert await answers(running, patient) == [None, None]
    machine.check_at_rest(busy, waits)


async def test_urgent_requests_use_the_cores_that_are_kept_for_them() -> None:
    machine = Machine(2, reserved=1)
    a, b = Sharing(machine, "a", service_s=1.0, instances=2), Sharing(machine, "b", service_s=1.0)
    ordinary = [a.send(), a.send()]
    await turns()
    other = b.send()
    await pass_time(0.5)
    assert machine.cores.busy == 1, "the second core is kept"
    urgent = b.send_with(priority=1)
    await pass_time(0.1)
    assert machine.cores.busy == 2
    assert (await urgent.wait()).at == pytest.approx(1.5)
    assert await answers(*ordinary, other) == [None] * 3
    machine.check_at_rest(a, b)


async def test_the_earliest_deadline_runs_first_under_edf() -> None:
    machine = Machine(discipline="edf")
    a, b, c = (Sharing(machine, lane) for lane in "abc")
    first = a.send()
    await turns()
    late, soon = b.send(timeout_s=9.0), c.send(timeout_s=1.0)
    await answers(first, late, soon)
    assert [lane for _, lane in machine.cores.began] == ["a", "c", "b"]


def test_who_leaves_is_granted_nothing_any_more() -> None:
    turns_of = Turns(Arbiter({"cores": 1}), lambda: 0.0)
    got: list[tuple[str, int]] = []
    for lane in "ab":
        turns_of.join(lane, lambda lease, lane=lane: got.append((lane, lease)))  # type: ignore[misc]
    turns_of.want(Want("a", {"cores": 1}, 0.1))
    turns_of.want(Want("b", {"cores": 1}, 0.1))
    turns_of.leave("b")
    turns_of.release(got[0][1], 0.1)
    assert got == [("a", 1)]
    turns_of.leave("b")
    assert turns_of.free == {"cores": 1}


def test_a_turn_passed_on_at_once_goes_to_the_next() -> None:
    turns_of = Turns(Arbiter({"cores": 1}, discipline="fcfs"), lambda: 0.0)
    got: list[str] = []

    def passes(lane: str) -> Callable[[int], None]:
        def on_turn(lease: int) -> None:
            got.append(lane)
            turns_of.release(lease, 0.0)

        return on_turn

    held: list[int] = []
    turns_of.join("a", held.append)
    for lane in "bcd":
        turns_of.join(lane, passes(lane))
    for lane in "abcd":
        turns_of.want(Want(lane, {"cores": 1}, 0.1))
    turns_of.release(held[0], 0.1)
    assert got == ["b", "c", "d"]
    assert turns_of.free == {"cores": 1}


# Who shares


async def loaded(server: dict[str, Any], models: Mapping[str, Mapping[str, Any]]) -> Models:
    """Models that only take time. Those that run inline are quick."""
    made = Models(ServerConfig(**{"arbiter": "auto", **server}), clock=asyncio.get_running_loop().time)
    for name, settings in models.items():
        base = "10us" if settings.get("run") == "inline" else "1ms"
        await made.load(name, ModelConfig(path=f"sleep:base={base},row=1us", **settings))
    return made


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
THREAD, INLINE = {"run": "thread"}, {"run": "inline"}
SHARED: list[tuple[dict[str, Any], dict[str, Mapping[str, Any]], bool]] = [
    ({"cores": 1}, {"a": THREAD, "b": THREAD}, True),
    ({"cores": 2}, {"a": THREAD, "b": THREAD}, False),
    ({"cores": 2}, {"a": {**THREAD, "instances": 2}, "b": THREAD}, True),
    ({"cores": 1}, {"a": {**THREAD, "instances": 4}}, False),
    ({"cores": 1}, {"a": THREAD, "b": INLINE}, False),
    ({"cores": 1, "arbiter": ServerConfig().arbiter}, {"a": THREAD, "b": THREAD}, False),  # the default
    ({"cores": 8, "arbiter": "on"}, {"a": THREAD, "b": THREAD}, True),
    ({"cores": 8, "arbiter": "on"}, {"a": THREAD}, True),
    ({"cores": 8, "arbiter": "on"}, {"a": INLINE}, False),
    ({"cores": 8, "arbiter": "on"}, {}, False),
    ({"cores": 2, "arbiter": "on", "reserved_cores": 1}, {"a": THREAD}, True),
    ({"cores": 2, "arbiter": "on", "reserved_cores": 9}, {"a": INLINE}, False),
    ({"cores": 0}, {"a": {**THREAD, "instances": CORES}, "b": THREAD}, True),
]


def arbitrated(models: Models) -> set[str]:
    return {model.served.name for model in models if model.control.state()["arbitrated"]}


@pytest.mark.looptime(False)
@pytest.mark.parametrize(("server", "models", "shares"), SHARED)
async def test_who_takes_turns(server: dict[str, Any], models: dict[str, Mapping[str, Any]], shares: bool) -> None:
    made = await loaded(server, models)
    assert made.shares_cores is shares
    assert arbitrated(made) == ({name for name, settings in models.items() if settings != INLINE} if shares else set())
    await made.drain(1.0)


def needs_of(model: LoadedModel) -> Mapping[str, float]:
    assert model.driver._taker is not None
    return model.driver._taker.needs


@pytest.mark.looptime(False)
async def test_who_takes_turns_changes_with_the_models() -> None:
    made = await loaded({"cores": 1}, {"a": THREAD})
    assert arbitrated(made) == set()
    b = await made.load("b", ModelConfig(path="sleep:base=1ms,row=1us", run="thread"))
    assert arbitrated(made) == {"a", "b"}
    await made.replace("b", "", ModelConfig(path="sleep:base=1ms,row=1us", run="thread"))
    assert arbitrated(made) == {"a", "b"}, "the old one has the same name, and gives up its turns, not those of the new one"
    for model in made:
        reply = Reply(Rig.plain_request())
        model.driver.submit(reply.request, reply)
        assert (await reply.wait()).response is not None
    assert not b.driver.ready
    await made.unload("b")
    assert arbitrated(made) == set()
    await made.drain(1.0)


@pytest.mark.looptime(False)
async def test_who_takes_turns_changes_with_the_number_of_instances_and_the_way() -> None:
    made = await loaded({"cores": 2}, {"a": THREAD, "b": THREAD})
    a = next(iter(made))
    assert arbitrated(made) == set()
    await a.control.scale(2)
    assert arbitrated(made) == {"a", "b"}
    assert needs_of(a) == {"cores": 1}
    assert isinstance(a.fleet, LocalFleet)
    assert a.fleet.on_moved is not None
    a.fleet.way = Way(False, 2, 2)
    a.fleet.on_moved(a.fleet.way)
    assert needs_of(a) == {"cores": 2}
    a.fleet.way = Way(True, 1, 1)
    a.fleet.on_moved(a.fleet.way)
    assert arbitrated(made) == set(), "one alone has nobody to share with"
    await made.drain(1.0)


@pytest.mark.looptime(False)
async def test_a_model_with_more_threads_than_cores_takes_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """It did run before there were turns, only not well: it may not keep the server from starting."""
    made = await loaded({"cores": 2}, {"a": {**THREAD, "threads": 7}, "b": {**THREAD, "threads": 7}})
    assert made.shares_cores
    assert [needs_of(model) for model in made] == [{"cores": 2}, {"cores": 2}]
    await made.drain(1.0)


@pytest.mark.looptime(False)
@pytest.mark.parametrize(
    ("threads", "server", "clues"),
    [
        (1, {"cores": 2, "reserved_cores": 2, "arbiter": "on"}, ["model a takes 1 cores", "of 2 cores 2 are reserved"]),
        (1, {"cores": 2, "reserved_cores": 5, "arbiter": "on"}, ["of 2 cores 5 are reserved", "lower reserved_cores"]),
        (2, {"cores": 2, "reserved_cores": 1}, ["model a takes 2 cores", "or the model's threads"]),
        (9, {"cores": 4, "reserved_cores": 1}, ["model a takes 4 cores", "of 4 cores 1 are reserved"]),
    ],
)
async def test_cores_that_do_not_suffice_are_an_error_that_names_the_model(
    threads: int, server: dict[str, Any], clues: list[str]
) -> None:
    made = Models(ServerConfig(**{"arbiter": "auto", **server}), clock=asyncio.get_running_loop().time)
    config = ModelConfig(path="sleep:base=1ms,row=1us", run="thread", threads=threads)
    with pytest.raises(ConfigError) as caught:  # noqa: PT012
        await made.load("a", config)
        await made.load("b", config)
    assert not [clue for clue in clues if clue not in str(caught.value)], str(caught.value)
    assert arbitrated(made) == set(), "nothing was changed"
    assert set(made.facts()) == {(model.served.name, model.served.version) for model in made}, "nothing is left of the other"
    await made.drain(1.0)
