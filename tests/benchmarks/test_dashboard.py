"""`make bench-dashboard`: pages that are open hear something, and rates are divided within a round."""

import socket
from pathlib import Path
from threading import Thread

import pytest

from benchmarks import dashboard
from benchmarks.dashboard import ONE, PLAIN, TWENTY, Side, open_pages
from benchmarks.harness.processes import BenchmarkError, Cores
from benchmarks.harness.sample import Sample

ANYWHERE = Cores(None, None)
RATES = {PLAIN: (100.0, 50.0, 10.0), ONE: (99.0, 48.0, 9.9), TWENTY: (80.0, 45.0, 9.0)}


@pytest.mark.parametrize("says", [b"data: {}\n\n", b""])
def test_a_page_that_hears_nothing_is_told(says: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(says)

        answering = Thread(target=answer)
        answering.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        if says:
            with open_pages(url, 2):
                answering.join()
        else:
            with pytest.raises(BenchmarkError, match="2 of 2 pages"), open_pages(url, 2):
                answering.join()


def test_rates_are_compared_within_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(side: Side, sample: Sample, seconds: int, cores: Cores, folder: Path) -> None:
        side.rates.append(RATES[side.name][len(side.rates)])
        side.costs.append(1 / side.rates[-1])

    monkeypatch.setattr(dashboard, "_round", measured)
    sides = [Side(name, None) for name in RATES]  # type: ignore[arg-type]
    findings = dashboard._measure(sides, None, 3, 1, ANYWHERE, tmp_path)  # type: ignore[arg-type]
    assert [(check.measured, check.missed) for check in findings.checks] == [(0.99, False), (0.9, True)]
