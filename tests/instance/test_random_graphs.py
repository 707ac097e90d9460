"""No client's answer depends on other clients: random ONNX graphs, served to 32 clients at once, against ONNX Runtime alone.

`make prove-batching` draws thousands of graphs instead of a few hundred, others each time, and says how they were served.
"""

from collections import Counter
from collections.abc import Iterator

import pytest

from dlproxy.fleet import warm_model
from dlproxy.instance.warmup import Calibration
from tests.instance.graphs.court import GRAPHS, OF_EACH, Court, WrongAnswerError
from tests.instance.graphs.draft import Made
from tests.instance.graphs.judge import Verdict
from tests.instance.graphs.kinds import HOSTILE, KINDS, PADDED, ROW_WISE, Kind

UNTIL_FOUND = 60  # graphs within which a fault must show
BATCHED = 0.95  # of graphs whose rows stand alone, the share that is batched at least: "never" is no way to be right


@pytest.fixture(scope="module")
def court(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Court]:
    court = Court(tmp_path_factory.mktemp("graphs"))
    yield court
    court.close()
    if GRAPHS:
        plugins = pytestconfig.pluginmanager
        with plugins.getplugin("capturemanager").global_and_fixture_disabled():
            plugins.getplugin("terminalreporter").write(f"\n{court.table()}\n")


@pytest.fixture(scope="module")
def another_court(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Court]:
    """Whose findings are not counted."""
    court = Court(tmp_path_factory.mktemp("graphs"))
    yield court
    court.close()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.id)
def test_every_request_is_answered_as_it_is_alone(court: Court, kind: Kind) -> None:
    def check(made: Made, verdict: Verdict) -> None:
        assert not verdict.refused, f"{made.words}\n{made.text}\n{verdict.refused[0]}"

    court.prove(kind, OF_EACH, check)


def test_rows_that_stand_alone_share_batches(court: Court) -> None:
    alone, drawn = [], 0

    def check(made: Made, verdict: Verdict) -> None:
        nonlocal drawn
        if made.plain:
            drawn += 1
            if not verdict.batched:
                alone.append(made.words)

    plain = [kind for kind in KINDS if kind.family == ROW_WISE]
    for kind in plain:
        court.prove(kind, max(OF_EACH // 2, 2), check, explain=False)
    assert len(alone) <= (1 - BATCHED) * drawn, f"{len(alone)} of {drawn} were not batched:\n" + "\n".join(alone)
    assert drawn >= len(plain)


def test_requests_of_unlike_lengths_share_batches(court: Court) -> None:
    """Where padding changes nothing, and nowhere else."""
    padded: Counter[str] = Counter()

    for kind in KINDS:
        if kind.family in (PADDED, "changed by padding", "not padded by itself"):
            court.prove(kind, 2, lambda made, verdict, kind=kind: padded.update([kind.family] * verdict.padded), explain=False)
    assert padded["changed by padding"] == padded["not padded by itself"] == 0
    assert padded[PADDED] >= BATCHED * 2 * sum(kind.family == PADDED for kind in KINDS)


# The proof itself: a warm-up that overlooks something lets wrong answers through, and they are found


@pytest.mark.parametrize("kind", HOSTILE, ids=lambda kind: kind.id)
def test_a_warm_up_that_believes_every_model_is_found_out(
    another_court: Court, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_model, "warmed", lambda runtime, *_: (Calibration(((1, 1e-5),), True), []))
    with pytest.raises(WrongAnswerError):
        another_court.prove(kind, UNTIL_FOUND, explain=False)
