"""What is planned, made and refused, with times that are known: products by their weights."""

from pathlib import Path

import pytest

from dlproxy.compress import CompressError
from dlproxy.compress.split import search
from dlproxy.compress.split.handing import Handing
from dlproxy.compress.split.search import Asked, Found, find
from tests import models
from tests.compress.split import networks, timed

FREE, DEAR = Handing(0.0, 0.0), Handing(1.0, 0.0)


@pytest.fixture(autouse=True)
def _time(monkeypatch: pytest.MonkeyPatch) -> None:
    timed.use(monkeypatch, FREE)


def found(folder: Path, made: models.Model, **asked: object) -> Found:
    (folder / "made").mkdir(exist_ok=True)
    path = networks.save(made, folder)
    return find(Asked(model=path, name="m", **asked), folder, folder / "made", lambda line: None)  # type: ignore[arg-type]


def test_stages_are_even_and_their_answers_equal(tmp_path: Path) -> None:
    one = found(tmp_path, networks.chain(6), stages=3, rows=4)
    assert [stage.seconds for stage in one.stages] == pytest.approx([2 * 256 * timed.WEIGHT_S] * 3)
    assert one.gain == pytest.approx(3.0)
    assert (one.error, one.proved) == (0.0, 12)
    assert [path.name for path in sorted((tmp_path / "made").iterdir())] == [f"m-stage{number}.onnx" for number in (1, 2, 3)]


def test_what_takes_uneven_time_is_cut_by_it(tmp_path: Path) -> None:
    one = found(tmp_path, networks.of_widths(16, 160, 16, 16, 16, 16, 16), stages=2)
    assert [stage.seconds for stage in one.stages] == pytest.approx([2560 * timed.WEIGHT_S, 3584 * timed.WEIGHT_S])
    assert one.slowest[1] == pytest.approx(2560 / 6144)


def test_what_cannot_be_cut_has_replicas(tmp_path: Path) -> None:
    layout = found(tmp_path, networks.rows_second(), cores=2, parts=1).layout
    assert (layout.replicas, layout.stages, layout.parts) == (2, 1, 1)


def test_shares_and_stages_go_together(tmp_path: Path) -> None:
    made = networks.chain(4, 64)
    one = found(tmp_path, made, stages=2, parts=2)
    assert one.gain == pytest.approx(4.0)
    assert [(stage.stage, stage.lane) for stage in one.stages if stage.lane] == [(1, 1), (1, 2)] * 2 + [(2, 1), (2, 2)] * 2
    assert one.error < 1e-6


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"cores": 4}, (4, 1, 1)),
        ({"cores": 4, "latency": True}, (1, 1, 4)),
        ({"cores": 4, "stages": 2}, (2, 2, 1)),
        ({"cores": 4, "most_weights": 2 * 64 * 64 * 4, "parts": 1}, (2, 2, 1)),
    ],
)
def test_cores_are_filled_by_what_is_asked_for(
    asked: dict[str, object], expected: tuple[int, int, int], tmp_path: Path
) -> None:
    layout = found(tmp_path, networks.chain(4, 64), **asked).layout
    assert (layout.replicas, layout.stages, layout.parts) == expected


@pytest.mark.parametrize(
    ("made", "asked", "why"),
    [
        (networks.wide(), {"stages": 2}, "1.00 times as much throughput .* node Gemm .* alone takes 100%"),
        (networks.chain(2), {"stages": 9}, "cannot be cut into 9 stages, but into 4 at most: .* rows on axis 0"),
        (networks.rows_second(), {"stages": 2}, "cannot be cut into 2 stages, but into 1 at most: .* rows on axis 0"),
        (networks.chain(2), {"parts": 2}, "no product with a constant matrix"),
        (networks.chain(4), {"cores": 2, "most_weights": 1}, "would hold 0 MiB of weights at least"),
        (networks.chain(4), {"cores": 2, "stages": 2, "parts": 2}, "2 stages of 2 parts take more than 2 cores"),
        (networks.passing_on(), {"stages": 2}, "'x' is an input or a constant"),
        (models.softmax_over_rows(), {"stages": 2, "rows": 4}, "--batch 4: its rows cannot share a batch"),
        (
            networks.chain(6),
            {"stages": 2, "transfer": "int8", "most_error": 1e-6},
            "--transfer int8 changes answers by .*1e-06",
        ),
    ],
)
def test_what_cannot_be_cut_or_does_not_pay_is_refused(
    made: models.Model, asked: dict[str, object], why: str, tmp_path: Path
) -> None:
    with pytest.raises(CompressError, match=why):
        found(tmp_path, made, **asked)


def test_a_share_that_costs_more_than_it_saves_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed.use(monkeypatch, DEAR)
    with pytest.raises(
        CompressError, match=r"no product is so large that 2 parts would pay: .* with the way to other processes"
    ):
        found(tmp_path, networks.wide(), parts=2)


def test_answers_that_differ_are_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_through", lambda parts, feed: {"y": feed["x"]})
    with pytest.raises(CompressError, match=r"the parts change answers by .*: nothing is written"):
        found(tmp_path, networks.chain(4), stages=2)
