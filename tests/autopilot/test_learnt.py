"""An agent's file as a policy of knobs: what it proposes, what is refused, and that the rules decide where it cannot."""

import json
from collections.abc import Iterator
from itertools import count
from math import nan
from pathlib import Path
from statistics import median
from time import perf_counter

import pytest

from dlproxy.autopilot.learnt import MOST_SLOW, SLOW_S, Learnt, Network, read_agent
from dlproxy.instance.integrity import Trust
from dlproxy.instance.integrity.ciphers import private_key
from dlproxy.instance.integrity.writing import make_key_pair, sign
from dlproxy.instance.runtime import ModelError
from dlproxy.policy.tuning.features import NAMES
from dlproxy.policy.tuning.moves import MOVES, Move
from dlproxy.policy.tuning.pilot import URGENT_S
from dlproxy.policy.tuning.protocol import Proposal
from dlproxy.policy.tuning.rules import Rules
from tests.autopilot.agent_file import OURS, write_agent
from tests.policy.tuning.lanes import KNOBS, SPACE, window

SEEN = {**OURS, "dlproxy.seen": json.dumps([[-3.0, 3.0]] * len(NAMES))}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.onnx"


def read(path: Path) -> Network:
    return read_agent(str(path), Trust())


def asked(policy: Learnt | Rules, times: int = 1, missed: int = 50) -> Proposal | None:
    proposal = None
    for number in range(times):
        proposal = policy.act(window(5.0 * number, missed=missed, seconds=5.0), KNOBS, SPACE, 5.0 * number)
    return proposal


def test_it_proposes_the_best_move_and_leaves_what_cannot_be_as_it_is(path: Path) -> None:
    assert asked(Learnt(read(write_agent(path, {Move.SHORTER_WAIT: 9.0, Move.TWICE_ROWS: 0.2})))) is None
    network = read(write_agent(path, {Move.MORE_INSTANCES: 0.5, Move.TWICE_ROWS: 0.2}))
    proposal = asked(Learnt(network))
    assert proposal is not None
    assert proposal.knobs == {**KNOBS, "instances": 2}
    assert proposal.reason == "saw 20 requests/s, 50.0% missed; hopes for more instances, 0.5 above leaving all as it is"


def test_it_decides_by_what_it_sees(path: Path) -> None:
    learnt = Learnt(read(write_agent(path, {Move.LEAVE: 0.1}, weights={("missed", Move.TWICE_ROWS): 1.0})))
    assert asked(learnt, missed=0) is None
    proposal = asked(learnt, missed=60)
    assert proposal is not None
    assert proposal.knobs["max_batch"] == 16


@pytest.mark.parametrize(
    ("metadata", "clue"),
    [
        ({}, "agent.onnx is no agent: its metadata has no dlproxy.features"),
        ({**OURS, "dlproxy.features": "tea,coffee"}, "is of another version: dlproxy.features has tea, and"),
        ({**OURS, "dlproxy.moves": OURS["dlproxy.moves"].rpartition(",")[0]}, f"dlproxy.moves has {len(MOVES) - 1} of them"),
        ({**OURS, "dlproxy.moves": ",".join(reversed([*Move.__members__]))}, "train it again with this dlproxy"),
        ({**OURS, "dlproxy.seen": "[[0, 1]]"}, "has bounds of 1 features"),
        ({**OURS, "dlproxy.seen": "much"}, "is not understood"),
    ],
)
def test_a_file_of_another_version_is_refused(path: Path, metadata: dict[str, str], clue: str) -> None:
    with pytest.raises(ModelError) as refused:
        read(write_agent(path, {}, metadata))
    assert clue in str(refused.value)


