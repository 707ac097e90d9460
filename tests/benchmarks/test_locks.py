"""`make bench-locks`: each server has its lock, and clients that get through it; rates are divided within a round."""

from pathlib import Path

import msgspec
import pytest

from benchmarks import locks
from benchmarks.harness.processes import BenchmarkError, Children, Cores
from benchmarks.harness.sample import Sample, sample_for
from benchmarks.locks import PLAIN, Side
from benchmarks.models import build_mlp

ANYWHERE = Cores(None, None)
RATES = {PLAIN: (100.0, 50.0, 10.0), "API key": (96.0, 48.0, 2.0), "JWT": (90.0, 45.0, 9.0), "TLS": (60.0, 40.0, 1.0)}


def test_every_lock_is_there_and_opens(tmp_path: Path) -> None:
    model = build_mlp(tmp_path / "mlp.onnx")
    sample = sample_for(model)
    with Children(tmp_path) as children, locks._sides(model, children, ANYWHERE, tmp_path) as sides:
        for side in sides:
            side.check(sample)
            if side.headers:
                with pytest.raises(BenchmarkError, match="401"):
                    msgspec.structs.replace(side, headers=()).check(sample)
            if side.trust:
                with pytest.raises(BenchmarkError):
                    msgspec.structs.replace(side, trust=None).check(sample)
        assert [(bool(side.headers), bool(side.trust)) for side in sides] == [
            *((False, False), (True, False), (True, False), (False, True), (True, True))
        ]


def test_rates_are_compared_within_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(side: Side, sample: Sample, seconds: int, cores: Cores, folder: Path) -> None:
        side.rates.append(RATES[side.name][len(side.rates)])
        side.costs.append(1 / side.rates[-1])

    monkeypatch.setattr(locks, "_round", measured)
    monkeypatch.setattr(Side, "check", lambda side, sample: None)
    sides = [Side(name, None, 0, (), None) for name in RATES]  # type: ignore[arg-type]
    findings = locks._measure(sides, None, 3, 1, ANYWHERE, tmp_path)  # type: ignore[arg-type]
    assert [(check.measured, check.missed) for check in findings.checks] == [(0.96, False), (0.9, True), (0.6, False)]
    assert "0.96 times" not in findings.details[0]
    assert "1.04 times" in findings.details[1]
