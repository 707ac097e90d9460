"""A whole study with models that know nothing: both servers are started, live through a short day, and are compared."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dlproxy.lab.casestudy import page
from dlproxy.lab.casestudy.day import Day, make_day
from dlproxy.lab.casestudy.record import load
from dlproxy.lab.casestudy.replay import Item
from dlproxy.lab.casestudy.run import Asked, run, sides
from dlproxy.lab.casestudy.steps import ALONE, FASTAPI, WHOLE
from dlproxy.lab.load.generator import Progress
from dlproxy.lab.load.run import Interrupt
from tests.lab.casestudy import stand_ins

pytest.importorskip("PIL")
goods = pytest.importorskip("dlproxy.lab.casestudy.goods")


class _Nowhere:
    """Shows nothing; presses Ctrl-C when a part of this name begins."""

    def __init__(self, interrupt: Interrupt, until: str = "") -> None:
        self._interrupt, self._until = interrupt, until
        self.parts: list[str] = []

    def watch(self, progress: Progress) -> bool:
        return True

    def part(self, name: str) -> None:
        self.parts.append(name)
        self._interrupt.pressed |= bool(self._until) and name.startswith(self._until)


def _asked(folder: Path) -> Asked:
    return Asked(
        case="promotion",
        out=folder / "out",
        rounds=1,
        length_s=3.0,
        seed=1,
        ablation=False,
        objective_ms=200.0,
        agent=None,
        goods=stand_ins.goods(folder),
        pictures=_pictures,
        kept=_kept,
    )


@contextmanager
def _kept(url: str, folder: Path) -> Iterator[None]:
    yield
    (folder / "day.html").write_text(url)


def _pictures(count: int, seed: int) -> list[Item]:
    """A few, again and again."""
    few = goods.pictures(16, seed)
    return [few[number % len(few)] for number in range(count)]


def _slow(day: object) -> Day:
    return make_day(mean_rps=30.0, length_s=3.0, seed=1)


@pytest.mark.extras
def test_each_side_has_its_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.setattr("dlproxy.lab.casestudy.run.make_day", lambda **how: _slow(how))
    asked, interrupt = _asked(tmp_path), Interrupt()
    study = run(asked, interrupt, _Nowhere(interrupt))
    assert study.sides() == [FASTAPI, *(side for side, _ in sides(asked))] == [FASTAPI, ALONE, WHOLE]
    requests = len(study.day.at_s)
    for turn in study.turns:
        assert len(turn.answer) == len(turn.latency_ms) == requests
        assert sum(number >= 0 for number in turn.answer) > 0.5 * requests, turn.said
        assert turn.rows["pixels"] > 0
    answers = [dict(enumerate(turn.answer)) for turn in study.turns[:2]]
    both = [number for number in answers[0] if answers[0][number] >= 0 and answers[1][number] >= 0]
    assert [answers[0][number] for number in both] == [answers[1][number] for number in both]
    assert study.of(WHOLE)[0].hits > 0
    assert load(asked.out / "runs.jsonl") == study
    assert all(path.stat().st_size for path in page.save(study, asked.out))
    assert (asked.out / "all-steps" / "day.html").read_text().startswith("http://127.0.0.1:")


@pytest.mark.extras
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.setattr("dlproxy.lab.casestudy.run.make_day", lambda **how: _slow(how))
    asked, interrupt = _asked(tmp_path), Interrupt()
    study = run(asked, interrupt, _Nowhere(interrupt, until=ALONE))
    assert study.sides() == [FASTAPI]
    assert load(asked.out / "runs.jsonl") == study