def test_what_is_no_agent_is_refused(path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        read(path)
    with pytest.raises(ModelError, match="gives \\['values'\\]"):
        read(write_agent(path, {}, outputs="values"))
    path.write_bytes(b"no network")
    with pytest.raises(ModelError, match=r"agent\.onnx is not a model that ONNX Runtime"):
        read(path)


def test_it_must_be_signed_where_models_must_be(path: Path) -> None:
    private, public = make_key_pair(path.parent / "key")
    from dlproxy.instance.integrity.settings import read_signers

    trust = Trust(signers=read_signers([str(public)]))
    write_agent(path, {})
    with pytest.raises(ModelError, match="manifest"):
        read_agent(str(path), trust)
    sign(str(path), private_key(private.read_bytes()))
    assert asked(Learnt(read_agent(str(path), trust))) is None
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ModelError):
        read_agent(str(path), trust)


@pytest.mark.parametrize("trouble", ["no numbers", "fails", "slow"])
def test_the_rules_decide_where_it_cannot(path: Path, trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    network = read(write_agent(path, {Move.LEAVE: nan if trouble == "no numbers" else 1.0}))
    ticks = count(0.0, 1.5 * SLOW_S)
    learnt = Learnt(network, clock=lambda: next(ticks)) if trouble == "slow" else Learnt(network)
    if trouble == "fails":
        network._runtime = None
    times = MOST_SLOW + 1 if trouble == "slow" else 1
    if trouble == "slow":
        assert asked(learnt, times - 1) is None
        assert not network.trouble
    asked(learnt, times)
    assert asked(learnt) == asked(Rules()) != None  # noqa: E711 - the rules do propose something
    clue = {"no numbers": "its scores are no numbers", "fails": "it cannot be run", "slow": "more than 1 ms"}[trouble]
    assert [clue in notice for notice in learnt.notices] == [True]
    asked(Learnt(network), 3)
    assert len(caplog.records) == 1, "it is logged once, whoever asks it"


def test_a_decision_that_is_slow_now_and_then_is_forgiven(path: Path) -> None:
    def ticks() -> Iterator[float]:
        now = 0.0
        for number in count():
            yield now
            now += SLOW_S * 3 if number % 6 == 0 else 0.0
            yield now

    clock = ticks()
    learnt = Learnt(read(write_agent(path, {})), clock=lambda: next(clock))
    asked(learnt, 200)
    assert not learnt.notices


def test_what_it_was_not_trained_for_is_said_once(path: Path) -> None:
    bounds = [[-3.0, 3.0]] * len(NAMES)
    bounds[NAMES.index("missed")] = [0.0, 0.1]
    learnt = Learnt(read(write_agent(path, {}, {**OURS, "dlproxy.seen": json.dumps(bounds)})))
    asked(learnt, 100, missed=20)
    assert not learnt.notices
    asked(learnt, 20, missed=60)
    assert not learnt.notices, "which is but a moment"
    asked(learnt, 200, missed=60)
    assert len(learnt.notices) == 1
    assert "it sees loads that it was not trained for (missed is 0.6, and was 0 to 0.1)" in learnt.notices[0]
    asked(learnt, 200, missed=0)
    asked(learnt, 200, missed=60)
    assert len(learnt.notices) == 2


@pytest.mark.alone
@pytest.mark.alone
def test_the_network_takes_less_than_a_millisecond_and_a_decision_less_than_a_hundredth_of_the_time_between_two(
    path: Path,
) -> None:
    """All of it on a machine that has nothing else to do, which the quickest tenth are taken for."""
    network = read(write_agent(path, {}, SEEN, hidden=256))
    learnt = Learnt(network)
    asked(learnt, 20)
    took, ran = [], []
    for number in range(200):
        seen = window(5.0 * number, missed=50, seconds=5.0)
        began_at = perf_counter()
        learnt.act(seen, KNOBS, SPACE, 5.0 * number)
        took.append(perf_counter() - began_at)
        began_at = perf_counter()
        network.scores([0.1] * len(NAMES))
        ran.append(perf_counter() - began_at)
    assert median(ran) < SLOW_S
    assert sorted(took)[len(took) // 10] < 0.01 * URGENT_S
