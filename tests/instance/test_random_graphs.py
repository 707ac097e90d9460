"""No client's answer depends on other clients: random ONNX graphs, served to 32 clients at once, against ONNX Runtime alone.

`make prove-batching` draws thousands of graphs instead of a few hundred, others each time, and says how they were served.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from hypothesis.errors import FlakyFailure

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


Judged = Callable[[Kind], list[tuple[Made, Verdict]]]


@pytest.fixture(scope="module")
def judged(court: Court) -> Judged:
    """Graphs of a kind and what came of them, drawn once for all tests. Fails where a graph is refused."""

    @cache
    def of(kind: Kind) -> list[tuple[Made, Verdict]]:
        found = []

        def check(made: Made, verdict: Verdict) -> None:
            assert not verdict.refused, f"{made.words}\n{made.text}\n{verdict.refused[0]}"
            found.append((made, verdict))

        court.prove(kind, OF_EACH, check)
        return found

    return of


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.id)
def test_every_request_is_answered_as_it_is_alone(judged: Judged, kind: Kind) -> None:
    assert judged(kind)


def test_rows_that_stand_alone_share_batches(judged: Judged) -> None:
    plain = [kind for kind in KINDS if kind.family == ROW_WISE]
    drawn = [(made, verdict) for kind in plain for made, verdict in judged(kind) if made.plain]
    alone = [made.words for made, verdict in drawn if not verdict.batched]
    assert len(alone) <= (1 - BATCHED) * len(drawn), f"{len(alone)} of {len(drawn)} were not batched:\n" + "\n".join(alone)
    assert len(drawn) >= len(plain)


def test_requests_of_unlike_lengths_share_batches(judged: Judged) -> None:
    """Where padding changes nothing, and nowhere else."""
    padded: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for kind in KINDS:
        if kind.family in (PADDED, "changed by padding", "not padded by itself"):
            padded.update([kind.family] * sum(verdict.padded for _, verdict in judged(kind)))
            asked[kind.family] += len(judged(kind))
    assert padded["changed by padding"] == padded["not padded by itself"] == 0
    assert padded[PADDED] >= BATCHED * asked[PADDED] > 0


# The proof itself: a warm-up that overlooks something lets wrong answers through, and they are found


@pytest.mark.parametrize("kind", HOSTILE, ids=lambda kind: kind.id)
def test_a_warm_up_that_believes_every_model_is_found_out(
    another_court: Court, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_model, "warmed", lambda runtime, *_: (Calibration(((1, 1e-5),), True), []))
    with pytest.raises((WrongAnswerError, FlakyFailure)) as found:
        another_court.prove(kind, UNTIL_FOUND, explain=False)
    if isinstance(found.value, FlakyFailure):  # asked once more, the requests did not meet in a batch
        assert found.group_contains(WrongAnswerError)
